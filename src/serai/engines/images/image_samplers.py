"""Samplers of diffusion models in numpy: from noise to a latent picture, one call of the network per step.

Each does what diffusers' scheduler of its name does with the same scheduler_config.json, step for step:

| scheduler_config's class | sampler | from |
|---|---|---|
| DDIMScheduler | DDIM without noise (eta 0) | https://arxiv.org/abs/2010.02502 |
| PNDMScheduler with skip_prk_steps | PLMS, fourth order | https://arxiv.org/abs/2202.09778 |
| EulerDiscreteScheduler | Euler on the probability flow | https://arxiv.org/abs/2206.00364 |
| DPMSolverMultistepScheduler | DPM-Solver++(1M, 2M) | https://arxiv.org/abs/2211.01095 |

A sampler belongs to one picture and remembers what its method needs of earlier steps. Arrays are float32 of
any one shape; a step's coefficients are plain floats, so nothing is widened.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serai.engines.images.image_schedule import NoiseSchedule, SchedulerConfig

FloatArray = NDArray[Any]
"""float32, which the types do not say: for them a product with a float is float64, which it is not."""
_SHORT = 15
"""With fewer steps in the whole schedule the last one is of first order, also where only some of them are made."""


class Sampler:
    """The steps of one picture. `at` is the number of the next one; it is over when `is_done`."""

    def __init__(self, schedule: NoiseSchedule, steps: int, first: int) -> None:
        """`steps`: asked for; `first`: how many of them are left out, where a picture is only changed."""
        self.config: SchedulerConfig = schedule.config
        self.alphas = schedule.alphas
        self.steps = steps
        self.sigmas: FloatArray = np.zeros(0)
        self.timesteps = self._timesteps(schedule, first)
        """As the network is told the time of each step that is made."""
        self.at = 0
        self.predicted: FloatArray | None = None
        """The picture's latents as the last step foresaw them: what a preview shows."""

    def _timesteps(self, schedule: NoiseSchedule, first: int) -> FloatArray:
        """Return the times of the steps; a sampler that counts in sigmas sets those, one more than the times."""
        return schedule.timesteps(self.steps)[first:]

    @property
    def is_done(self) -> bool:
        return self.at >= len(self.timesteps)

    @property
    def timestep(self) -> float:
        """The time of the next step."""
        return float(self.timesteps[self.at])

    @property
    def noise_scale(self) -> float:
        """The standard deviation of the noise that a picture begins as."""
        return 1.0

    def scaled(self, sample: FloatArray) -> FloatArray:
        """Return what the network is shown of the sample."""
        return sample

    def noised(self, latents: FloatArray, noise: FloatArray) -> FloatArray:
        """Return a picture's latents with as much noise as the sample has before the next step; none at the end."""
        if self.is_done:
            return latents
        alpha = self._alpha(int(self.timestep))
        return math.sqrt(alpha) * latents + math.sqrt(1 - alpha) * noise

    def step(self, output: FloatArray, sample: FloatArray) -> FloatArray:
        """Return the sample after the next step. `output`: what the network said of it."""
        raise NotImplementedError

    def _alpha(self, timestep: int) -> float:
        return float(self.alphas[timestep])

    def _alpha_or_last(self, timestep: int) -> float:
        """Return alpha at a time, or behind the end of the schedule what stands there."""
        if timestep >= 0:
            return self._alpha(timestep)
        return 1.0 if self.config.set_alpha_to_one else self._alpha(0)

    def _parts(self, output: FloatArray, sample: FloatArray, alpha: float) -> tuple[FloatArray, FloatArray]:
        """Return the noise and the latents without it, as the network's output means them."""
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        match self.config.prediction_type:
            case "epsilon":
                return output, (sample - noise * output) / signal
            case "v_prediction":
                return signal * output + noise * sample, signal * sample - noise * output
            case _:
                return (sample - signal * output) / noise, output


