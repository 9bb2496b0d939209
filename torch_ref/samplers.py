"""The reverse process: one step function, one loop around it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from torch_ref import diffusion, rng
from torch_ref.config import DiffusionConfig
from torch_ref.errors import UserError
from torch_ref.schedules import Tables, make_tables


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
) -> Tensor:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. `t`: one integer for the batch; no noise at t = 0.

    variance: "beta" (sigma_t^2 = beta_t) or "posterior" (beta~_t), section 3.2. clip: "x0" clips the predicted x_0 to
    [-1, 1] and takes the posterior mean; "state" clamps the new x to [-1, 1]; "none" does neither.
    """
    ts = torch.full((x_t.shape[0],), t, device=x_t.device)
    if clip == "x0":
        x_0 = diffusion.predicted_x_0(tables, objective, x_t, ts, prediction)
        mean, _ = diffusion.posterior(tables, torch.clamp(x_0, -1, 1), x_t, ts)  # eq. 7
    else:
        eps = diffusion.predicted_eps(tables, objective, x_t, ts, prediction)
        factor = diffusion.at(tables.betas, ts) / diffusion.at(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / torch.sqrt(diffusion.at(tables.alphas, ts))  # eq. 11
    sigma = torch.sqrt(diffusion.at(tables.betas if variance == "beta" else tables.posterior_variance, ts))
    x = mean + (sigma if t > 0 else 0) * noise
    return torch.clamp(x, -1, 1) if clip == "state" else x


def reverse_process(
    step: Callable,
    predict: Callable,
    x_T: Tensor,
    timesteps: int,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """From x_T to x_0 over t = T-1, ..., 0: x <- step(x, predict(x, t), t, draw_noise(t)).

    predict takes t as integers (B,); step and draw_noise take one integer. Returns x_0 and `num_frames` states evenly
    spaced from x_T to x_0 (none unless asked for), or, for a tuple, the states after so many steps. `progress` is
    called with the number of steps done, about fifty times.
    """
    if isinstance(num_frames, int):
        num_frames = tuple(np.round(np.linspace(0, timesteps, num_frames)).astype(int))
    kept = np.asarray(num_frames, int)
    slots = np.full(timesteps + 1, len(kept))  # after k steps the state goes to frame slots[k]; len: nowhere
    slots[kept] = np.arange(len(kept))
    frames = x_T.new_zeros((len(kept), *x_T.shape))
    every = max(1, timesteps // 50)
    if slots[0] < len(kept):
        frames[slots[0]] = x_T
    x = x_T
    for t in reversed(range(timesteps)):
        x = step(x, predict(x, torch.full((x.shape[0],), t, device=x.device)), t, draw_noise(t))
        done = timesteps - t
        if slots[done] < len(kept):
            frames[slots[done]] = x
        if progress is not None and done % every == 0:
            progress(done)
    return x, frames


@torch.no_grad()
def sample_indices(
    network: nn.Module,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
    seed: int,
    indices,
    *,
    num_frames: int | tuple[int, ...] = 0,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures number `indices` of a seed, by ancestral sampling: float (B, C, H, W), around [-1, 1], and frames.

    `image_shape` is (H, W, C). Picture i is drawn at (SAMPLING, i, t): it does not depend on its batch, beyond the last
    digits of floating-point arithmetic. Computed where the network's parameters are.
    """
    config.check()
    keys = rng.fold_in(rng.key(seed, rng.SAMPLING), indices)
    parameter = next(network.parameters(), None)
    device = None if parameter is None else parameter.device
    as_numpy = np.float64 if dtype == torch.float64 else np.float32
    tables = make_tables(config.schedule, config.timesteps, config.beta_start, config.beta_end, dtype=as_numpy)
    step = partial(ancestral_step, tables, objective=config.objective, variance=config.variance, clip=config.clip)

    def draw_noise(t):
        noise = rng.normal(rng.fold_in(keys, t), tuple(image_shape), dtype)  # (B, H, W, C)
        return noise.permute(0, 3, 1, 2).contiguous().to(device)

    x_T = draw_noise(config.timesteps)
    return reverse_process(step, network, x_T, config.timesteps, draw_noise, num_frames, progress)


def sample(
    model: nn.Module,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Pictures 0 to num_images - 1 of a seed as a NumPy array (N, H, W, C), around [-1, 1], `batch_size` at a time.

    model: what `load_model` returns, or any module (x, t) -> prediction, which needs `config` and `image_shape`
    (H, W, C). The last batch is filled up and cut, so that all are computed alike. `progress` as in `reverse_process`,
    per batch. Raises UserError for counts below 1.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} = {value}: expected at least 1.")
    info = getattr(model, "info", None)
    config = config or info.diffusion
    image_shape = image_shape or info.image_shape
    batch_size = min(batch_size, num_images)
    parts = []
    for first in range(0, num_images, batch_size):
        indices = np.arange(first, first + batch_size)
        x_0, _ = sample_indices(model, config, image_shape, seed, indices, dtype=dtype, progress=progress)
        parts.append(x_0.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)[:num_images]
