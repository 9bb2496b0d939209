"""Settings of the diffusion and of the samplers."""

from dataclasses import dataclass

from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.types import Clip, Objective, Sampler, Schedule, Spacing, Variance


@dataclass(frozen=True)
class DiffusionConfig:
    __pydantic_config__ = STRICT

    timesteps: int = 1000
    """T, the length of the diffusion."""
    schedule: Schedule = "linear"
    """Noise schedule: linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), sigmoid (Jabri et al. 2022)."""
    beta_start: float = 1e-4
    """beta_1 of the linear schedule."""
    beta_end: float = 0.02
    """beta_T of the linear schedule."""
    objective: Objective = "eps"
    """What the network predicts: the noise, the clean image, or v (Salimans & Ho 2022)."""
    variance: Variance = "beta"
    """Variance of a reverse step: beta_t, the posterior's, or between them as learned (Nichol & Dhariwal 2021)."""
    clip: Clip = "x0"
    """While sampling: clip the predicted x_0 to [-1, 1], threshold it (dynamic), clamp every x_t (state), or none."""
    clip_percentile: float = 0.995
    """Of dynamic thresholding (Saharia et al. 2022): the share of an image's pixels that are not clipped."""

    def check(self) -> None:
        check_schedule(self.schedule, self.timesteps, self.beta_start, self.beta_end)
        for name, choices in (("objective", Objective), ("variance", Variance), ("clip", Clip)):
            require_one_of(name, getattr(self, name), choices)
        require(0 < self.clip_percentile <= 1, "clip_percentile", self.clip_percentile, "expected above 0, up to 1")


def check_schedule(schedule: str, timesteps: int, beta_start: float, beta_end: float) -> None:
    """Raises UserError for settings of which no schedule can be made."""
    require(timesteps >= 1, "timesteps", timesteps, "expected at least 1")
    betas, expected = (beta_start, beta_end), "expected 0 < beta_start <= beta_end < 1, such as 1e-4 and 0.02"
    require(0 < beta_start <= beta_end < 1, "beta_start, beta_end", betas, expected)
    require_one_of("schedule", schedule, Schedule)


@dataclass(frozen=True)
class SamplerConfig:
    __pydantic_config__ = STRICT

    sampler: Sampler = "ddpm"
    """Ancestral (ddpm); ddim (Song et al. 2021); dpmpp: DPM-Solver++ 2M (Lu et al. 2022); heun, euler (EDM)."""
    num_steps: int | None = None
    """Steps from noise to picture. Default: T."""
    spacing: Spacing = "trailing"
    """Which timesteps fewer steps visit: evenly in t (linspace, leading, trailing), or in the logarithm of the SNR."""
    eta: float = 0.0
    """Noise of ddim, from 0 (none) to 1 (as much as the posterior has)."""

    @property
    def is_deterministic(self) -> bool:
        """Whether x_T alone decides the picture."""
        return self.sampler != "ddpm" and self.eta == 0

    def check(self, timesteps: int) -> None:
        require_one_of("sampler", self.sampler, Sampler)
        require_one_of("spacing", self.spacing, Spacing)
        steps = self.num_steps
        require(steps is None or 1 <= steps <= timesteps, "num_steps", steps, f"expected 1 to T = {timesteps}")
        require(0 <= self.eta <= 1, "eta", self.eta, "expected 0 to 1")
        require(self.eta == 0 or self.sampler == "ddim", "eta", self.eta, f"{self.sampler} has none, ddim has")
