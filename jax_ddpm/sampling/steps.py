"""Steps of the reverse process: from x_t and the network's prediction to the state at the next lower timestep.

`tables` are those of the timesteps that the sampler visits (`schedules.make_tables(..., chain=chain)`). t is one
integer for the whole batch. If the network also predicts a variance, only `ancestral_step` uses it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_ddpm import diffusion
from jax_ddpm.arrays import Array
from jax_ddpm.diffusion import extract
from jax_ddpm.schedules import Tables
from jax_ddpm.spec.data_range import USUAL, from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import HEUN_MAX_SIGMA, DiffusionConfig, SamplerConfig
from jax_ddpm.spec.registered import NoiseLevel, OwnSampler

Images = Float[Array, "b h w c"]
Prediction = Float[Array, "b h w p"]  # p = c, or 2 c if the network also predicts a variance
History = tuple[Images, Float[Array, "b 1 1 1"]]


def threshold(
    x_0: Images,
    clip: str,
    clip_percentile: float,
    clip_range: float = 1.0,
    clip_max: float | None = None,
    data_range: tuple[float, float] = USUAL,
) -> Images:
    """Limit a predicted x_0 by the method `clip`. "state" and "none" return it unchanged.

    "x0" clips to [-clip_range, clip_range]. "dynamic" clips each image to [-s, s] and divides by s: Saharia et al.
    2022, section 2.3. s is the quantile `clip_percentile` (such as 0.995) of the image's absolute values, at least 1
    and at most clip_max. These are limits in [-1, 1]: an x_0 in another data_range is limited there and mapped back.
    """
    if data_range != USUAL and clip in ("x0", "dynamic"):
        limited = threshold(from_data_range(x_0, data_range), clip, clip_percentile, clip_range, clip_max)
        return to_data_range(limited, data_range)
    if clip == "x0":
        return jnp.clip(x_0, -clip_range, clip_range)
    if clip != "dynamic":
        return x_0
    s = jnp.quantile(jnp.abs(x_0), clip_percentile, axis=(1, 2, 3), keepdims=True)
    s = jnp.clip(s, 1, clip_max).astype(x_0.dtype)
    return jnp.clip(x_0, -s, s) / s


def clipped_x_0(tables: Tables, config: DiffusionConfig, x_t: Images, prediction: Prediction, t: Array) -> Images:
    """The predicted x_0, limited by `threshold`."""
    ts = jnp.full((x_t.shape[0],), t)
    prediction, _ = diffusion.split_prediction(prediction, x_t)
    x_0 = diffusion.predicted_x_0(tables, config.objective, x_t, ts, prediction)
    return limited(config, x_0)


def limited(config: DiffusionConfig, x_0: Images) -> Images:
    """x_0, limited by `threshold` as the settings say."""
    return threshold(x_0, config.clip, config.clip_percentile, config.clip_range, config.clip_max, config.data_range)


def clamp_state(x: Images, config: DiffusionConfig) -> Images:
    if config.clip != "state":
        return x
    return to_data_range(jnp.clip(from_data_range(x, config.data_range), -1, 1), config.data_range)


def ancestral_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images,
    *,
    gradient: Callable | None = None,
) -> Images:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. The last step adds no noise.

    config.variance: "beta" (sigma_t^2 = beta_t) or "posterior" (beta~_t), both of section 3.2, or "learned_range":
    predicted by the network. config.clip: "x0" and "dynamic" limit the predicted x_0 (`threshold`). "state" clamps the
    new state to [-1, 1]. "none" does neither. The mean is that of the posterior. From an unlimited eps it is computed
    by eq. 11, which divides by sqrt(alpha_t), 0 at zero terminal SNR.

    gradient: with classifier guidance, (x_t, t) -> s times the gradient of log p(y | x_t). It shifts the mean, after
    any limit: Dhariwal & Nichol 2021, Algorithm 1.
    """
    ts = jnp.full((x_t.shape[0],), t)
    if config.clip in ("x0", "dynamic") or config.objective != "eps":
        x_0 = clipped_x_0(tables, config, x_t, prediction, t)
        mean, _ = diffusion.posterior(tables, x_0, x_t, ts)  # eq. 7
    else:
        eps, _ = diffusion.split_prediction(prediction, x_t)
        factor = extract(tables.betas, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / jnp.sqrt(extract(tables.alphas, ts))  # eq. 11
    posterior_variance = extract(tables.posterior_variance, ts)
    if config.variance == "learned_range":
        v = diffusion.split_prediction(prediction, x_t)[1]
        sigma = jnp.exp(0.5 * diffusion.learned_log_variance(tables, ts, v))
    else:
        sigma = jnp.sqrt(extract(tables.betas, ts) if config.variance == "beta" else posterior_variance)
    if gradient is not None:
        mean = mean + sigma**2 * gradient(x_t, ts)
    x = mean + jnp.where(posterior_variance > 0, sigma, 0) * noise
    return clamp_state(x, config)


def ddim_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    *,
    eta: float = 0.0,
) -> Images:
    """DDIM, Song et al. 2021, eq. 12. eta: 0 is deterministic, 1 adds the noise of the posterior (eq. 16).

    eps is computed again from the thresholded x_0, so that both are consistent with x_t.
    """
    ts = jnp.full((x_t.shape[0],), t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    sigma = eta * jnp.sqrt(extract(tables.posterior_variance, ts))  # eq. 16
    noise_level = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    direction = jnp.sqrt(jnp.maximum(noise_level**2 - sigma**2, 0)) * eps  # to x_t
    x = extract(tables.sqrt_alpha_bars_prev, ts) * x_0 + direction
    return clamp_state(x if eta == 0 else x + sigma * noise, config)


def own_step(
    tables: Tables,
    config: DiffusionConfig,
    sampler: OwnSampler,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
) -> Images:
    """The step of a registered sampler. eps is computed from the thresholded x_0, as in `ddim_step`."""
    ts = jnp.full((x_t.shape[0],), t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    roots = tables.sqrt_alpha_bars_prev, tables.sqrt_one_minus_alpha_bars_prev
    below = NoiseLevel(*(extract(root, ts) for root in roots))
    arguments = x_t, x_0, eps, diffusion.noise_level(tables, ts), below
    x = sampler.step(*arguments, noise=noise) if sampler.takes_noise else sampler.step(*arguments)
    return clamp_state(x, config)


def ddim_inverse_step(tables: Tables, x: Images, eps: Images, t: Array, noise: None) -> Images:
    """Inverse of `ddim_step` with eta = 0: from the next lower timestep up to t. eps: predicted at the lower timestep.

    One Euler step of the ODE of Song et al. 2021, section 4.3, eq. 14. For the lowest t, x is the clean image.
    """
    return diffusion.q_sample(tables, x_0_below(tables, x, eps, t), jnp.full((x.shape[0],), t), eps)


def x_0_below(tables: Tables, x: Images, eps: Images, t: Array) -> Images:
    """The x_0 that eps means for a state at the next timestep below t: Ho et al. 2020, eq. 15."""
    ts = jnp.full((x.shape[0],), t)
    noise_level = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    return (x - noise_level * eps) / extract(tables.sqrt_alpha_bars_prev, ts)


def dpmpp_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    history: History,
) -> tuple[Images, History]:
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2. Returns x and the history for the next step.

    history: x_0 and lambda of the previous step. The first and the last step are of first order.
    """
    ts = jnp.full((x_t.shape[0],), t)
    x_0 = clipped_x_0(tables, config, x_t, prediction, t)
    x_0_prev, lambda_prev = history
    lambda_t = extract(tables.half_log_snr, ts)
    h = extract(tables.half_log_snr_prev, ts) - lambda_t
    h_prev = lambda_t - lambda_prev
    extrapolation = jnp.where(jnp.isinf(h), 0, h / (2 * h_prev))  # 1 / (2 r_i), 0 in the first and the last step
    D = x_0 + extrapolation * (x_0 - x_0_prev)  # D_i
    ratio = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
    x = ratio * x_t - extract(tables.sqrt_alpha_bars_prev, ts) * jnp.expm1(-h) * D
    return clamp_state(x, config), (x_0, lambda_t)


def first_history(x_T: Images) -> History:
    """Initial history of `dpmpp_step`: lambda = -inf, which makes the first step one of first order."""
    return jnp.zeros_like(x_T), jnp.full_like(x_T[:, :1, :1, :1], -jnp.inf)


def initial_history(x_T: Images, sampler: SamplerConfig, self_condition: bool) -> tuple | None:
    """Initial history of the sampler's step, in which the last predicted x_0 comes first. None: the step has none.

    self_condition: whether the network is given that x_0. Before the first step it is 0.
    """
    if sampler.sampler == "dpmpp":
        return first_history(x_T)
    return (jnp.zeros_like(x_T),) if self_condition else None


def remembering_x_0(step: Callable, predicted_x_0: Callable) -> Callable:
    """A step without memory as one whose history is the x_0 that it predicts: predicted_x_0(x, prediction, t)."""

    def with_history(x, prediction, t, noise, history):
        return step(x, prediction, t, noise), (predicted_x_0(x, prediction, t),)

    return with_history


def edm_step(
    tables: Tables,
    config: DiffusionConfig,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    history: tuple[Images] | None = None,
    *,
    predict: Callable | None = None,
    next_timesteps: Int[np.ndarray, "t"] | None = None,
) -> Images | tuple[Images, tuple[Images]]:
    """Karras et al. 2022, Algorithm 1, with a DDPM network (table 1, column VP).

    The solver's variable is x_t / sqrt(alpha_bar), whose noise has the standard deviation sigma. Without `predict` this
    is Euler's method, which is DDIM with eta = 0 in other variables. With it, Heun's method: predict(x, t) is called a
    second time, at next_timesteps[t] (of `spec.spacing.next_timesteps`). The last step, to sigma = 0, is Euler's. So is
    a step from sigma above `HEUN_MAX_SIGMA`, such as the first one of the schedule "cosine": there a step of
    thousands multiplies the small difference of the two slopes.

    history: (x_0,) if the network has self-conditioning. The second prediction is given the first D. The last D is
    then returned as the history for the next step.
    """
    ts = jnp.full((x_t.shape[0],), t)
    scale, scale_next = extract(tables.sqrt_alpha_bars, ts), extract(tables.sqrt_alpha_bars_prev, ts)
    noise_level = extract(tables.sqrt_one_minus_alpha_bars, ts)
    sigma_next = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / scale_next
    D = clipped_x_0(tables, config, x_t, prediction, t)
    d = (x_t - scale * D) / noise_level  # line 4, multiplied by scale above and below: (x - D) / sigma
    x_next = D + sigma_next * d  # line 5: x + (sigma_next - sigma) d, where x = D + sigma d

    def corrected():
        t_next = jnp.asarray(next_timesteps)[t]
        given = {} if history is None else {"x_self_cond": D}
        prediction = predict(x_next * scale_next, jnp.full((x_t.shape[0],), t_next), **given)
        D_next = clipped_x_0(tables, config, x_next * scale_next, prediction, t_next)
        d_next = (x_next - D_next) / sigma_next  # line 7
        sigma = noise_level / scale
        return x_t / scale + (sigma_next - sigma) * (d + d_next) / 2, D_next  # line 8

    if predict is not None:
        is_inner = (jnp.asarray(next_timesteps)[t] >= 0) & (jnp.asarray(tables.sqrt_alpha_bars)[t] > 1 / HEUN_MAX_SIGMA)
        x_next, D = jax.lax.cond(is_inner, corrected, lambda: (x_next, D))
    x = clamp_state(x_next * scale_next, config)
    return x if history is None else (x, (D,))
