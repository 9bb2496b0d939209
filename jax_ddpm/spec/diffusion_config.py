"""Settings of the diffusion and of the samplers."""

from dataclasses import dataclass

from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.types import Clip, Objective, Sampler, Schedule, Spacing, Variance


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the diffusion: its schedule, what the network predicts, and how sampling uses the prediction."""

    __pydantic_config__ = STRICT

    timesteps: int = 1000
    """T, the number of timesteps."""
    schedule: Schedule = "linear"
    """Noise schedule: linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021) or sigmoid (Jabri et al. 2022)."""
    beta_start: float = 1e-4
    """beta_1 of the linear schedule."""
    beta_end: float = 0.02
    """beta_T of the linear schedule."""
    objective: Objective = "eps"
    """What the network predicts: the noise (eps), the clean image (x0) or v (Salimans & Ho 2022)."""
    variance: Variance = "beta"
    """Variance of a ddpm step: beta_t, the posterior's, or predicted (learned_range; Nichol & Dhariwal 2021)."""
    clip: Clip = "x0"
    """Limit to [-1, 1]. x0: clip the predicted x_0. dynamic: threshold it. state: clip every x_t. none: no limit."""
    clip_percentile: float = 0.995
    """For dynamic thresholding (Saharia et al. 2022): the fraction of an image's values that is not clipped."""

    def check(self) -> None:
        """Raise UserError that names the first wrong field."""
        check_schedule(self.schedule, self.timesteps, self.beta_start, self.beta_end)
        for name, choices in (("objective", Objective), ("variance", Variance), ("clip", Clip)):
            require_one_of(name, getattr(self, name), choices)
        require(
            0 < self.clip_percentile <= 1, "clip_percentile", self.clip_percentile, "expected more than 0, at most 1"
        )


def check_schedule(schedule: str, timesteps: int, beta_start: float, beta_end: float) -> None:
    """Raise UserError for a wrong setting of the noise schedule."""
    require(timesteps >= 1, "timesteps", timesteps, "expected at least 1")
    betas, expected = (beta_start, beta_end), "expected 0 < beta_start <= beta_end < 1, such as 1e-4 and 0.02"
    require(0 < beta_start <= beta_end < 1, "beta_start, beta_end", betas, expected)
    require_one_of("schedule", schedule, Schedule)


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler."""

    __pydantic_config__ = STRICT

    sampler: Sampler = "ddpm"
    """ddpm (ancestral), ddim (Song et al. 2021), dpmpp (DPM-Solver++ 2M; Lu et al. 2022), heun or euler (EDM)."""
    num_steps: int | None = None
    """Steps from noise to image, from 1 to T. Default: T."""
    spacing: Spacing = "trailing"
    """How num_steps < T timesteps are chosen: evenly in t (linspace, leading, trailing) or in log SNR (logsnr)."""
    eta: float = 0.0
    """For ddim: the noise per step, from 0 (none) to 1 (that of the posterior)."""

    @property
    def is_deterministic(self) -> bool:
        """Whether x_T alone decides the image."""
        return self.sampler != "ddpm" and self.eta == 0

    def check(self, timesteps: int) -> None:
        """Raise UserError that names the first wrong field. timesteps: T."""
        require_one_of("sampler", self.sampler, Sampler)
        require_one_of("spacing", self.spacing, Spacing)
        steps = self.num_steps
        require(steps is None or 1 <= steps <= timesteps, "num_steps", steps, f"expected 1 to T = {timesteps}")
        require(0 <= self.eta <= 1, "eta", self.eta, "expected 0 to 1")
        require(self.eta == 0 or self.sampler == "ddim", "eta", self.eta, f"only ddim has eta, not {self.sampler}")
