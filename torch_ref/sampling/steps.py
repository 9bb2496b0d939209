"""The steps of the reverse process: from x_t and what the network says of it to x at the chain's next timestep below.

`tables` are those of the chain (`schedules.make_tables(..., chain=chain)`); t is one integer for the batch, or, but
for Heun's, a tensor (B,) of it, with which a step can be compiled. The settings are those of DiffusionConfig. Where a
network predicts a variance too, only `ancestral_step` uses it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torch_ref import diffusion
from torch_ref.diffusion import extract
from torch_ref.schedules import Tables

History = tuple[Tensor, Tensor]


def of_images(x: Tensor, t: int | Tensor) -> Tensor:
    """t for every image of x: integers (B,)."""
    return t if isinstance(t, Tensor) else torch.full((x.shape[0],), t, device=x.device)


def threshold(x_0: Tensor, clip: str, clip_percentile: float) -> Tensor:
    """A predicted x_0 within [-1, 1] as `clip` has it; "state" and "none" leave it.

    "x0" clips. "dynamic" clips each image to [-s, s] and divides by s, s >= 1 being that percentile (a share, such as
    0.995) of its absolute values: Saharia et al. 2022, section 2.3.
    """
    if clip == "x0":
        return torch.clamp(x_0, -1, 1)
    if clip != "dynamic":
        return x_0
    s = torch.quantile(x_0.abs().flatten(1), clip_percentile, dim=1).reshape(-1, 1, 1, 1)
    s = torch.clamp(s, min=1)
    return torch.clamp(x_0, -s, s) / s


def denoised(
    tables: Tables, x_t: Tensor, prediction: Tensor, t: int, objective: str, clip: str, clip_percentile: float
) -> Tensor:
    """The predicted x_0, thresholded."""
    ts = of_images(x_t, t)
    prediction, _ = diffusion.split_prediction(prediction, x_t)
    return threshold(diffusion.predicted_x_0(tables, objective, x_t, ts, prediction), clip, clip_percentile)


def clamp_state(x: Tensor, clip: str) -> Tensor:
    return torch.clamp(x, -1, 1) if clip == "state" else x


def ancestral_step(
    tables: Tables,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor,
    *,
    objective: str = "eps",
    variance: str = "beta",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Tensor:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. The chain's last step draws no noise.

    variance: "beta" (sigma_t^2 = beta_t) or "posterior" (beta~_t), section 3.2; "learned_range" takes the network's.
    clip: "x0" clips the predicted x_0 to [-1, 1] and takes the posterior mean, "dynamic" does so after dynamic
    thresholding; "state" clamps the new x to [-1, 1]; "none" does neither.
    """
    ts = of_images(x_t, t)
    if clip in ("x0", "dynamic"):
        x_0 = denoised(tables, x_t, prediction, t, objective, clip, clip_percentile)
        mean, _ = diffusion.posterior(tables, x_0, x_t, ts)  # eq. 7
    else:
        eps = diffusion.predicted_eps(tables, objective, x_t, ts, diffusion.split_prediction(prediction, x_t)[0])
        factor = extract(tables.betas, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / torch.sqrt(extract(tables.alphas, ts))  # eq. 11
    posterior_variance = extract(tables.posterior_variance, ts)
    if variance == "learned_range":
        v = diffusion.split_prediction(prediction, x_t)[1]
        sigma = torch.exp(0.5 * diffusion.learned_log_variance(tables, ts, v))
    else:
        sigma = torch.sqrt(extract(tables.betas, ts) if variance == "beta" else posterior_variance)
    x = mean + torch.where(posterior_variance > 0, sigma, 0) * noise
    return clamp_state(x, clip)


def ddim_step(
    tables: Tables,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    *,
    eta: float = 0.0,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Tensor:
    """Song et al. 2021, eq. 12. eta: 0 is deterministic, 1 has the noise of the posterior (eq. 16).

    The direction to x_t is computed from the thresholded x_0, so that both tell the same of x_t.
    """
    ts = of_images(x_t, t)
    x_0 = denoised(tables, x_t, prediction, t, objective, clip, clip_percentile)
    eps = diffusion.predicted_eps(tables, "x0", x_t, ts, x_0)
    sigma = eta * torch.sqrt(extract(tables.posterior_variance, ts))  # eq. 16
    rest = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    direction = torch.sqrt(torch.clamp(rest**2 - sigma**2, min=0)) * eps
    x = extract(tables.sqrt_alpha_bars_prev, ts) * x_0 + direction
    return clamp_state(x if eta == 0 else x + sigma * noise, clip)


def ddim_inverse_step(tables: Tables, x: Tensor, eps: Tensor, t: int, noise: None) -> Tensor:
    """`ddim_step` with eta = 0 the other way: up to t from the chain's next timestep below it, where eps was predicted.

    Euler's step along the ODE of Song et al. 2021, section 4.3, eq. 14. Below the chain's last timestep is the image.
    """
    ts = of_images(x, t)
    rest = extract(tables.sqrt_one_minus_alpha_bars_prev, ts)
    x_0 = (x - rest * eps) / extract(tables.sqrt_alpha_bars_prev, ts)
    return diffusion.q_sample(tables, x_0, ts, eps)


def dpmpp_step(
    tables: Tables,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    history: History,
    *,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> tuple[Tensor, History]:
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2; and the history for the next step.

    history: x_0 and lambda of the step before. The first and the last step are of first order.
    """
    ts = of_images(x_t, t)
    x_0 = denoised(tables, x_t, prediction, t, objective, clip, clip_percentile)
    x_0_before, lambda_before = history
    lambda_t = extract(tables.half_log_snr, ts)
    h = extract(tables.half_log_snr_prev, ts) - lambda_t
    h_before = lambda_t - lambda_before
    extrapolation = torch.where(torch.isinf(h), 0, h / (2 * h_before))  # 1 / (2 r_i), 0 at the ends
    D = x_0 + extrapolation * (x_0 - x_0_before)  # D_i
    ratio = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / extract(tables.sqrt_one_minus_alpha_bars, ts)
    x = ratio * x_t - extract(tables.sqrt_alpha_bars_prev, ts) * torch.expm1(-h) * D
    return clamp_state(x, clip), (x_0, lambda_t)


def first_history(x_T: Tensor) -> History:
    """Before the first step of `dpmpp_step`: infinitely far away, so that it counts for nothing."""
    return torch.zeros_like(x_T), x_T.new_full((x_T.shape[0], 1, 1, 1), -torch.inf)


def edm_step(
    tables: Tables,
    x_t: Tensor,
    prediction: Tensor,
    t: int,
    noise: Tensor | None,
    *,
    predict: Callable | None = None,
    below: np.ndarray | None = None,
    objective: str = "eps",
    clip: str = "x0",
    clip_percentile: float = 0.995,
) -> Tensor:
    """Karras et al. 2022, Algorithm 1, over a DDPM network (table 1, the preconditioning of VP).

    The solver's variable is x_t / sqrt(alpha_bar), whose noise has the standard deviation sigma. Without `predict`
    Euler's method, which is DDIM with eta = 0 in other variables. With it Heun's: predict(x, t) is called a second
    time, at the chain's next timestep below[t] (`spacing.timesteps_below`); the last step, to sigma = 0, stays Euler's.
    """
    settings = (objective, clip, clip_percentile)
    ts = of_images(x_t, t)
    scale, scale_next = (
        extract(tables.sqrt_alpha_bars, ts),
        extract(tables.sqrt_alpha_bars_prev, ts),
    )
    sigma = extract(tables.sqrt_one_minus_alpha_bars, ts) / scale
    sigma_next = extract(tables.sqrt_one_minus_alpha_bars_prev, ts) / scale_next
    x = x_t / scale
    d = (x - denoised(tables, x_t, prediction, t, *settings)) / sigma  # line 4
    x_next = x + (sigma_next - sigma) * d  # line 5

    def corrected():
        t_next = int(below[t])
        prediction = predict(x_next * scale_next, of_images(x_t, t_next))
        D = denoised(tables, x_next * scale_next, prediction, t_next, *settings)
        d_next = (x_next - D) / sigma_next  # line 7
        return x + (sigma_next - sigma) * (d + d_next) / 2  # line 8

    if predict is not None and below[t] >= 0:
        x_next = corrected()
    return clamp_state(x_next * scale_next, clip)
