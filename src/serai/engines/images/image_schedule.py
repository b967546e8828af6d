"""What scheduler_config.json says: how much noise there is at which time, and which times are steps."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from serai.errors import LoadFailed

_Doubles = NDArray[Any]
"""float64."""
_MAX_BYTES = 1024 * 1024
_RHO = 7.0
"""Of Karras' spacing, as in https://arxiv.org/abs/2206.00364."""
_LEADING = frozenset({"DDIMScheduler", "PNDMScheduler"})
"""Schedulers whose spacing is `leading` where the file does not say; of the others it is `linspace`."""
KNOWN = ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The members that change what is computed, with diffusers' defaults."""

    class_name: str = msgspec.field(name="_class_name")
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[float] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    use_karras_sigmas: bool | None = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None
    skip_prk_steps: bool = False
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    algorithm_type: str = "dpmsolver++"
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    variance_type: str | None = None
    thresholding: bool = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    use_flow_sigmas: bool | None = False

    @property
    def spacing(self) -> str:
        return self.timestep_spacing or ("leading" if self.class_name in _LEADING else "linspace")


def read_config(path: Path) -> SchedulerConfig:
    """Return the configuration in a file. Raises LoadFailed for one that no sampler here follows."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LoadFailed(f"{path.name} is larger than such a file can be.")
        # Unlike msgspec it reads -Infinity, which diffusers writes for lambda_min_clipped.
        config = msgspec.convert(json.loads(path.read_bytes()), SchedulerConfig)
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used: {error}"
        raise LoadFailed(f"The pipeline's {path.name} {why}.") from None
    problem = _problem(config)
    if problem:
        raise LoadFailed(
            f"The pipeline's scheduler cannot be followed: {problem}.",
            hint=f"Known: {', '.join(KNOWN)}; change scheduler/scheduler_config.json, or use the engine diffusers.",
        )
    if config.set_alpha_to_one is None:
        return msgspec.structs.replace(config, set_alpha_to_one=config.class_name == "DDIMScheduler")
    return config


def _problem(config: SchedulerConfig) -> str:
    """Return what no sampler here does, in words; '' if there is nothing of the kind."""
    is_solver = config.class_name == "DPMSolverMultistepScheduler"
    is_euler = config.class_name == "EulerDiscreteScheduler"
    findings = {
        f"{config.class_name} is not known": config.class_name not in KNOWN,
        "num_train_timesteps must be from 1 to 100000": not 1 <= config.num_train_timesteps <= 100_000,
        "steps_offset must be a time of the schedule": not 0 <= config.steps_offset < config.num_train_timesteps,
        "PNDM is followed with skip_prk_steps alone": config.class_name == "PNDMScheduler"
        and (not config.skip_prk_steps or config.prediction_type == "sample"),
        "an epsilon cannot be told where nothing but noise is left": config.rescale_betas_zero_snr
        and config.class_name == "DDIMScheduler"
        and config.prediction_type == "epsilon",
        "thresholding": config.thresholding,
        "a learned variance": config.variance_type is not None,
        "exponential, beta, lu or flow sigmas": any(
            (config.use_exponential_sigmas, config.use_beta_sigmas, config.use_lu_lambdas, config.use_flow_sigmas)
        ),
        "Euler's log-linear or continuous times": is_euler
        and (config.interpolation_type != "linear" or config.timestep_type != "discrete"),
        f"{config.algorithm_type} of order {config.solver_order} ({config.solver_type})": is_solver
        and (
            config.algorithm_type != "dpmsolver++"
            or config.solver_order not in (1, 2)
            or config.solver_type not in ("midpoint", "heun")
        ),
    }
    return next((words for words, is_found in findings.items() if is_found), "")


class NoiseSchedule:
    """The schedule that a network was trained with: `alphas[t]` is the share of signal in a sample at time t."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        betas = _betas(config)
        if config.rescale_betas_zero_snr:
            betas = _without_signal_at_the_end(betas)
        # In single precision and one by one, as diffusers has them: the errors add up to the same numbers.
        self.alphas: NDArray[np.float32] = np.cumprod(1 - betas.astype(np.float32), dtype=np.float32)
        if config.rescale_betas_zero_snr and config.class_name != "DDIMScheduler":
            self.alphas[-1] = 2.0**-24  # else the first sigma would be infinite
        self._sigmas: _Doubles = np.sqrt((1 - self.alphas.astype(np.float64)) / np.maximum(self.alphas, 1e-30))

    def timesteps(self, steps: int) -> _Doubles:
        """Return the whole times of so many steps, the noisiest first."""
        config, count = self.config, self.config.num_train_timesteps
        match config.spacing:
            case "linspace":
                times: _Doubles = np.linspace(0, count - 1, steps).round()[::-1]
            case "leading":
                times = np.arange(steps)[::-1] * float(count // steps) + config.steps_offset
            case _:
                times = _trailing(count, count / steps, steps)
        return np.ascontiguousarray(times, np.float64)

    def most_steps(self, wanted: int) -> int:
        """Return how many steps can be made where so many are wanted: that many, or else the next fewer.

        Each step has a time that the network was trained with, and less noise than the one before it.
        """
        return next((steps for steps in range(wanted, 1, -1) if self._can_space(steps)), 1)

    def _can_space(self, steps: int) -> bool:
        match self.config.class_name:
            case "EulerDiscreteScheduler":
                times, sigmas = self.euler_sigmas(steps)
                falling = sigmas[:-1]
            case "DPMSolverMultistepScheduler":
                times, sigmas = self.solver_sigmas(steps)
                falling = sigmas[:-1]
            case _:
                times = falling = self.timesteps(steps)
        is_known = times.min() >= 0 and times.max() < self.config.num_train_timesteps
        return bool(is_known and (np.diff(falling) < 0).all())

    def euler_sigmas(self, steps: int) -> tuple[_Doubles, _Doubles]:
        """Return times, which may lie between whole ones, and sigmas with the last one behind them."""
        is_even = self.config.spacing == "linspace"
        times = np.linspace(self.config.num_train_timesteps - 1, 0, steps) if is_even else self.timesteps(steps)
        sigmas = np.interp(times, np.arange(len(self._sigmas)), self._sigmas)
        if self.config.use_karras_sigmas:
            sigmas = self._karras(sigmas, steps)
            times = self._times_of(sigmas)
        return times, np.append(sigmas, self._last_sigma())

    def solver_sigmas(self, steps: int) -> tuple[_Doubles, _Doubles]:
        """Return whole times and sigmas for DPM-Solver++, which leaves out the time at the end."""
        config = self.config
        with np.errstate(divide="ignore"):
            snr = -np.log(self._sigmas)
        last = config.num_train_timesteps - int(np.searchsorted(snr[::-1], config.lambda_min_clipped))
        match config.spacing:
            case "linspace":
                times: _Doubles = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
            case "leading":
                stride = last // (steps + 1)
                times = np.arange(steps + 1)[::-1][:-1] * float(stride) + config.steps_offset
            case _:
                times = _trailing(last, config.num_train_timesteps / steps, steps)
        sigmas = np.interp(times, np.arange(len(self._sigmas)), self._sigmas)
        if config.use_karras_sigmas:
            sigmas = self._karras(self._sigmas[::-1], steps)
            times = self._times_of(sigmas)
            times = times if config.beta_schedule == "squaredcos_cap_v2" else times.round()
        return np.trunc(times), np.append(sigmas, self._last_sigma())

    def _last_sigma(self) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else float(self._sigmas[0])

    def _karras(self, sigmas: _Doubles, steps: int) -> _Doubles:
        """Return sigmas spaced as in Karras et al., equation 5."""
        config, is_euler = self.config, self.config.class_name == "EulerDiscreteScheduler"
        least = config.sigma_min if is_euler and config.sigma_min is not None else float(sigmas[-1])
        most = config.sigma_max if is_euler and config.sigma_max is not None else float(sigmas[0])
        ends = most ** (1 / _RHO), least ** (1 / _RHO)
        spaced: _Doubles = np.linspace(*ends, steps) ** _RHO
        return spaced

    def _times_of(self, sigmas: _Doubles) -> _Doubles:
        """Return the times at which the schedule has these sigmas, between two whole ones by their logarithm."""
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(self._sigmas), np.arange(len(self._sigmas)))


