"""Which timesteps a shortened chain visits: integers in [0, T), NumPy, the same in both packages."""

import numpy as np


def spaced_timesteps(spacing: str, num_steps: int, alpha_bars: np.ndarray) -> np.ndarray:
    """The `num_steps` timesteps of a chain, descending; all T of them where num_steps = T.

    leading, linspace, trailing: evenly in t, Lin et al. 2023, table 2 (leading leaves out the noisiest, linspace has
    both ends, trailing leaves out the cleanest). logsnr: evenly in log(alpha_bar / (1 - alpha_bar)), both ends, each
    the nearest t that is still free. `alpha_bars`: float64 (T,).
    """
    timesteps = len(alpha_bars)
    ascending = np.arange(num_steps)
    if spacing == "leading":
        chosen = ascending * (timesteps // num_steps)
    elif spacing == "trailing":
        chosen = np.round((ascending + 1) * timesteps / num_steps) - 1
    elif spacing == "linspace":
        chosen = np.round(np.linspace(0, timesteps - 1, num_steps)) if num_steps > 1 else np.array([timesteps - 1])
    else:
        log_snr = np.log(np.maximum(alpha_bars, 1e-300)) - np.log1p(-alpha_bars)  # descending in t
        wanted = np.linspace(log_snr[-1], log_snr[0], num_steps)[::-1]
        nearest = np.abs(log_snr[:, None] - wanted).argmin(axis=0)
        distinct = np.maximum.accumulate(nearest - ascending) + ascending
        chosen = np.minimum(distinct, timesteps - num_steps + ascending)
    return chosen[::-1].astype(np.int32)


def timesteps_below(chain: np.ndarray, timesteps: int) -> np.ndarray:
    """For every t in [0, T) the largest timestep of the chain below it, or -1 where there is none: int32 (T,)."""
    chosen = np.concatenate([[-1], np.sort(chain)])
    return chosen[np.searchsorted(chosen, np.arange(timesteps)) - 1].astype(np.int32)
