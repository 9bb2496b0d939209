"""Which timesteps a shortened chain visits: integers in [0, T), NumPy, the same in both packages."""

import numpy as np

from jax_ddpm.spec.errors import require


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


def next_timesteps(chain: np.ndarray, timesteps: int) -> np.ndarray:
    """For every t in [0, T) the largest timestep of the chain below it, or -1 where there is none: int32 (T,)."""
    chosen = np.concatenate([[-1], np.sort(chain)])
    return chosen[np.searchsorted(chosen, np.arange(timesteps)) - 1].astype(np.int32)


def frame_slots(num_frames: int | tuple[int, ...], num_steps: int) -> tuple[int, np.ndarray]:
    """How many states of a chain to return as frames, F, and the slot in [0, F] of the state after k steps.

    num_frames: that many states evenly spaced from x_T to x_0, or, for a tuple, the states after so many steps. The
    slots are int32 (num_steps + 1,); slot F means that the state is no frame.
    """
    if isinstance(num_frames, int):
        num_frames = tuple(np.round(np.linspace(0, num_steps, num_frames)).astype(int))
    slots = np.full(num_steps + 1, len(num_frames), np.int32)
    slots[np.asarray(num_frames, int)] = np.arange(len(num_frames))
    return len(num_frames), slots


def repaint_schedule(chain: np.ndarray, resamplings: int, jump: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps of RePaint's steps down, and how often each had been visited before: int32 (M,) both.

    All but the last step of the chain is cut, from its end, into pieces of `jump` steps. RePaint goes through each
    piece `resamplings` times; before each repetition x jumps up to the top of the piece. The steps above the topmost
    whole piece, and the last step, come once. jump = 1 is Algorithm 1 of Lugmayr et al. 2022; the paper's experiments
    have T = 250, jump = 10, resamplings = 10. Raises UserError for counts out of range.
    """
    require(resamplings >= 1, "resamplings", resamplings, "expected at least 1")
    longest = max(1, len(chain) - 1)
    require(
        jump >= 1 and (jump <= longest or resamplings == 1), "jump", jump, f"expected 1 to num_steps - 1 = {longest}"
    )
    pieces = (len(chain) - 1) // jump
    top = len(chain) - 1 - pieces * jump
    again = np.broadcast_to(chain[top:-1].reshape(pieces, 1, jump), (pieces, resamplings, jump))
    visits = np.broadcast_to(np.arange(resamplings)[:, None], again.shape)
    timesteps = np.concatenate([chain[:top], again.ravel(), chain[-1:]])
    return timesteps.astype(np.int32), np.concatenate([np.zeros(top), visits.ravel(), [0]]).astype(np.int32)
