"""The few-step schedule of distilled flow-matching models (Self-Forcing, Huang et al. 2025; LongLive).

Each step predicts the clean sample and, but for the last step, noises it again to the next level with fresh noise. The
schedule holds no cursor: a search denoises many candidates with one scheduler, so `step_between` takes both levels.

`sigma` is a noise level in [0, 1]; a timestep, `sigma * num_train_timesteps`, is the float that the model is fed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

MAX_STEPS = 8

logger = logging.get_logger(__name__)


@dataclass
class FewStepFlowMatchSchedulerOutput(BaseOutput):
    """Result of one step.

    Args:
        prev_sample: the sample at the next noise level, the shape of the input.
        pred_original_sample: the clean sample predicted on the way.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class FewStepFlowMatchScheduler(SchedulerMixin, ConfigMixin):
    """Flow matching in 1 to 8 steps.

    Args:
        num_train_timesteps: the timestep of pure noise.
        shift: how far the schedule leans to high noise, `sigma = shift * u / (1 + (shift - 1) * u)`.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]
    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 5.0) -> None:
        if not 1e-6 <= _real_number("shift", shift) <= 1e6:  # beyond, levels are no longer distinct
            raise ValueError(f"`shift` is {shift}; it must be above 0, 1e-6 to 1e6. 1 leaves `sigmas` as they are.")
        if not 1 <= _whole_number("num_train_timesteps", num_train_timesteps) < 2**31:
            raise ValueError(f"`num_train_timesteps` is {num_train_timesteps}; it must be 1 or more, below 2^31.")
        # Python's own numbers: numpy's cannot be saved.
        self.register_to_config(num_train_timesteps=int(num_train_timesteps), shift=_real_number("shift", shift))
        self.init_noise_sigma = 1.0
        self.set_timesteps(4)

    @classmethod
    def adopt(cls, scheduler: SchedulerMixin | None) -> "FewStepFlowMatchScheduler":
        """Returns the scheduler if it is a few-step one, else one with its `shift`, else the default with a warning.

        Stock Wan folders carry a multistep scheduler that has no `shift`.

        Raises:
            TypeError: `scheduler` is no scheduler.
        """
        if isinstance(scheduler, type) or not (scheduler is None or hasattr(scheduler, "config")):
            given = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else f"{scheduler!r}"
            raise TypeError(
                f"`scheduler` is {given}; it must be a scheduler of diffusers, such as FewStepFlowMatchScheduler(), "
                "or None for the default."
            )
        if hasattr(scheduler, "step_between"):
            return scheduler
        config = {} if scheduler is None else scheduler.config
        if "shift" in config:
            return cls(num_train_timesteps=config["num_train_timesteps"], shift=config["shift"])
        default = cls()
        logger.warning(
            f"A {type(scheduler).__name__} has no `shift`; the default few-step schedule with shift "
            f"{default.config.shift} is used instead."
        )
        return default

    def steps_of_config(self, steps: list[float]) -> tuple[float, ...]:
        """A pipeline's `denoising_steps`, 1000 u each, as plain numbers.

        Raises:
            TypeError, ValueError: there are no such steps.
        """
        return tuple(falling_numbers("denoising_steps", steps, self.config.num_train_timesteps))

    def schedule(
        self, num_inference_steps: int | None = None, sigmas: Sequence[float] | np.ndarray | None = None
    ) -> tuple[float, ...]:
        """Returns the noise levels of all steps, after the shift, in float64. Does not change the scheduler.

        Args:
            num_inference_steps: n, at u = 1 - i / n for i from 0 to n - 1.
            sigmas: u of every step, decreasing, in (0, 1]: *before* the shift, as everywhere in diffusers. Instead
                of a number of steps.

        Raises:
            TypeError, ValueError: the steps are no whole number from 1 to 8, `sigmas` are no such list, or both
                are given and differ.
        """
        if sigmas is None:
            if num_inference_steps is None:
                raise ValueError("Give `num_inference_steps` or `sigmas`.")
            num_steps = _whole_number("num_inference_steps", num_inference_steps)
            if not 1 <= num_steps <= MAX_STEPS:
                raise ValueError(f"`num_inference_steps` is {num_steps}; this scheduler makes 1 to {MAX_STEPS} steps.")
            unshifted = [1.0 - index / num_steps for index in range(num_steps)]
        else:
            unshifted = falling_numbers("sigmas", sigmas, 1.0)
            if num_inference_steps is not None:
                if _whole_number("num_inference_steps", num_inference_steps) != len(unshifted):
                    raise ValueError(
                        f"`num_inference_steps` is {num_inference_steps}, but `sigmas` has {len(unshifted)} of them. "
                        "Give one."
                    )
        shift = self.config.shift
        # Python floats are float64: neither a timestep nor a level is ever rounded to the model's dtype.
        return tuple(shift * u / (1.0 + (shift - 1.0) * u) for u in unshifted)

    def timesteps_of(self, levels: Sequence[float], device: torch.device | str | None = None) -> torch.Tensor:
        """Timesteps at noise levels after the shift: (steps,) float32."""
        scaled = [self.config.num_train_timesteps * level for level in levels]
        return torch.tensor(scaled, dtype=torch.float32, device="cpu" if device is None else device)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Sets `levels`, `sigmas` and `timesteps`, for `step`; the arguments are those of `schedule`.

        Args:
            device: of `timesteps`. `sigmas` stays on the CPU.
        """
        self.levels = self.schedule(num_inference_steps, sigmas)
        self.num_inference_steps = len(self.levels)
        self.sigmas = torch.tensor((*self.levels, 0.0), dtype=torch.float32, device="cpu")
        self.timesteps = self.timesteps_of(self.levels, device)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample unchanged: flow matching does not scale it."""
        return sample

    @staticmethod
    def clean_sample(velocity: torch.Tensor, sample: torch.Tensor, sigma: float) -> torch.Tensor:
        """`x_0 = x - sigma * v`, in float64 where the device has it, in the dtype of `sample`."""
        exact = torch.float32 if sample.device.type in ("mps", "npu") else torch.float64
        return torch.sub(sample.to(exact), velocity.to(exact), alpha=sigma).to(sample.dtype)

    @staticmethod
    def add_noise(original_samples: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """The flow-matching forward process, `x_sigma = (1 - sigma) * x_0 + sigma * noise`."""
        return torch.add((1.0 - sigma) * original_samples, noise, alpha=sigma)

    def step_between(
        self,
        velocity: torch.Tensor,
        sample: torch.Tensor,
        sigma: float,
        next_sigma: float = 0.0,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Moves a sample from noise level `sigma` to `next_sigma`; at 0, the last step, no noise is needed.

        Args:
            velocity: the model's output for `sample`, any shape.
            sample: the noisy sample, the same shape.
            noise: fresh Gaussian noise, the same shape.
        """
        clean = self.clean_sample(velocity, sample, sigma)
        return clean if next_sigma == 0.0 else self.add_noise(clean, noise, next_sigma)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FewStepFlowMatchSchedulerOutput | tuple[torch.Tensor]:
        """Steps as diffusers' schedulers do: looks the levels up from `timestep`, draws the noise from `generator`."""
        index = int((self.timesteps.cpu() - float(timestep)).abs().argmin())
        sigma, next_sigma = (*self.levels, 0.0)[index : index + 2]
        noise = None
        if next_sigma > 0.0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        clean = self.clean_sample(model_output, sample, sigma)
        previous = self.step_between(model_output, sample, sigma, next_sigma, noise)
        if not return_dict:
            return (previous, clean)
        return FewStepFlowMatchSchedulerOutput(prev_sample=previous, pred_original_sample=clean)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def falling_numbers(name: str, numbers: Sequence[float] | np.ndarray, most: float) -> list[float]:
    """The numbers of a schedule's steps as Python's own.

    Args:
        name: of the argument, for messages.
        most: that the first may be.

    Raises:
        TypeError, ValueError: they are no list of 1 to 8 finite numbers that fall, or not above 0 and up to `most`.
    """
    if isinstance(numbers, np.ndarray):
        numbers = numbers.tolist()
    wanted = f"a list of 1 to {MAX_STEPS} numbers that fall from step to step, above 0 and at most {most}"
    if not isinstance(numbers, Sequence) or isinstance(numbers, str | bytes):
        raise TypeError(f"`{name}` is {numbers!r}; it must be {wanted}.")
    numbers = [_real_number(f"{name}[{index}]", number) for index, number in enumerate(numbers)]
    falls = all(before > after for before, after in zip(numbers, numbers[1:], strict=False))
    if not (1 <= len(numbers) <= MAX_STEPS and falls and numbers[-1] > 0 and numbers[0] <= most):
        raise ValueError(f"`{name}` is {numbers}; it must be {wanted}.")
    return numbers


# Checks of numbers as in search/geometry.py: a module here imports only its siblings, for the Hub's loader.


def _whole_number(name: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}, a {type(value).__name__}; it must be a whole number.")
    return int(value)


def _real_number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}, a {type(value).__name__}; it must be a number.")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        is_finite = False
    if not is_finite:
        raise ValueError(f"`{name}` is {value}; it must be finite.")
    return int(value) if isinstance(value, Integral) else float(value)
