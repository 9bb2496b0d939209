"""The forward process, its posterior, the three objectives with timesteps, and the loss.

`tables` are `schedules.Tables`. Tensors x are (B, C, H, W), and t are integers (B,) in [0, T), one timestep per image.
"""

import math

import torch
from torch import Tensor

from jax_ddpm.spec.data_range import USUAL, deviation_from_data_range, from_data_range
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.registered import OBJECTIVES, NoiseLevel
from torch_ref.schedules import Tables


def extract(table, t: Tensor) -> Tensor:
    """table[t] as (B, 1, 1, 1), ready to multiply images."""
    return torch.as_tensor(table, device=t.device)[t].reshape(-1, 1, 1, 1)


def noise_level(tables: Tables, t: Tensor) -> NoiseLevel:
    """The factors of x_0 and of the noise in x_t, (B, 1, 1, 1), for registered objectives and samplers."""
    return NoiseLevel(extract(tables.sqrt_alpha_bars, t), extract(tables.sqrt_one_minus_alpha_bars, t))


def q_sample(tables: Tables, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0) for the given standard normal noise: Ho et al. 2020, eq. 4."""
    return extract(tables.sqrt_alpha_bars, t) * x_0 + extract(tables.sqrt_one_minus_alpha_bars, t) * noise


def posterior(tables: Tables, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 6 and 7."""
    mean = extract(tables.posterior_mean_x_0, t) * x_0 + extract(tables.posterior_mean_x_t, t) * x_t
    return mean, extract(tables.posterior_variance, t)


