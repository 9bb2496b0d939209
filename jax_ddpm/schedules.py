"""Noise schedules and tables of everything that depends on t only. Computed in float64, rounded once.

Index t of a table is timestep t, 0 <= t < T. The papers count from 1: their timestep t + 1 is our t.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.spec.diffusion_config import DiffusionConfig, check_schedule
from jax_ddpm.spec.registered import SCHEDULES, own_betas
from jax_ddpm.spec.spacing import next_timesteps

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: avoids singularities at the end of the diffusion


@dataclass(frozen=True)
class Tables:
    """Tables of everything that depends on t only: arrays (T,) of one dtype."""

    betas: np.ndarray  # variance of q(x_t | x_{t-1})
    alphas: np.ndarray  # 1 - beta_t
    alpha_bars: np.ndarray  # prod_{s <= t} alpha_s
    alpha_bars_prev: np.ndarray  # alpha_bar_{t-1}, 1 at t = 0
    sqrt_alpha_bars: np.ndarray
    sqrt_one_minus_alpha_bars: np.ndarray
    sqrt_alpha_bars_prev: np.ndarray
    sqrt_one_minus_alpha_bars_prev: np.ndarray
    posterior_variance: np.ndarray  # beta~_t, Ho et al. 2020, eq. 7; 0 at t = 0
    posterior_mean_x_0: np.ndarray  # coefficient of x_0 in mu~_t, eq. 7
    posterior_mean_x_t: np.ndarray  # coefficient of x_t in mu~_t, eq. 7
    log_posterior_variance: np.ndarray  # log beta~_t; at t = 0 its value at t = 1, as in Nichol & Dhariwal's code
    snr: np.ndarray  # alpha_bar / (1 - alpha_bar)
    half_log_snr: np.ndarray  # lambda_t of Lu et al. 2022
    half_log_snr_prev: np.ndarray  # lambda_{t-1}, infinite at t = 0

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)


def linear_betas(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Ho et al. 2020, section 4: equal steps from beta_1 to beta_T. Float64 (T,)."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)


def cosine_betas(timesteps: int, s: float = 0.008) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, betas at most 0.999. Float64 (T,)."""
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return betas_from_alpha_bars(f / f[0])


