"""The steps of the reverse process: from x_t and what the network says of it to x at the chain's next timestep below.

`tables` are those of the chain (`schedules.make_tables(..., chain=chain)`); t is one integer for the batch. The
settings are those of DiffusionConfig. Where a network predicts a variance too, only `ancestral_step` uses it.
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

Images = Float[Array, "b h w c"]
Prediction = Float[Array, "b h w p"]  # p = c, or 2 c with a variance
History = tuple[Images, Float[Array, "b 1 1 1"]]


def threshold(x_0: Images, clip: str, clip_percentile: float) -> Images:
    """A predicted x_0 within [-1, 1] as `clip` has it; "state" and "none" leave it.

    "x0" clips. "dynamic" clips each image to [-s, s] and divides by s, s >= 1 being that percentile (a share, such as
    0.995) of its absolute values: Saharia et al. 2022, section 2.3.
    """
    if clip == "x0":
        return jnp.clip(x_0, -1, 1)
    if clip != "dynamic":
        return x_0
    s = jnp.quantile(jnp.abs(x_0), clip_percentile, axis=(1, 2, 3), keepdims=True)
    s = jnp.maximum(s, 1).astype(x_0.dtype)
    return jnp.clip(x_0, -s, s) / s


def clipped_x_0(
    tables: Tables, x_t: Images, prediction: Prediction, t: Array, objective: str, clip: str, clip_percentile: float
) -> Images:
    """The predicted x_0, thresholded."""
    ts = jnp.full((x_t.shape[0],), t)
    prediction, _ = diffusion.split_prediction(prediction, x_t)
    return threshold(diffusion.predicted_x_0(tables, objective, x_t, ts, prediction), clip, clip_percentile)


def clamp_state(x: Images, clip: str) -> Images:
    return jnp.clip(x, -1, 1) if clip == "state" else x


def ancestral_step(
    tables: Tables,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images,
    *,
    objective: str = "eps",
    variance: str = "beta",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Images:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. The chain's last step draws no noise.

    variance: "beta" (sigma_t^2 = beta_t) or "posterior" (beta~_t), section 3.2; "learned_range" takes the network's.
    clip: "x0" clips the predicted x_0 to [-1, 1] and takes the posterior mean, "dynamic" does so after dynamic
    thresholding; "state" clamps the new x to [-1, 1]; "none" does neither.
    """
    ts = jnp.full((x_t.shape[0],), t)
    if clip in ("x0", "dynamic"):
        x_0 = clipped_x_0(tables, x_t, prediction, t, objective, clip, clip_percentile)
        mean, _ = diffusion.posterior(tables, x_0, x_t, ts)  # eq. 7
    else:
        eps = diffusion.predicted_eps(tables, objective, x_t, ts, diffusion.split_prediction(prediction, x_t)[0])
        factor = extract(tables.betas, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / jnp.sqrt(extract(tables.alphas, ts))  # eq. 11
    posterior_variance = extract(tables.posterior_variance, ts)
    if variance == "learned_range":
        v = diffusion.split_prediction(prediction, x_t)[1]
        sigma = jnp.exp(0.5 * diffusion.learned_log_variance(tables, ts, v))
    else:
        sigma = jnp.sqrt(extract(tables.betas, ts) if variance == "beta" else posterior_variance)
    x = mean + jnp.where(posterior_variance > 0, sigma, 0) * noise
    return clamp_state(x, clip)


def ddim_step(
    tables: Tables,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    *,
    eta: float = 0.0,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Images:
    """Song et al. 2021, eq. 12. eta: 0 is deterministic, 1 has the noise of the posterior (eq. 16).

    The direction to x_t is computed from the thresholded x_0, so that both tell the same of x_t.
    """
    ts = jnp.full((x_t.shape[0],), t)
    x_0 = clipped_x_0(tables, x_t, prediction, t, objective, clip, clip_percentile)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    sigma = eta * jnp.sqrt(extract(tables.posterior_variance, ts))  # eq. 16
    rest = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    direction = jnp.sqrt(jnp.maximum(rest**2 - sigma**2, 0)) * eps
    x = extract(tables.sqrt_alpha_bars_prev, ts) * x_0 + direction
    return clamp_state(x if eta == 0 else x + sigma * noise, clip)


def ddim_inverse_step(tables: Tables, x: Images, eps: Images, t: Array, noise: None) -> Images:
    """`ddim_step` with eta = 0 the other way: up to t from the chain's next timestep below it, where eps was predicted.

    Euler's step along the ODE of Song et al. 2021, section 4.3, eq. 14. Below the chain's last timestep is the image.
    """
    ts = jnp.full((x.shape[0],), t)
    rest = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    x_0 = (x - rest * eps) / extract(tables.sqrt_alpha_bars_prev, ts)
    return diffusion.q_sample(tables, x_0, ts, eps)


def dpmpp_step(
    tables: Tables,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    history: History,
    *,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> tuple[Images, History]:
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2; and the history for the next step.

    history: x_0 and lambda of the step before. The first and the last step are of first order.
    """
    ts = jnp.full((x_t.shape[0],), t)
    x_0 = clipped_x_0(tables, x_t, prediction, t, objective, clip, clip_percentile)
    x_0_before, lambda_before = history
    lambda_t = extract(tables.half_log_snr, ts)
    h = extract(tables.half_log_snr_prev, ts) - lambda_t
    h_before = lambda_t - lambda_before
    extrapolation = jnp.where(jnp.isinf(h), 0, h / (2 * h_before))  # 1 / (2 r_i), 0 at the ends
    D = x_0 + extrapolation * (x_0 - x_0_before)  # D_i
    ratio = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
    x = ratio * x_t - extract(tables.sqrt_alpha_bars_prev, ts) * jnp.expm1(-h) * D
    return clamp_state(x, clip), (x_0, lambda_t)


def first_history(x_T: Images) -> History:
    """Before the first step of `dpmpp_step`: infinitely far away, so that it counts for nothing."""
    return jnp.zeros_like(x_T), jnp.full_like(x_T[:, :1, :1, :1], -jnp.inf)


def edm_step(
    tables: Tables,
    x_t: Images,
    prediction: Prediction,
    t: Array,
    noise: Images | None,
    *,
    predict: Callable | None = None,
    next_timesteps: Int[np.ndarray, "t"] | None = None,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Images:
    """Karras et al. 2022, Algorithm 1, over a DDPM network (table 1, the preconditioning of VP).

    The solver's variable is x_t / sqrt(alpha_bar), whose noise has the standard deviation sigma. Without `predict`
    Euler's method, which is DDIM with eta = 0 in other variables. With it Heun's: predict(x, t) is called a second
    time, at next_timesteps[t] (`spacing.next_timesteps`). The last step, to sigma = 0, stays Euler's.
    """
    settings = (objective, clip, clip_percentile)
    ts = jnp.full((x_t.shape[0],), t)
    scale, scale_next = (
        extract(tables.sqrt_alpha_bars, ts),
        extract(tables.sqrt_alpha_bars_prev, ts),
    )
    sigma = extract(tables.sqrt_one_minus_alpha_bars, ts) / scale
    sigma_next = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / scale_next
    x = x_t / scale
    d = (x - clipped_x_0(tables, x_t, prediction, t, *settings)) / sigma  # line 4
    x_next = x + (sigma_next - sigma) * d  # line 5

    def corrected():
        t_next = jnp.asarray(next_timesteps)[t]
        prediction = predict(x_next * scale_next, jnp.full((x_t.shape[0],), t_next))
        D = clipped_x_0(tables, x_next * scale_next, prediction, t_next, *settings)
        d_next = (x_next - D) / sigma_next  # line 7
        return x + (sigma_next - sigma) * (d + d_next) / 2  # line 8

    if predict is not None:
        x_next = jax.lax.cond(jnp.asarray(next_timesteps)[t] >= 0, corrected, lambda: x_next)
    return clamp_state(x_next * scale_next, clip)
