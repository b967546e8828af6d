"""The samplers do what diffusers' schedulers do, step for step; what they cannot follow is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serai.engines.images.image_samplers import SAMPLERS, guided, make_sampler
from serai.engines.images.image_schedule import KNOWN, NoiseSchedule, read_config
from serai.errors import LoadFailed
from serai.images.model import MAX_STEPS
from support.llm_models import child_environment

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES: tuple[tuple[str, int, float | None, dict[str, Any]], ...] = (
    ("DDIMScheduler", 7, None, {**SCALED, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", 20, 0.6, {**SCALED, "clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", 6, None, {"prediction_type": "v_prediction", "timestep_spacing": "linspace"}),
    ("DDIMScheduler", 5, None, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}),
    (
        "DDIMScheduler",
        5,
        None,
        {**SCALED, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    ("DDIMScheduler", 4, None, {"clip_sample_range": 0.3, "trained_betas": list(np.linspace(0.001, 0.02, 1000))}),
    ("PNDMScheduler", 7, None, {**SCALED, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    ("PNDMScheduler", 9, None, {**SCALED, "skip_prk_steps": True, "prediction_type": "v_prediction"}),
    ("PNDMScheduler", 1, None, {**SCALED, "skip_prk_steps": True}),
    ("EulerDiscreteScheduler", 8, None, SCALED),
    ("EulerDiscreteScheduler", 8, 0.4, {**SCALED, "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", 1, None, {**SCALED, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", 6, None, {**SCALED, "prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", 6, None, {**SCALED, "prediction_type": "sample", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", 8, None, SCALED),
    ("DPMSolverMultistepScheduler", 20, 0.7, {**SCALED, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", 16, None, {**SCALED, "solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", 6, None, {**SCALED, "solver_order": 1, "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", 17, None, {**SCALED, "prediction_type": "v_prediction", "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", 20, 0.5, {**SCALED, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", 12, 0.5, {**SCALED, "final_sigmas_type": "sigma_min"}),
    (
        "DPMSolverMultistepScheduler",
        9,
        None,
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "trailing"},
    ),
)
SHAPE = (4, 6, 5)
REFERENCE = """
import json, sys
import numpy as np, torch, diffusers
torch.set_num_threads(1)
cases, shape = json.load(open(sys.argv[1]))
found = {}
for at, (name, steps, strength, config) in enumerate(cases):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    first = 0 if strength is None else steps - min(int(steps * strength), steps)
    times = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    generator = np.random.Generator(np.random.Philox(key=at))
    draw = lambda: torch.from_numpy(generator.standard_normal([1, *shape], dtype=np.float32))
    source, noise = draw(), draw()
    sample = noise * scheduler.init_noise_sigma if strength is None else scheduler.add_noise(source, noise, times[:1])
    seen = [sample]
    for time in times:
        seen.append(scheduler.scale_model_input(sample, time))
        sample = scheduler.step(draw(), time, sample, return_dict=False)[0]
        seen.append(sample)
    found[f"times{at}"] = times.numpy()
    found[f"seen{at}"] = torch.cat(seen).numpy()
np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    """Return what diffusers' schedulers do with drawn outputs: times, and each sample and what is shown of it."""
    folder = tmp_path_factory.mktemp("schedulers")
    (folder / "cases.json").write_text(json.dumps([CASES, SHAPE]))
    command = [sys.executable, "-c", REFERENCE, str(folder / "cases.json"), str(folder / "found.npz")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "found.npz") as found:
        return dict(found)


def written(folder: Path, name: str, **members: Any) -> Path:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.1", **members}))
    return path


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{number}")
def test_each_does_what_diffusers_does(reference: dict[str, Any], tmp_path: Path, number: int) -> None:
    """Times, what the network is shown, and every sample are the same to 1e-4, from noise and from a picture."""
    name, steps, strength, members = CASES[number]
    sampler = make_sampler(NoiseSchedule(read_config(written(tmp_path, name, **members))), steps, strength)
    generator = np.random.Generator(np.random.Philox(key=number))

    def draw() -> np.ndarray[Any, Any]:
        return generator.standard_normal(SHAPE, dtype=np.float32)

    source, noise = draw(), draw()
    sample = noise * sampler.noise_scale if strength is None else sampler.noised(source, noise)
    seen = [sample]
    while not sampler.is_done:
        seen.append(sampler.scaled(sample))
        sample = sampler.step(draw(), sample)
        seen.append(sample)
    assert all(one.dtype == np.float32 for one in seen)
    assert np.allclose(sampler.timesteps, reference[f"times{number}"], atol=1e-3)
    expected = reference[f"seen{number}"]
    assert len(seen) == len(expected)
    scale = np.maximum(1.0, np.abs(expected).max(axis=(1, 2, 3), keepdims=True))
    assert np.abs((np.stack(seen) - expected) / scale).max() < 1e-4
    assert sampler.noised(source, noise) is source


