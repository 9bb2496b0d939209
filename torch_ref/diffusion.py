"""The forward process, its posterior, the three objectives, and the loss.

`tables` are `schedules.Tables`; x tensors are (B, C, H, W) with one timestep each, t: integers (B,) in [0, T).
"""

import math

import torch
from torch import Tensor

from jax_ddpm.spec.errors import UserError
from torch_ref.schedules import Tables


def extract(table, t: Tensor) -> Tensor:
    """table[t] as (B, 1, 1, 1), ready to multiply images."""
    return torch.as_tensor(table, device=t.device)[t].reshape(-1, 1, 1, 1)


def q_sample(tables: Tables, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0) for the given standard normal noise: Ho et al. 2020, eq. 4."""
    return extract(tables.sqrt_alpha_bars, t) * x_0 + extract(tables.sqrt_one_minus_alpha_bars, t) * noise


def posterior(tables: Tables, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 6 and 7."""
    mean = extract(tables.posterior_mean_x_0, t) * x_0 + extract(tables.posterior_mean_x_t, t) * x_t
    return mean, extract(tables.posterior_variance, t)


def objective_target(tables: Tables, objective: str, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The right answer: eps, x_0, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022)."""
    if objective == "eps":
        return noise
    if objective == "x0":
        return x_0
    return extract(tables.sqrt_alpha_bars, t) * noise - extract(tables.sqrt_one_minus_alpha_bars, t) * x_0


def predicted_x_0(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """x_0 computed from the network's prediction; for eps: Ho et al. 2020, eq. 15."""
    if objective == "x0":
        return prediction
    root, root_rest = extract(tables.sqrt_alpha_bars, t), extract(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "eps":
        return (x_t - root_rest * prediction) / root
    return root * x_t - root_rest * prediction


def predicted_eps(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """eps computed from the network's prediction."""
    if objective == "eps":
        return prediction
    root, root_rest = extract(tables.sqrt_alpha_bars, t), extract(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "x0":
        return (x_t - root * prediction) / root_rest
    return root * prediction + root_rest * x_t


def split_prediction(prediction: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """The network's output as (prediction, v). v is None unless there are twice the image's channels."""
    channels = x_t.shape[1]
    if prediction.shape[1] == channels:
        return prediction, None
    return prediction[:, :channels], prediction[:, channels:]


def learned_log_variance(tables: Tables, t: Tensor, v: Tensor | None) -> Tensor:
    """log Sigma between log beta~_t (v = -1) and log beta_t (v = 1), pixel by pixel: Nichol & Dhariwal 2021, eq. 15."""
    if v is None:
        raise UserError(
            "variance = learned_range: the network predicts no variance (expected twice the image's channels).\n"
            "Use a network with learned_variance, or another variance."
        )
    share = (v + 1) / 2
    return share * torch.log(extract(tables.betas, t)) + (1 - share) * extract(tables.log_posterior_variance, t)


def loss_weights(tables: Tables, objective: str, t: Tensor, min_snr_gamma: float) -> Tensor:
    """Min-SNR-gamma, Hang et al. 2023, section 3.4: min(SNR, gamma) weighs the error in x_0; per objective, (B,)."""
    snr = torch.as_tensor(tables.snr, device=t.device)[t]
    clipped = torch.clamp(snr, max=min_snr_gamma)
    return {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[objective]


def variational_bound(
    tables: Tables, x_0: Tensor, x_t: Tensor, t: Tensor, x_0_pred: Tensor, log_variance: Tensor
) -> Tensor:
    """L_{t-1} of Ho et al. 2020, eq. 5, in bits per dimension (B,); at t = 0 the likelihood of 8-bit pixels, eq. 13."""
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
    nll = -torch.log(torch.clamp(pixel_probability(x_0, mean, torch.exp(0.5 * log_variance)), min=1e-12))
    nats = torch.where(t.reshape(-1, 1, 1, 1) == 0, nll, kl)
    return torch.mean(nats, dim=(1, 2, 3)) / math.log(2)


def pixel_probability(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Probability of the 8-bit level x under N(mean, sigma^2); the outermost levels include the tails: eq. 13.

    Computed in the lower tail, by symmetry, which avoids cancellation.
    """

    def below(distance):
        return 0.5 * torch.special.erfc(-distance / (sigma * math.sqrt(2)))

    d, half = x - mean, 1 / 255
    inner = below(half - torch.abs(d)) - below(-half - torch.abs(d))
    return torch.where(x < -0.999, below(d + half), torch.where(x > 0.999, below(half - d), inner))


def loss_per_image(
    tables: Tables,
    objective: str,
    predict,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    min_snr_gamma: float | None = None,
    variance: str = "beta",
) -> Tensor:
    """Mean over pixels of Ho et al. 2020, eq. 14, for `predict(x_t, t)`, weighted if min_snr_gamma is given: (B,).

    variance = "learned_range": the hybrid loss L_simple + 0.001 L_vlb, Nichol & Dhariwal 2021, eq. 16. L_vlb is T times
    the bound's term at t, in bits per dimension. Its gradient reaches only the variance, not the mean.
    """
    x_t = q_sample(tables, x_0, t, noise)
    prediction, v = split_prediction(predict(x_t, t), x_t)
    target = objective_target(tables, objective, x_0, t, noise)
    errors = torch.mean(torch.square(prediction - target), dim=(1, 2, 3))
    if min_snr_gamma is not None:
        errors = loss_weights(tables, objective, t, min_snr_gamma) * errors
    if variance != "learned_range":
        return errors
    seen = predicted_x_0(tables, objective, x_t, t, prediction.detach())
    bound = variational_bound(tables, x_0, x_t, t, seen, learned_log_variance(tables, t, v))
    return errors + 0.001 * tables.timesteps * bound


def loss(
    tables: Tables, objective: str, predict, x_0, t, noise, min_snr_gamma: float | None = None, variance: str = "beta"
) -> Tensor:
    """The mean of `loss_per_image` over the batch."""
    return torch.mean(loss_per_image(tables, objective, predict, x_0, t, noise, min_snr_gamma, variance))