class Ddim(Sampler):
    """Deterministic steps along the schedule."""

    def step(self, output: FloatArray, sample: FloatArray) -> FloatArray:
        now = int(self.timestep)
        before = self._alpha_or_last(now - self.config.num_train_timesteps // self.steps)
        noise, latents = self._parts(output, sample, self._alpha(now))
        if self.config.clip_sample:
            latents = latents.clip(-self.config.clip_sample_range, self.config.clip_sample_range)
        self.at += 1
        self.predicted = latents
        return math.sqrt(before) * latents + math.sqrt(1 - before) * noise


class Plms(Sampler):
    """Linear multistep: the network's last four outputs together say the direction. The first step is made twice.

    Where a picture is changed, that is the first step that is made. diffusers repeats the second of all steps
    even if it is left out, and so ends with noise in the picture.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, first: int) -> None:
        super().__init__(schedule, steps, first)
        self._outputs: list[FloatArray] = []
        self._sample: FloatArray | None = None

    def _timesteps(self, schedule: NoiseSchedule, first: int) -> FloatArray:
        times = schedule.timesteps(self.steps)[first:]
        return np.concatenate([times[:1], times[1:2], times[1:]])

    def step(self, output: FloatArray, sample: FloatArray) -> FloatArray:
        stride = self.config.num_train_timesteps // self.steps
        now = int(self.timestep)
        _, self.predicted = self._parts(output, sample, self._alpha(now))
        if self.at == 1:
            direction, before = (output + self._outputs[-1]) / 2, now
            now, sample = now + stride, self._first_sample()
        else:
            self._outputs = [*self._outputs[-3:], output]
            self._sample = sample if self.at == 0 else None
            direction, before = self._direction(), now - stride
        self.at += 1
        return self._moved(direction, sample, self._alpha(min(now, len(self.alphas) - 1)), self._alpha_or_last(before))

    def _first_sample(self) -> FloatArray:
        assert self._sample is not None, "the first step has kept its sample"
        return self._sample

    def _direction(self) -> FloatArray:
        """Return the Adams–Bashforth mean of as many outputs as there are."""
        match len(self._outputs):
            case 1:
                return self._outputs[0]
            case 2:
                weights: tuple[float, ...] = (3 / 2, -1 / 2)
            case 3:
                weights = (23 / 12, -16 / 12, 5 / 12)
            case _:
                weights = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
        total: FloatArray = np.zeros_like(self._outputs[0])
        for weight, output in zip(weights, reversed(self._outputs), strict=True):
            total += weight * output
        return total

    def _moved(self, direction: FloatArray, sample: FloatArray, alpha: float, before: float) -> FloatArray:
        """Return formula (9) of the paper."""
        if self.config.prediction_type == "v_prediction":
            direction = math.sqrt(alpha) * direction + math.sqrt(1 - alpha) * sample
        divisor = alpha * math.sqrt(1 - before) + math.sqrt(alpha * (1 - alpha) * before)
        return math.sqrt(before / alpha) * sample - ((before - alpha) / divisor) * direction


class Euler(Sampler):
    """Straight steps in the amount of noise, sigma."""

    def _timesteps(self, schedule: NoiseSchedule, first: int) -> FloatArray:
        times, sigmas = schedule.euler_sigmas(self.steps)
        self._top, self.sigmas = float(sigmas.max()), sigmas[first:]
        return times[first:]

    @property
    def noise_scale(self) -> float:
        if self.config.spacing in ("linspace", "trailing"):
            return self._top
        return math.sqrt(self._top**2 + 1)

    def scaled(self, sample: FloatArray) -> FloatArray:
        return sample / math.sqrt(float(self.sigmas[self.at]) ** 2 + 1)

    def noised(self, latents: FloatArray, noise: FloatArray) -> FloatArray:
        return latents if self.is_done else latents + float(self.sigmas[self.at]) * noise

    def step(self, output: FloatArray, sample: FloatArray) -> FloatArray:
        sigma, after = float(self.sigmas[self.at]), float(self.sigmas[self.at + 1])
        latents: FloatArray
        match self.config.prediction_type:
            case "epsilon":
                latents = sample - sigma * output
            case "v_prediction":
                latents = output * (-sigma / math.sqrt(sigma**2 + 1)) + sample / (sigma**2 + 1)
            case _:
                latents = output
        self.at += 1
        self.predicted = latents
        return sample + ((after - sigma) / sigma) * (sample - latents)


class DpmSolver(Sampler):
    """Second-order steps on the foreseen latents, with one step's memory."""

    def __init__(self, schedule: NoiseSchedule, steps: int, first: int) -> None:
        super().__init__(schedule, steps, first)
        self._earlier: FloatArray | None = None

    def _timesteps(self, schedule: NoiseSchedule, first: int) -> FloatArray:
        times, sigmas = schedule.solver_sigmas(self.steps)
        self._is_short = len(times) < _SHORT
        self.sigmas = sigmas[first:]
        return times[first:]

    def noised(self, latents: FloatArray, noise: FloatArray) -> FloatArray:
        if self.is_done:
            return latents
        signal, deviation = _of_sigma(float(self.sigmas[self.at]))
        return signal * latents + deviation * noise

    def step(self, output: FloatArray, sample: FloatArray) -> FloatArray:
        sigma = float(self.sigmas[self.at])
        _, latents = self._parts(output, sample, 1 / (sigma**2 + 1))
        earlier = None if self._is_first_order() else self._earlier
        moved = self._moved(latents, earlier, sample)
        self._earlier = self.predicted = latents
        self.at += 1
        return moved

    def _is_first_order(self) -> bool:
        config = self.config
        is_last = self.at == len(self.timesteps) - 1
        keeps_low = config.euler_at_final or (config.lower_order_final and self._is_short)
        return config.solver_order == 1 or (is_last and (keeps_low or config.final_sigmas_type == "zero"))

    def _moved(self, latents: FloatArray, earlier: FloatArray | None, sample: FloatArray) -> FloatArray:
        """Return the update of the paper's algorithm 2; with h the step in log-SNR, exp(-h) needs no logarithm."""
        signal, deviation = _of_sigma(float(self.sigmas[self.at]))
        signal_after, deviation_after = _of_sigma(float(self.sigmas[self.at + 1]))
        decay = (deviation_after / signal_after) * (signal / deviation)
        moved = (deviation_after / deviation) * sample - (signal_after * (decay - 1)) * latents
        if earlier is None or decay == 1:  # with no noise less there is nothing to be of second order in
            return moved
        signal_before, deviation_before = _of_sigma(float(self.sigmas[self.at - 1]))
        step = -math.log(decay)
        step_before = math.log((signal / deviation) * (deviation_before / signal_before))
        slope = (step / step_before) * (latents - earlier)
        if self.config.solver_type == "heun":
            return moved + (signal_after * ((decay - 1) / step + 1)) * slope
        return moved - (0.5 * signal_after * (decay - 1)) * slope


SAMPLERS: dict[str, type[Sampler]] = {
    "DDIMScheduler": Ddim,
    "PNDMScheduler": Plms,
    "EulerDiscreteScheduler": Euler,
    "DPMSolverMultistepScheduler": DpmSolver,
}


def make_sampler(schedule: NoiseSchedule, steps: int, strength: float | None = None) -> Sampler:
    """Return the sampler of one picture. `strength`: the share of the steps that is made; None: all."""
    first = 0 if strength is None else steps - max(1, min(int(steps * strength), steps))
    return SAMPLERS[schedule.config.class_name](schedule, steps, first)


def guided(outputs: NDArray[Any], scale: float) -> FloatArray:
    """Return the guided output of a pair (without the prompt, with it): https://arxiv.org/abs/2207.12598."""
    without, with_prompt = outputs
    guided_output: FloatArray = without + scale * (with_prompt - without)
    return guided_output


def _of_sigma(sigma: float) -> tuple[float, float]:
    """Return the shares of signal and noise in a sample whose noise is `sigma` times its signal."""
    signal = 1 / math.sqrt(sigma**2 + 1)
    return signal, sigma * signal
