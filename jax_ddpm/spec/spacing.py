"""Which of the T timesteps a sampler visits: its chain, descending integers in [0, T)."""

import numpy as np

from jax_ddpm.spec.errors import require


def spaced_timesteps(spacing: str, num_steps: int, alpha_bars: np.ndarray) -> np.ndarray:
    """Choose `num_steps` of T timesteps: int32, descending. With num_steps = T these are all timesteps.

    spacing: leading, linspace or trailing choose evenly in t, Lin et al. 2023, table 2: leading leaves out the noisiest
    timesteps, trailing the least noisy ones, and linspace includes both ends. logsnr chooses evenly in
    log(alpha_bar / (1 - alpha_bar)), including both ends, and rounds each value to the nearest unused t. If the last
    alpha_bar is 0, where the log SNR is infinite, logsnr visits it first and chooses the others below it. alpha_bars:
    float64 (T,).
    """
    T = len(alpha_bars)
    ascending = np.arange(num_steps)
    if spacing == "leading":
        timesteps = ascending * (T // num_steps)
    elif spacing == "trailing":
        timesteps = np.round((ascending + 1) * T / num_steps) - 1
    elif spacing == "linspace":
        timesteps = np.round(np.linspace(0, T - 1, num_steps)) if num_steps > 1 else np.array([T - 1])
    elif alpha_bars[-1] == 0 and T > 1:
        others = spaced_timesteps(spacing, num_steps - 1, alpha_bars[:-1])
        return np.append(np.int32(T - 1), others)
    else:
        log_snr = np.log(np.maximum(alpha_bars, 1e-300)) - np.log1p(-alpha_bars)  # descending in t
        targets = np.linspace(log_snr[-1], log_snr[0], num_steps)[::-1]
        nearest = np.abs(log_snr[:, None] - targets).argmin(axis=0)
        distinct = np.maximum.accumulate(nearest - ascending) + ascending  # strictly ascending
        timesteps = np.minimum(distinct, T - num_steps + ascending)
    return timesteps[::-1].astype(np.int32)


def next_timesteps(chain: np.ndarray, timesteps: int) -> np.ndarray:
    """For each t in [0, T), the largest timestep of the chain below t, or -1 if there is none: int32 (T,)."""
    ascending = np.concatenate([[-1], np.sort(chain)])
    return ascending[np.searchsorted(ascending, np.arange(timesteps)) - 1].astype(np.int32)


def timesteps_from(chain: np.ndarray, start_t: int, timesteps: int) -> np.ndarray:
    """The timesteps of the chain that are at most start_t.

    Raises UserError unless (last timestep of the chain) <= start_t < T.
    """
    expected = f"expected {chain[-1]}, the sampler's last timestep, to T - 1 = {timesteps - 1}"
    require(chain[-1] <= start_t < timesteps, "start_t", start_t, expected)
    return chain[chain <= start_t]


def frame_slots(num_frames: int | tuple[int, ...], num_steps: int) -> tuple[int, np.ndarray]:
    """The number F of frames, and for k = 0 to num_steps the index of the frame that stores the state after k steps.

    num_frames: this many states, evenly spaced from x_T to x_0, or a tuple: the states after these numbers of steps.
    The indices are int32 (num_steps + 1,). Index F means that the state is not stored.
    """
    if isinstance(num_frames, int):
        num_frames = tuple(np.round(np.linspace(0, num_steps, num_frames)).astype(int))
    slots = np.full(num_steps + 1, len(num_frames), np.int32)
    slots[np.asarray(num_frames, int)] = np.arange(len(num_frames))
    return len(num_frames), slots


def repaint_schedule(chain: np.ndarray, resamplings: int, jump: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps of RePaint's denoising steps, and how often each was visited before: both int32 (M,).

    The chain without its last step is split, from its low end, into segments of `jump` steps. Each segment is denoised
    `resamplings` times. Before each repetition x jumps back up, by adding noise, to the top of the segment. So where a
    timestep is not lower than the one before it, a jump lies between them. The steps above the topmost full segment,
    and the last step, are done once. jump = 1 is Algorithm 1 of Lugmayr et al. 2022. The paper's experiments use
    T = 250, jump = 10, resamplings = 10. Raises UserError for counts out of range.
    """
    require(resamplings >= 1, "resamplings", resamplings, "expected at least 1")
    longest = max(1, len(chain) - 1)
    fits = jump >= 1 and (jump <= longest or resamplings == 1)
    require(fits, "jump", jump, f"expected 1 to num_steps - 1 = {longest}: give a smaller --jump, or more steps")
    segments = (len(chain) - 1) // jump
    top = len(chain) - 1 - segments * jump
    repeated = np.broadcast_to(chain[top:-1].reshape(segments, 1, jump), (segments, resamplings, jump))
    visits = np.broadcast_to(np.arange(resamplings)[:, None], repeated.shape)
    timesteps = np.concatenate([chain[:top], repeated.ravel(), chain[-1:]])
    return timesteps.astype(np.int32), np.concatenate([np.zeros(top), visits.ravel(), [0]]).astype(np.int32)