def sigmoid_betas(timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> np.ndarray:
    """Jabri et al. 2022, section 2 (gamma(t) with a sigmoid), betas at most 0.999. Float64 (T,)."""
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    v_start, v_end = sigmoid(start / tau), sigmoid(end / tau)
    gamma = (v_end - sigmoid((u * (end - start) + start) / tau)) / (v_end - v_start)
    return betas_from_alpha_bars(np.clip(gamma, 1e-9, 1.0))


def scaled_linear_betas(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Equal steps in sqrt(beta) from beta_1 to beta_T, as in the code of Rombach et al. 2022. Float64 (T,)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=np.float64) ** 2


def sigmoid_shaped_betas(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Betas that rise like a sigmoid from -6 to 6, as in the code of Xu et al. 2022 (GeoDiff). Float64 (T,)."""
    return beta_start + (beta_end - beta_start) * sigmoid(np.linspace(-6, 6, timesteps, dtype=np.float64))


def zero_terminal_snr_betas(betas: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha_bar) so that it ends in 0 and starts as before: Lin et al. 2023, Algorithm 1. (T,)."""
    roots = np.sqrt(np.cumprod(1.0 - betas))
    if roots[-1] == 0:
        return betas
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return 1.0 - (roots / np.concatenate([[1.0], roots[:-1]])) ** 2


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def betas_from_alpha_bars(alpha_bars: np.ndarray) -> np.ndarray:
    """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, at most 0.999: (T,). alpha_bars: (T + 1,), starting with 1."""
    return np.minimum(1.0 - alpha_bars[1:] / alpha_bars[:-1], MAX_BETA)


def make_betas(
    schedule: str,
    timesteps: int,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    trained_betas: tuple[float, ...] | None = None,
    zero_terminal_snr: bool = False,
) -> np.ndarray:
    """Betas of a noise schedule: float64 (T,). Arguments and errors are those of `make_tables`."""
    check_schedule(schedule, timesteps, beta_start, beta_end, trained_betas, zero_terminal_snr)
    if schedule in SCHEDULES:
        betas = own_betas(SCHEDULES[schedule], schedule, timesteps)
    elif schedule == "trained":
        betas = np.asarray(trained_betas, np.float64)
    elif schedule in ("cosine", "sigmoid"):
        betas = cosine_betas(timesteps) if schedule == "cosine" else sigmoid_betas(timesteps)
    else:
        makers = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "sigmoid_betas": sigmoid_shaped_betas}
        betas = makers[schedule](timesteps, beta_start, beta_end)
    return zero_terminal_snr_betas(betas) if zero_terminal_snr else betas


def half_log_snr(alpha_bars: np.ndarray) -> np.ndarray:
    """log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)). Infinite for alpha_bar = 1."""
    with np.errstate(divide="ignore"):
        return 0.5 * (np.log(alpha_bars) - np.log1p(-alpha_bars))


def make_tables(
    schedule: str = "linear",
    timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    dtype: Any = np.float32,
    chain: np.ndarray | None = None,
    trained_betas: tuple[float, ...] | None = None,
    zero_terminal_snr: bool = False,
) -> Tables:
    """All tables of a noise schedule, computed in float64 and rounded once.

    Args:
        schedule: a name; `DiffusionConfig.schedule` lists them with their sources.
        timesteps: T, at least 1.
        beta_start, beta_end: beta_1 and beta_T of the schedules that have them, 0 < beta_start <= beta_end < 1.
        dtype: of the tables.
        chain: the timesteps that a sampler with fewer than T steps visits (`spec.spacing.spaced_timesteps`). The tables
            are then those of this shorter process: "t - 1" is the next lower timestep of the chain, and betas are
            larger (Nichol & Dhariwal 2021, section 4).
        trained_betas: the T betas of the schedule "trained": between 0 and 1; the last may be 1.
        zero_terminal_snr: rescale the schedule by Algorithm 1 of Lin et al. 2023: alpha_bar_T becomes 0.

    Raises:
        UserError: an unknown schedule, or a number out of range.
    """
    betas = make_betas(schedule, timesteps, beta_start, beta_end, trained_betas, zero_terminal_snr)
    alphas = 1.0 - betas
    alpha_bars = np.cumprod(alphas)
    alpha_bars_prev = np.concatenate([[1.0], alpha_bars[:-1]])
    if chain is not None and len(chain) < timesteps:
        alpha_bars_prev = np.concatenate([[1.0], alpha_bars])[next_timesteps(chain, timesteps) + 1]
        alphas = alpha_bars / alpha_bars_prev
        betas = 1.0 - alphas
    one_minus, one_minus_prev = 1.0 - alpha_bars, 1.0 - alpha_bars_prev
    posterior_variance = betas * one_minus_prev / one_minus
    is_zero = posterior_variance == 0
    visited = np.arange(timesteps) if chain is None else np.sort(chain)
    positive = posterior_variance[visited][~is_zero[visited]]
    first_positive = positive[0] if len(positive) else betas[visited[0]]
    values = Tables(
        betas=betas,
        alphas=alphas,
        alpha_bars=alpha_bars,
        alpha_bars_prev=alpha_bars_prev,
        sqrt_alpha_bars=np.sqrt(alpha_bars),
        sqrt_one_minus_alpha_bars=np.sqrt(one_minus),
        sqrt_alpha_bars_prev=np.sqrt(alpha_bars_prev),
        sqrt_one_minus_alpha_bars_prev=np.sqrt(one_minus_prev),
        posterior_variance=posterior_variance,
        posterior_mean_x_0=np.sqrt(alpha_bars_prev) * betas / one_minus,
        posterior_mean_x_t=np.sqrt(alphas) * one_minus_prev / one_minus,
        log_posterior_variance=np.log(np.where(is_zero, first_positive, posterior_variance)),
        snr=alpha_bars / one_minus,
        half_log_snr=half_log_snr(alpha_bars),
        half_log_snr_prev=half_log_snr(alpha_bars_prev),
    )
    return Tables(**{name: value.astype(dtype) for name, value in vars(values).items()})


def schedule_tables(config: DiffusionConfig, dtype=np.float32, chain: np.ndarray | None = None) -> Tables:
    """`make_tables` for the schedule of a `DiffusionConfig`."""
    settings = config.schedule, config.timesteps, config.beta_start, config.beta_end
    return make_tables(*settings, dtype, chain, config.trained_betas, config.zero_terminal_snr)