def objective_target(tables: Tables, objective: str, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What the network should predict: eps, x_0, or v (Salimans & Ho 2022).

    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.
    """
    if objective == "eps":
        return noise
    if objective == "x0":
        return x_0
    if objective in OBJECTIVES:
        return OBJECTIVES[objective].target(x_0, noise, noise_level(tables, t))
    return extract(tables.sqrt_alpha_bars, t) * noise - extract(tables.sqrt_one_minus_alpha_bars, t) * x_0


def predicted_x_0(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """x_0 computed from the network's prediction. From eps: Ho et al. 2020, eq. 15."""
    if objective == "x0":
        return prediction
    if objective in OBJECTIVES:
        return OBJECTIVES[objective].predicted_x_0(x_t, prediction, noise_level(tables, t))
    signal, noise = extract(tables.sqrt_alpha_bars, t), extract(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "eps":
        return (x_t - noise * prediction) / signal
    return signal * x_t - noise * prediction


def predicted_eps(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """eps computed from the network's prediction."""
    if objective == "eps":
        return prediction
    if objective in OBJECTIVES:
        objective, prediction = "x0", predicted_x_0(tables, objective, x_t, t, prediction)
    signal, noise = extract(tables.sqrt_alpha_bars, t), extract(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "x0":
        return (x_t - signal * prediction) / noise
    return signal * prediction + noise * x_t


def split_prediction(prediction: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split the network's output into (prediction, v).

    v, the output for the learned variance, is None if the network has only c output channels instead of 2c.
    """
    channels = x_t.shape[1]
    if prediction.shape[1] == channels:
        return prediction, None
    return prediction[:, :channels], prediction[:, channels:]


def learned_log_variance(tables: Tables, t: Tensor, v: Tensor | None) -> Tensor:
    """log Sigma of each value, from log beta~_t (v = -1) to log beta_t (v = 1): Nichol & Dhariwal 2021, eq. 15."""
    if v is None:
        raise UserError(
            "variance = learned_range: the network predicts no variance (expected twice the image's channels).\n"
            "Use a network with learned_variance, or the variance beta or posterior."
        )
    fraction = (v + 1) / 2
    return fraction * torch.log(extract(tables.betas, t)) + (1 - fraction) * extract(tables.log_posterior_variance, t)


def loss_weights(tables: Tables, objective: str, t: Tensor, min_snr_gamma: float) -> Tensor:
    """Loss weights that amount to weighting the error of x_0 by min(SNR, gamma): Hang et al. 2023, section 3.4."""
    snr = torch.as_tensor(tables.snr, device=t.device)[t]
    clipped = torch.clamp(snr, max=min_snr_gamma)
    if objective in OBJECTIVES:
        return clipped * own_output_scale(tables, objective, t) ** 2
    return {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[objective]


def own_output_scale(tables: Tables, objective: str, t: Tensor) -> Tensor:
    """For a registered objective: the error of the predicted x_0 for an error of 1 of the prediction."""
    level = noise_level(tables, t)
    zero = 0 * level.signal
    x_0 = OBJECTIVES[objective].predicted_x_0
    return (x_0(zero, zero + 1, level) - x_0(zero, zero, level)).reshape(-1)


def p2_weights(snr: Tensor, p2_gamma: float, p2_k: float) -> Tensor:
    """Factors of the usual loss weights that make it learn less at low noise: Choi et al. 2022, eq. 8. snr: (B,)."""
    return (p2_k + snr) ** -p2_gamma


def pixel_loss(error: Tensor, loss_kind: str, huber_delta: float) -> Tensor:
    """The loss of each value: error^2 (l2), |error| (l1), or Huber's.

    Huber's is e^2 / (2 delta) for |e| < delta, and |e| - delta / 2 beyond: `torch.nn.functional.smooth_l1_loss` with
    beta = delta. With delta = 1 it is `huber_loss`, too.
    """
    if loss_kind == "l2":
        return torch.square(error)
    size = torch.abs(error)
    if loss_kind == "l1":
        return size
    return torch.where(size < huber_delta, torch.square(error) / (2 * huber_delta), size - huber_delta / 2)


def variational_bound(
    tables: Tables,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    x_0_pred: Tensor,
    log_variance: Tensor,
    data_range: tuple[float, float] = USUAL,
) -> Tensor:
    """L_{t-1} of Ho et al. 2020, eq. 5, in bits per dimension. At t = 0: -log likelihood of 8-bit pixels, eq. 13."""
    mean, _ = posterior(tables, x_0_pred, x_t, t)
    true_mean, _ = posterior(tables, x_0, x_t, t)
    true_log_variance = extract(tables.log_posterior_variance, t)
    kl = 0.5 * (
        log_variance
        - true_log_variance
        - 1
        + torch.exp(true_log_variance - log_variance)
        + torch.square(true_mean - mean) * torch.exp(-log_variance)
    )
    level, mean = from_data_range(x_0, data_range), from_data_range(mean, data_range)
    sigma = deviation_from_data_range(torch.exp(0.5 * log_variance), data_range)
    nll = -torch.log(torch.clamp(pixel_probability(level, mean, sigma), min=1e-12))
    nats = torch.where(t.reshape(-1, 1, 1, 1) == 0, nll, kl)
    return torch.mean(nats, dim=(1, 2, 3)) / math.log(2)


def pixel_probability(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Probability of the 8-bit level x, in [-1, 1], under N(mean, sigma^2): Ho et al. 2020, eq. 13.

    The lowest and the highest level include the tails. By symmetry, the probability is computed in the lower tail of
    the normal distribution, which avoids cancellation.
    """

    def cdf(distance):
        return 0.5 * torch.special.erfc(-distance / (sigma * math.sqrt(2)))

    d, half = x - mean, 1 / 255
    inner = cdf(half - torch.abs(d)) - cdf(-half - torch.abs(d))
    return torch.where(x < -0.999, cdf(d + half), torch.where(x > 0.999, cdf(half - d), inner))


def loss_per_image(
    tables: Tables,
    objective: str,
    predict,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    min_snr_gamma: float | None = None,
    variance: str = "beta",
    loss_kind: str = "l2",
    huber_delta: float = 1.0,
    p2_gamma: float | None = None,
    p2_k: float = 1.0,
    data_range: tuple[float, float] = USUAL,
) -> Tensor:
    """The loss of each image: squared error of `predict(x_t, t)`, mean over pixels, Ho et al. 2020, eq. 14.

    loss_kind, huber_delta: what is taken of the errors, as in `pixel_loss`. min_snr_gamma: if given, multiply by
    `loss_weights`. p2_gamma, p2_k: if p2_gamma is given, multiply by `p2_weights`. variance: "learned_range" adds 0.001
    L_vlb, the hybrid loss of Nichol & Dhariwal 2021, eq. 16.
    """
    x_t = q_sample(tables, x_0, t, noise)
    prediction, v = split_prediction(predict(x_t, t), x_t)
    target = objective_target(tables, objective, x_0, t, noise)
    errors = torch.mean(pixel_loss(prediction - target, loss_kind, huber_delta), dim=(1, 2, 3))
    if min_snr_gamma is not None:
        errors = loss_weights(tables, objective, t, min_snr_gamma) * errors
    if p2_gamma is not None:
        errors = p2_weights(extract(tables.snr, t).reshape(-1), p2_gamma, p2_k) * errors
    if variance != "learned_range":
        return errors
    x_0_pred = predicted_x_0(tables, objective, x_t, t, prediction.detach())
    bound = variational_bound(tables, x_0, x_t, t, x_0_pred, learned_log_variance(tables, t, v), data_range)
    return errors + 0.001 * tables.timesteps * bound  # L_hybrid, eq. 16; L_vlb trains only the variance, not the mean


def loss(tables: Tables, objective: str, predict, x_0, t, noise, *settings, **named_settings) -> Tensor:
    """The mean of `loss_per_image`, which has the same arguments, over the batch."""
    return torch.mean(loss_per_image(tables, objective, predict, x_0, t, noise, *settings, **named_settings))
