"""Settings of the diffusion and of the samplers."""

import math
from dataclasses import dataclass
from typing import get_args

from jax_ddpm.spec.check_types import check_types
from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.errors import UserError, require, require_one_of
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.registered import (
    OBJECTIVES,
    SAMPLERS,
    SCHEDULES,
    ObjectiveName,
    SamplerName,
    ScheduleName,
    require_known,
)
from jax_ddpm.spec.types import (
    Clip,
    FlowTime,
    Objective,
    Sampler,
    Schedule,
    Spacing,
    TimeInput,
    Variance,
)

CONTINUOUS = ("edm", "flow")  # objectives whose noise level is a number, not one of T timesteps
SOLVERS = ("heun", "euler", "midpoint")  # samplers of these objectives
HEUN_MAX_SIGMA = 1000  # of the sampler heun with timesteps; above it, steps are Euler's
CONTINUOUS_STEPS = 32  # their steps from noise to image, unless num_steps is set


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the diffusion: its schedule, what the network predicts, and how sampling uses the prediction."""

    __pydantic_config__ = STRICT

    timesteps: int = 1000
    """T, the number of timesteps."""
    schedule: ScheduleName = "linear"
    """Noise schedule: linear (Ho et al. 2020), scaled_linear (linear in sqrt(beta); Rombach et al. 2022), cosine
    (Nichol & Dhariwal 2021), sigmoid (Jabri et al. 2022), sigmoid_betas (Xu et al. 2022), trained (trained_betas), or a
    registered one."""
    beta_start: float = 1e-4
    """beta_1 of linear and scaled_linear; the lower limit of sigmoid_betas."""
    beta_end: float = 0.02
    """beta_T of linear and scaled_linear; the upper limit of sigmoid_betas."""
    objective: ObjectiveName = "eps"
    """What the network predicts: the noise (eps), the clean image (x0) or v (Salimans & Ho 2022), or what a
    registered one does, at T timesteps. Or, at any noise level: edm (Karras et al. 2022), or flow (noise - x_0 on a
    straight path; Liu et al. 2023)."""
    variance: Variance = "beta"
    """Variance of a ddpm step: beta_t, the posterior's, or predicted (learned_range; Nichol & Dhariwal 2021)."""
    clip: Clip = "x0"
    """Limit to the images' range. x0: clip the predicted x_0. dynamic: threshold it. state: clip every x_t. none: no
    limit."""
    clip_percentile: float = 0.995
    """For dynamic thresholding (Saharia et al. 2022): the fraction of an image's values that is not clipped."""
    trained_betas: tuple[float, ...] | None = None
    """The T betas of the schedule trained."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that x_T is pure noise (Lin et al. 2023, Algorithm 1). Needs objective v or x0."""
    clip_range: float = 1.0
    """For clip x0: clip to [-clip_range, clip_range], where 1 is the limit of the images' range."""
    clip_max: float | None = None
    """For dynamic thresholding: the largest threshold. Default: no limit."""
    sigma_min: float = 0.002
    """For edm: the smallest noise level of sampling above 0."""
    sigma_max: float = 80.0
    """For edm: the noise level at which sampling starts."""
    sigma_data: float = 0.5
    """For edm: standard deviation of the data, for the scales of the network's input and output."""
    rho: float = 7.0
    """For edm: exponent of the grid of noise levels; larger ones put more steps at low noise."""
    p_mean: float = -1.2
    """For edm: mean of ln(sigma) in training."""
    p_std: float = 1.2
    """For edm: standard deviation of ln(sigma) in training."""
    flow_time: FlowTime = "logit_normal"
    """For flow: distribution of t in training, logit_normal (Esser et al. 2024; mean 0, deviation 1) or uniform."""
    data_range: tuple[float, float] = USUAL
    """The values of black and white in the images that the network sees. Most networks have -1 and 1, some 0 and 1."""
    t_input: TimeInput = "index"
    """What the network receives for timestep t of 0 to T - 1: t (index), t + 1 (from_one), t / T (fraction) or
    (t + 1) / T (fraction_from_one)."""

    @property
    def is_continuous(self) -> bool:
        """Whether the noise level is a number (edm, flow), and not one of T timesteps."""
        return self.objective in CONTINUOUS

    @property
    def initial_sigma(self) -> float:
        """The standard deviation of x_T: sigma_max for edm, else 1."""
        return self.sigma_max if self.objective == "edm" else 1.0

    def check(self) -> None:
        """Raise UserError that names the first wrong field."""
        check_types(self)
        check_schedule(
            *(self.schedule, self.timesteps, self.beta_start, self.beta_end, self.trained_betas, self.zero_terminal_snr)
        )
        require_known("objective", self.objective, Objective, OBJECTIVES)
        for name, choices in (("variance", Variance), ("clip", Clip)):
            require_one_of(name, getattr(self, name), choices)
        require(
            0 < self.clip_percentile <= 1, "clip_percentile", self.clip_percentile, "expected more than 0, at most 1"
        )
        require(self.clip_range > 0, "clip_range", self.clip_range, "expected more than 0")
        require(self.clip_max is None or self.clip_max >= 1, "clip_max", self.clip_max, "expected at least 1")
        require_one_of("flow_time", self.flow_time, FlowTime)
        levels, expected = (self.sigma_min, self.sigma_max), "expected 0 < sigma_min < sigma_max, such as 0.002 and 80"
        require(0 < self.sigma_min < self.sigma_max < math.inf, "sigma_min, sigma_max", levels, expected)
        for name in ("sigma_data", "rho", "p_std"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "expected more than 0")
        require(math.isfinite(self.p_mean), "p_mean", self.p_mean, "expected a number")
        (low, high), expected = self.data_range, "expected two numbers, the smaller one first, such as 0 and 1"
        require(-math.inf < low < high < math.inf, "data_range", self.data_range, expected)
        require_one_of("t_input", self.t_input, TimeInput)
        if self.is_continuous:
            expected = f"the objective {self.objective} has a time of its own; leave it out"
            require(self.t_input == "index", "t_input", self.t_input, expected)
            expected = f"the objective {self.objective} has no timesteps, whose variance could be predicted"
            require(self.variance != "learned_range", "variance", self.variance, f"{expected}; leave it out")
            expected = f"the states of the objective {self.objective} leave [-1, 1]; expected x0 (--clip x0)"
            require(self.clip != "state", "clip", self.clip, expected)

    def check_training(self) -> None:
        """Raise UserError for the objective eps with a schedule that ends in pure noise."""
        ends_in_noise = self.zero_terminal_snr or (self.trained_betas is not None and self.trained_betas[-1] == 1)
        require(not (ends_in_noise and self.objective == "eps"), "objective", self.objective, NO_SIGNAL)


