"""Inpainting: draw the unknown pixels of images so that they fit the known ones (RePaint, Lugmayr et al. 2022)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.inputs import check_ancestral, check_images, check_mask, seeds_and_indices
from jax_ddpm.spec.spacing import repaint_schedule
from torch_ref import diffusion, rng
from torch_ref.layouts import channels_first, device_of, numpy_dtype
from torch_ref.sampling.reverse import chain_of, make_step, reverse_process
from torch_ref.sampling.samplers import ANCESTRAL, in_batches, noise_at, parts_of, picture_keys
from torch_ref.schedules import Tables, schedule_tables


def jumps(tables: Tables, timesteps: np.ndarray) -> np.ndarray:
    """After each step, alpha_bar of the next timestep over the alpha_bar reached: below 1 where a jump lies between."""
    following = np.append(timesteps[1:], -1)
    return np.where(following >= timesteps, tables.alpha_bars[following] / tables.alpha_bars_prev[timesteps], 1.0)


@torch.no_grad()
def inpaint(
    model: nn.Module,
    images: np.ndarray,
    mask: np.ndarray,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    resamplings: int = 10,
    jump: int = 10,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Images with all but their known pixels drawn anew: RePaint, Lugmayr et al. 2022, Algorithm 1.

    mask: (H, W), other than 0 where a pixel is known, which it then is in the result, bit for bit. Takes ancestral
    steps over any chain, and about `resamplings` times as many network calls as the chain is long: the length of
    `repaint_schedule(chain, resamplings, jump)`. All draws are new at each visit of a timestep (`rng.py`); with nothing
    known and resamplings = 1 the pictures are those of `sample`.
    """
    network, config, image_shape = parts_of(model, config, None)
    images = check_images("images", images, image_shape, numpy_dtype(dtype))
    is_known = torch.from_numpy(check_mask(mask, images)).to(device_of(network))
    config.check()
    sampler.check(config.timesteps)
    check_ancestral(sampler)
    chain = chain_of(config, sampler)
    tables = schedule_tables(config, images.dtype, chain)
    timesteps, visits = repaint_schedule(chain, resamplings, jump)
    kept = jumps(schedule_tables(config, np.float64, chain), timesteps)
    places = timesteps + visits * (config.timesteps + 1)
    ancestral_step = make_step(tables, config, sampler, chain, network)
    of = seeds_and_indices(seed, seeds, len(images))
    keys, known_keys, jump_keys = (picture_keys(*of, purpose) for purpose in (rng.SAMPLING, rng.KNOWN, rng.JUMP))
    device = device_of(network)

    def draw(indices):
        given = channels_first(images[indices], device)

        def noise_of(keys, number):
            return noise_at(keys[indices], number, images.shape[1:], dtype).to(device)

        def step(x_t, prediction, n, noise):
            t = torch.full((x_t.shape[0],), int(timesteps[n]), device=device)
            root, rest = tables.sqrt_alpha_bars_prev, tables.sqrt_one_minus_alpha_bars_prev
            known = diffusion.extract(root, t) * given + diffusion.extract(rest, t) * noise[1]  # Algorithm 1, line 5
            x = torch.where(is_known, known, ancestral_step(x_t, prediction, int(timesteps[n]), noise[0]))  # lines 7, 8
            if kept[n] == 1:
                return x
            root, rest = (images.dtype.type(np.sqrt(share)).item() for share in (kept[n], 1 - kept[n]))
            return root * x + rest * noise_of(jump_keys, places[n])  # line 10

        return reverse_process(
            step,
            lambda x, n: network(x, torch.from_numpy(timesteps).to(x.device)[n].long()),
            noise_of(keys, config.timesteps),
            np.arange(len(timesteps)),
            lambda n: (noise_of(keys, places[n]), noise_of(known_keys, places[n])),
            progress=progress,
        )[0]

    return in_batches(draw, len(images), batch_size)
