"""Steps of the reverse process: from x_t and the network's prediction to the state at the next lower timestep.

`tables` are those of the timesteps that the sampler visits (`schedules.make_tables(..., chain=chain)`). t is one
integer for the whole batch, or a tensor (B,) that repeats it, which an exported step needs.
If the network also predicts a variance, only `ancestral_step` uses it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.data_range import USUAL, from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import HEUN_MAX_SIGMA, DiffusionConfig, SamplerConfig
from jax_ddpm.spec.registered import NoiseLevel, OwnSampler
from torch_ref import diffusion
from torch_ref.diffusion import extract
from torch_ref.schedules import Tables

History = tuple[Tensor, Tensor]


def of_images(x: Tensor, t: int | Tensor) -> Tensor:
    """t for each image of x: integers (B,)."""
    return t if isinstance(t, Tensor) else torch.full((x.shape[0],), int(t), device=x.device)


def where(
    condition: bool | Tensor, compute: Callable[[], tuple[Tensor, ...]], otherwise: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """compute() where the condition holds, else the other: `lax.cond`. A tensor (in an exported step) computes both."""
    if isinstance(condition, Tensor):
        pairs = zip(compute(), otherwise, strict=True)
        return tuple(torch.where(condition.reshape(-1, 1, 1, 1), *pair) for pair in pairs)
    return compute() if condition else otherwise


def threshold(
    x_0: Tensor,
    clip: str,
    clip_percentile: float,
    clip_range: float = 1.0,
    clip_max: float | None = None,
    data_range: tuple[float, float] = USUAL,
) -> Tensor:
    """Limit a predicted x_0 by the method `clip`; "dynamic": Saharia et al. 2022, section 2.3, s at most clip_max."""
    if data_range != USUAL and clip in ("x0", "dynamic"):
        limited = threshold(from_data_range(x_0, data_range), clip, clip_percentile, clip_range, clip_max)
        return to_data_range(limited, data_range)
    if clip == "x0":
        return torch.clamp(x_0, -clip_range, clip_range)
    if clip != "dynamic":
        return x_0
    s = torch.quantile(x_0.abs().flatten(1), clip_percentile, dim=1).reshape(-1, 1, 1, 1)
    s = torch.clamp(s, min=1, max=clip_max)
    return torch.clamp(x_0, -s, s) / s


def clipped_x_0(tables: Tables, config: DiffusionConfig, x_t: Tensor, prediction: Tensor, t: int) -> Tensor:
    """The predicted x_0, limited by `threshold`."""
    ts = of_images(x_t, t)
    prediction, _ = diffusion.split_prediction(prediction, x_t)
    x_0 = diffusion.predicted_x_0(tables, config.objective, x_t, ts, prediction)
    return limited(config, x_0)


def limited(config: DiffusionConfig, x_0: Tensor) -> Tensor:
    """x_0, limited by `threshold` as the settings say."""
    return threshold(x_0, config.clip, config.clip_percentile, config.clip_range, config.clip_max, config.data_range)


def clamp_state(x: Tensor, config: DiffusionConfig) -> Tensor:
    if config.clip != "state":
        return x
    return to_data_range(torch.clamp(from_data_range(x, config.data_range), -1, 1), config.data_range)


def ancestral_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor,
    *,
    gradient: Callable | None = None,
) -> Tensor:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. The last step adds no noise.

    The mean is that of the posterior. From an eps without limit it is eq. 11, which divides by sqrt(alpha_t).
    gradient: with classifier guidance, what shifts the mean after any limit: Dhariwal & Nichol 2021, Algorithm 1.
    """
    ts = of_images(x_t, t)
    if config.clip in ("x0", "dynamic") or config.objective != "eps":
        x_0 = clipped_x_0(tables, config, x_t, prediction, t)
        mean, _ = diffusion.posterior(tables, x_0, x_t, ts)  # eq. 7
    else:
        eps, _ = diffusion.split_prediction(prediction, x_t)
        factor = extract(tables.betas, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / torch.sqrt(extract(tables.alphas, ts))  # eq. 11
    posterior_variance = extract(tables.posterior_variance, ts)
    if config.variance == "learned_range":
        v = diffusion.split_prediction(prediction, x_t)[1]
        sigma = torch.exp(0.5 * diffusion.learned_log_variance(tables, ts, v))
    else:
        sigma = torch.sqrt(extract(tables.betas, ts) if config.variance == "beta" else posterior_variance)
    if gradient is not None:
        mean = mean + sigma**2 * gradient(x_t, ts)
    x = mean + torch.where(posterior_variance > 0, sigma, 0) * noise
    return clamp_state(x, config)


def ddim_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """DDIM, Song et al. 2021, eq. 12. eta: 0 is deterministic, 1 adds the noise of the posterior (eq. 16).

    eps is computed again from the thresholded x_0, so that both are consistent with x_t.
    """
    ts = of_images(x_t, t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    sigma = eta * torch.sqrt(extract(tables.posterior_variance, ts))  # eq. 16
    noise_level = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    direction = torch.sqrt(torch.clamp(noise_level**2 - sigma**2, min=0)) * eps  # to x_t
    x = extract(tables.sqrt_alpha_bars_prev, ts) * x_0 + direction
    return clamp_state(x if eta == 0 else x + sigma * noise, config)


def own_step(
    tables: Tables,
    config: DiffusionConfig,
    sampler: OwnSampler,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
) -> Tensor:
    """The step of a registered sampler. eps is computed from the thresholded x_0, as in `ddim_step`."""
    ts = of_images(x_t, t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    roots = tables.sqrt_alpha_bars_prev, tables.sqrt_one_minus_alpha_bars_prev
    below = NoiseLevel(*(extract(root, ts) for root in roots))
    arguments = x_t, x_0, eps, diffusion.noise_level(tables, ts), below
    x = sampler.step(*arguments, noise=noise) if sampler.takes_noise else sampler.step(*arguments)
    return clamp_state(x, config)


def ddim_inverse_step(tables: Tables, x: Tensor, eps: Tensor, t: int, noise: None) -> Tensor:
    """Inverse of `ddim_step` with eta = 0: from the next lower timestep up to t. eps: predicted at the lower timestep.

    One Euler step of the ODE of Song et al. 2021, section 4.3, eq. 14. For the lowest t, x is the clean image.
    """
    return diffusion.q_sample(tables, x_0_below(tables, x, eps, t), of_images(x, t), eps)


def x_0_below(tables: Tables, x: Tensor, eps: Tensor, t: int) -> Tensor:
    """The x_0 that eps means for a state at the next timestep below t: Ho et al. 2020, eq. 15."""
    ts = of_images(x, t)
    noise_level = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    return (x - noise_level * eps) / extract(tables.sqrt_alpha_bars_prev, ts)


def dpmpp_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    history: History,
) -> tuple[Tensor, History]:
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2. Returns x and the history for the next step.

    history: x_0 and lambda of the previous step. The first and the last step are of first order.
    """
    ts = of_images(x_t, t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    x_0_prev, lambda_prev = history
    lambda_t = extract(tables.half_log_snr, ts)
    h = extract(tables.half_log_snr_prev, ts) - lambda_t
    h_prev = lambda_t - lambda_prev
    extrapolation = torch.where(torch.isinf(h), 0, h / (2 * h_prev))  # 1 / (2 r_i), 0 in the first and the last step
    D = x_0 + extrapolation * (x_0 - x_0_prev)  # D_i
    ratio = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
    x = ratio * x_t - extract(tables.sqrt_alpha_bars_prev, ts) * torch.expm1(-h) * D
    return clamp_state(x, config), (x_0, lambda_t)


def first_history(x_T: Tensor) -> History:
    """Initial history of `dpmpp_step`: lambda = -inf, which makes the first step one of first order."""
    return torch.zeros_like(x_T), x_T.new_full((x_T.shape[0], 1, 1, 1), -torch.inf)


def initial_history(x_T: Tensor, sampler: SamplerConfig, self_condition: bool) -> tuple | None:
    """Initial history of the sampler's step, in which the last predicted x_0 comes first. None: the step has none.

    self_condition: whether the network is given that x_0. Before the first step it is 0.
    """
    if sampler.sampler == "dpmpp":
        return first_history(x_T)
    return (torch.zeros_like(x_T),) if self_condition else None


def remembering_x_0(step: Callable, predicted_x_0: Callable) -> Callable:
    """A step without memory as one whose history is the x_0 that it predicts: predicted_x_0(x, prediction, t)."""

    def with_history(x, prediction, t, noise, history):
        return step(x, prediction, t, noise), (predicted_x_0(x, prediction, t),)

    return with_history


def edm_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    history: tuple[Tensor] | None = None,
    *,
    predict: Callable | None = None,
    next_timesteps: np.ndarray | None = None,
) -> Tensor | tuple[Tensor, tuple[Tensor]]:
    """Karras et al. 2022, Algorithm 1, with a DDPM network (table 1, column VP).

    The solver's variable is x_t / sqrt(alpha_bar), whose noise has the standard deviation sigma. Euler's method, or,
    with `predict`, Heun's: predict(x, t) is called again at next_timesteps[t], except in the step to sigma = 0 and in
    one from sigma above `HEUN_MAX_SIGMA`.

    history: (x_0,) if the network has self-conditioning. The second prediction is given the first D. The last D is
    then returned as the history for the next step.
    """
    ts = of_images(x_t, t)
    scale, scale_next = extract(tables.sqrt_alpha_bars, ts), extract(tables.sqrt_alpha_bars_prev, ts)
    noise_level = extract(tables.sqrt_one_minus_alpha_bars, ts)
    sigma_next = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / scale_next
    D = clipped_x_0(tables, config, x_t, prediction, t)
    d = (x_t - scale * D) / noise_level  # line 4, multiplied by scale above and below: (x - D) / sigma
    x_next = D + sigma_next * d  # line 5: x + (sigma_next - sigma) d, where x = D + sigma d

    def corrected():
        t_next = below.clip(0)
        given = {} if history is None else {"x_self_cond": D}
        prediction = predict(x_next * scale_next, of_images(x_t, t_next), **given)
        D_next = clipped_x_0(tables, config, x_next * scale_next, prediction, t_next)
        d_next = (x_next - D_next) / sigma_next  # line 7
        sigma = noise_level / scale
        return x_t / scale + (sigma_next - sigma) * (d + d_next) / 2, D_next  # line 8

    if predict is not None:
        below = (torch.as_tensor(next_timesteps).long() if isinstance(t, Tensor) else next_timesteps)[t]
        is_inner = (below >= 0) & (tables.sqrt_alpha_bars[t] > 1 / HEUN_MAX_SIGMA)
        x_next, D = where(is_inner, corrected, (x_next, D))
    x = clamp_state(x_next * scale_next, config)
    return x if history is None else (x, (D,))
