"""The forward process, its posterior, the three objectives, and the loss.

`tables` are `schedules.Tables`; x tensors are (B, C, H, W) with one timestep each, t: integers (B,) in [0, T).
"""

import torch
from torch import Tensor

from torch_ref.schedules import Tables


def at(table, t: Tensor) -> Tensor:
    """table[t] as (B, 1, 1, 1), ready to multiply images."""
    return torch.as_tensor(table, device=t.device)[t].reshape(-1, 1, 1, 1)


def q_sample(tables: Tables, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0) for the given standard normal noise: Ho et al. 2020, eq. 4."""
    return at(tables.sqrt_alpha_bars, t) * x_0 + at(tables.sqrt_one_minus_alpha_bars, t) * noise


def posterior(tables: Tables, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 6 and 7."""
    mean = at(tables.posterior_mean_x_0, t) * x_0 + at(tables.posterior_mean_x_t, t) * x_t
    return mean, at(tables.posterior_variance, t)


def objective_target(tables: Tables, objective: str, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The right answer: eps, x_0, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022)."""
    if objective == "eps":
        return noise
    if objective == "x0":
        return x_0
    return at(tables.sqrt_alpha_bars, t) * noise - at(tables.sqrt_one_minus_alpha_bars, t) * x_0


def predicted_x_0(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """x_0 as the network sees it; from eps by Ho et al. 2020, eq. 15."""
    if objective == "x0":
        return prediction
    root, root_rest = at(tables.sqrt_alpha_bars, t), at(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "eps":
        return (x_t - root_rest * prediction) / root
    return root * x_t - root_rest * prediction


def predicted_eps(tables: Tables, objective: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """The noise as the network sees it."""
    if objective == "eps":
        return prediction
    root, root_rest = at(tables.sqrt_alpha_bars, t), at(tables.sqrt_one_minus_alpha_bars, t)
    if objective == "x0":
        return (x_t - root * prediction) / root_rest
    return root * prediction + root_rest * x_t


def loss_weights(tables: Tables, objective: str, t: Tensor, min_snr_gamma: float) -> Tensor:
    """Min-SNR-gamma, Hang et al. 2023, section 3.4: min(SNR, gamma) weighs the error in x_0; per objective, (B,)."""
    snr = torch.as_tensor(tables.snr, device=t.device)[t]
    clipped = torch.clamp(snr, max=min_snr_gamma)
    return {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[objective]


def loss_per_image(
    tables: Tables,
    objective: str,
    predict,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Mean over pixels of Ho et al. 2020, eq. 14, for `predict(x_t, t)`; min-SNR-gamma weighted where given; (B,)."""
    prediction = predict(q_sample(tables, x_0, t, noise), t)
    target = objective_target(tables, objective, x_0, t, noise)
    errors = torch.mean(torch.square(prediction - target), dim=(1, 2, 3))
    return errors if min_snr_gamma is None else loss_weights(tables, objective, t, min_snr_gamma) * errors


def loss(tables: Tables, objective: str, predict, x_0, t, noise, min_snr_gamma: float | None = None) -> Tensor:
    """The mean of `loss_per_image` over the batch."""
    return torch.mean(loss_per_image(tables, objective, predict, x_0, t, noise, min_snr_gamma))