NO_SIGNAL = "at zero terminal SNR, x_0 cannot be computed from the noise in x_T; expected v or x0 (--objective v)"


def check_schedule(
    schedule: str,
    timesteps: int,
    beta_start: float,
    beta_end: float,
    trained_betas: tuple[float, ...] | None = None,
    zero_terminal_snr: bool = False,
) -> None:
    """Raise UserError for a wrong setting of the noise schedule."""
    require(timesteps >= 1, "timesteps", timesteps, "expected at least 1")
    betas, expected = (beta_start, beta_end), "expected 0 < beta_start <= beta_end < 1, such as 1e-4 and 0.02"
    require(0 < beta_start <= beta_end < 1, "beta_start, beta_end", betas, expected)
    require_known("schedule", schedule, Schedule, SCHEDULES)
    if schedule == "trained":
        count = len(trained_betas or ())
        require(count == timesteps, "number of trained_betas", count, f"expected T = {timesteps}")
        inside = all(0 < beta < 1 for beta in trained_betas[:-1]) and 0 < trained_betas[-1] <= 1
        expected = "expected numbers between 0 and 1, of which only the last may be 1"
        require(inside, "trained_betas", f"{min(trained_betas):g} to {max(trained_betas):g}", expected)
    else:
        require(trained_betas is None, "schedule", schedule, "expected trained, since trained_betas are given")
    require(not zero_terminal_snr or timesteps >= 2, "timesteps", timesteps, "zero_terminal_snr needs at least 2")


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler."""

    __pydantic_config__ = STRICT

    sampler: SamplerName = "ddpm"
    """ddpm (ancestral), ddim (Song et al. 2021), dpmpp (DPM-Solver++ 2M; Lu et al. 2022), heun or euler (EDM), or
    a registered one. The objectives edm and flow have heun, euler and midpoint."""
    num_steps: int | None = None
    """Steps from noise to image, from 1 to T. Default: T; 32 for the objectives edm and flow."""
    spacing: Spacing = "trailing"
    """How num_steps < T timesteps are chosen: evenly in t (linspace, leading, trailing) or in log SNR (logsnr)."""
    eta: float = 0.0
    """For ddim: the noise per step, from 0 (none) to 1 (that of the posterior)."""
    guidance: float = 1.0
    """Weight w of guidance: no label + w (label - no label); Ho & Salimans 2022. 1: none. More: closer to the label."""
    guidance_rescale: float = 0.0
    """Give guided predictions the standard deviation of those without, from 0 (no) to 1 (yes); Lin et al. 2023."""
    guidance_interval: tuple[int, int] | None = None
    """First and last timestep to guide, both inclusive (Kynkaanniemi et al. 2024). Default: all timesteps."""

    @property
    def is_deterministic(self) -> bool:
        """Whether x_T alone decides the image."""
        if self.sampler in SAMPLERS:
            return not SAMPLERS[self.sampler].takes_noise
        return self.sampler != "ddpm" and self.eta == 0

    def check(self, timesteps: int) -> None:
        """Raise UserError that names the first wrong field. timesteps: T."""
        check_types(self)
        require_known("sampler", self.sampler, Sampler, SAMPLERS)
        require_one_of("spacing", self.spacing, Spacing)
        steps = self.num_steps
        require(steps is None or 1 <= steps <= timesteps, "num_steps", steps, f"expected 1 to T = {timesteps}")
        require(0 <= self.eta <= 1, "eta", self.eta, "expected 0 to 1")
        require(self.eta == 0 or self.sampler == "ddim", "eta", self.eta, f"only ddim has eta, not {self.sampler}")
        require(math.isfinite(self.guidance), "guidance", self.guidance, "expected a finite number")
        require(0 <= self.guidance_rescale <= 1, "guidance_rescale", self.guidance_rescale, "expected 0 to 1")
        if self.guidance_interval is not None:
            first, last = self.guidance_interval
            expected = f"expected first <= last, both from 0 to T - 1 = {timesteps - 1}"
            require(0 <= first <= last < timesteps, "guidance_interval", f"{first} {last}", expected)


def check_sampler(sampler: SamplerConfig, diffusion: DiffusionConfig) -> None:
    """Raise UserError for a sampler with a wrong field, or one that does not fit the objective."""
    objective, name = diffusion.objective, sampler.sampler
    if not diffusion.is_continuous:
        expected = f"the objective {objective} has ddpm, ddim, dpmpp, heun and euler; heun is of second order, too"
        require(name != "midpoint", "sampler", name, f"{expected} (--sampler heun)")
        sampler.check(diffusion.timesteps)
        return
    require_known("sampler", name, Sampler, SAMPLERS)
    expected = f"the objective {objective} has no timesteps; expected heun, euler or midpoint (--sampler heun)"
    require(name in SOLVERS, "sampler", name, expected)
    sampler.check(max(diffusion.timesteps, sampler.num_steps or 1))
    steps = f"the steps of the objective {objective} are set by {'rho' if objective == 'edm' else 'num_steps'}"
    require(sampler.spacing == SamplerConfig.spacing, "spacing", sampler.spacing, f"{steps}; leave it out")
    interval, expected = sampler.guidance_interval, f"is in timesteps, which the objective {objective} does not have"
    require(interval is None, "guidance_interval", interval, f"it {expected}; leave it out")


def default_sampler(diffusion: DiffusionConfig) -> SamplerConfig:
    """The sampler of a model unless the user names one: ddpm with T steps; for edm and flow, heun with 32 steps."""
    return SamplerConfig("heun") if diffusion.is_continuous else SamplerConfig()


def about_sampler(sampler: SamplerConfig, diffusion: DiffusionConfig) -> str:
    """A sentence on the sampler of a model with the objective edm or flow, and what changes it."""
    steps, others = sampler.num_steps or CONTINUOUS_STEPS, ", ".join(SOLVERS)
    return f"Pictures: sampler {sampler.sampler}, {steps} steps. --sampler ({others}) and --num-steps change that."


def require_timesteps(diffusion: DiffusionConfig, what: str) -> None:
    """Raise UserError for the objectives edm and flow. what: the function that needs timesteps, as a subject."""
    if diffusion.is_continuous:
        discrete = ", ".join(name for name in get_args(Objective) if name not in CONTINUOUS)
        raise UserError(
            f"objective = {diffusion.objective}: {what} needs the T timesteps of a noise schedule, which this "
            f"objective does not have.\nUse a model with one of the objectives {discrete}."
        )