def _trailing(last: int, stride: float, steps: int) -> _Doubles:
    """Return times from the last one down, so many at most: with 61 of 1000 the division leaves a rest of another."""
    times: _Doubles = np.round(np.arange(last, 0, -stride)) - 1
    return times[:steps]


def _betas(config: SchedulerConfig) -> _Doubles:
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        if len(config.trained_betas) != count:
            raise LoadFailed("The pipeline's scheduler has another number of betas than of timesteps.")
        return np.asarray(config.trained_betas, np.float64)
    match config.beta_schedule:
        case "linear":
            return np.linspace(config.beta_start, config.beta_end, count)
        case "scaled_linear":
            return np.linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), count) ** 2
        case _:
            return _cosine_betas(count)


def _cosine_betas(count: int, most: float = 0.999) -> _Doubles:
    """Return the betas of https://arxiv.org/abs/2102.09672, equation 17."""

    def bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.asarray([min(1 - bar((at + 1) / count) / bar(at / count), most) for at in range(count)])


def _without_signal_at_the_end(betas: _Doubles) -> _Doubles:
    """Return betas under which the last sample is noise alone: https://arxiv.org/abs/2305.08891, algorithm 1."""
    roots = np.sqrt(np.cumprod(1 - betas))
    first, last = roots[0], roots[-1]
    bars = ((roots - last) * first / (first - last)) ** 2
    alphas = np.append(bars[:1], bars[1:] / bars[:-1])
    return 1 - alphas