@pytest.mark.parametrize("name", KNOWN)
def test_a_true_answer_is_foreseen(tmp_path: Path, name: str) -> None:
    """If the network tells the very noise, what is foreseen after any step is the picture: previews show that."""
    config = read_config(written(tmp_path, name, **SCALED, clip_sample=False, skip_prk_steps=True))
    sampler = make_sampler(NoiseSchedule(config), 4, 0.8)
    generator = np.random.default_rng(3)
    latents, noise = (generator.standard_normal(SHAPE, dtype=np.float32) for _ in range(2))
    sample = sampler.noised(latents, noise)
    while not sampler.is_done:
        sample = sampler.step(noise, sample)
        assert sampler.predicted is not None
        assert np.allclose(sampler.predicted, latents, atol=2e-3)
    assert set(SAMPLERS) == set(KNOWN)


@pytest.mark.parametrize(
    ("name", "members", "most"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, 999),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 1000),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, 1000),
        ("PNDMScheduler", {"steps_offset": 1}, 999),
        ("EulerDiscreteScheduler", {}, 1000),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 999),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, 1000),
        ("DPMSolverMultistepScheduler", {}, 999),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, 999),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 998),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, 1000),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_type": "heun"},
            1000,
        ),
    ],
    ids=str,
)
def test_no_more_steps_than_there_are_times(tmp_path: Path, name: str, members: dict[str, Any], most: int) -> None:
    """So many, and no more, are made to their end from numbers to numbers."""
    schedule = NoiseSchedule(read_config(written(tmp_path, name, **{**SCALED, "skip_prk_steps": True, **members})))
    assert schedule.most_steps(1000) == most >= MAX_STEPS
    for steps in (1, 61, 500, MAX_STEPS, most):
        assert schedule.most_steps(steps) == steps
        sampler = make_sampler(schedule, steps)
        assert 0 <= min(sampler.timesteps) <= max(sampler.timesteps) <= 999
        sample = np.ones((1, 1, 1), np.float32)
        while not sampler.is_done:
            sample = sampler.step(sample, sampler.scaled(sample))
        assert np.isfinite(sample).all()


@pytest.mark.parametrize(
    ("name", "members", "words"),
    [
        ("LCMScheduler", {}, "LCMScheduler"),
        ("PNDMScheduler", {}, "skip_prk_steps"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "sde"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "order 3"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "continuous"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "beta"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "nothing but noise"),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "sigmoid"),
        ("DDIMScheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ("DDIMScheduler", {"steps_offset": 1000}, "steps_offset"),
        ("DDIMScheduler", {"steps_offset": -1}, "steps_offset"),
        ("DDIMScheduler", {"trained_betas": [0.1]}, "number of betas"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, name: str, members: dict[str, Any], words: str) -> None:
    """By name, and without the folder's path."""
    with pytest.raises(LoadFailed, match=words) as refused:
        NoiseSchedule(read_config(written(tmp_path, name, **members)))
    assert str(tmp_path) not in refused.value.message


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """A missing file, no JSON, no object; what diffusers itself writes (-Infinity) is read."""
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(LoadFailed, match="missing"):
        read_config(path)
    for text in ("{", "[]", "[" * 5000):
        path.write_text(text)
        with pytest.raises(LoadFailed, match="cannot be used"):
            read_config(path)
    written(tmp_path, "DPMSolverMultistepScheduler", lambda_min_clipped=float("-inf"))
    assert read_config(path).lambda_min_clipped == float("-inf")


def test_guidance_goes_beyond_the_prompt() -> None:
    """1 is the prompt alone, 0 is none of it, more exaggerates the difference."""
    pair = np.asarray([[1.0, 2.0], [3.0, 2.0]], np.float32)
    assert [guided(pair, scale).tolist() for scale in (0.0, 1.0, 2.0)] == [[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]
