"""Bits per dimension of 8-bit images by the probability-flow ODE: Song et al. 2021 (score SDE), section 4.3.

The ODE carries the state x at t = 0 to a normal x_T, and the change of variables gives the density of x:
log p(x) = log N(x_T; 0, I) + integral of div f. Its time is tau = log sigma, sigma = sqrt((1 - alpha_bar) / alpha_bar),
in which f(x) = n (eps - n x), n = sqrt(1 - alpha_bar).

Images have levels, and x has noise. So x is drawn from q(x | x_0), and the decoder of the variational bound counts the
levels: -log2 P(x_0) <= E[log2 q(x | x_0) - log2 p(x)] + L_0.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from jax_ddpm.spec.batches import in_batches
from jax_ddpm.spec.diffusion_config import DiffusionConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.likelihood import FlowLikelihood, check_levels
from jax_ddpm.spec.spacing import spaced_timesteps
from torch_ref import diffusion, rng
from torch_ref.diffusion import extract
from torch_ref.layouts import device_of, numpy_dtype
from torch_ref.likelihood import labels_of, term_bits
from torch_ref.objectives.discrete import by_timestep
from torch_ref.sampling.guidance import with_labels
from torch_ref.sampling.samplers import image_keys, noise_at, opened, tensors, unpack_model
from torch_ref.schedules import Tables, schedule_tables
from torch_ref.step import prepare_images


def velocity(
    tables: Tables, objective: str, predict: Callable, x: Tensor, t: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """f = dx / d tau at the timesteps t (B,), and the mean over the values of its divergence (B,), estimated.

    The trace is Hutchinson's estimate, signs . (Jacobian signs), with signs +1 or -1: Song et al. 2021, eq. 40.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = diffusion.predicted_eps(tables, objective, x, t, diffusion.split_prediction(predict(x, t), x)[0])
        pulled_back = torch.autograd.grad(value, x, signs)[0]
    x, value = x.detach(), value.detach()
    n = extract(tables.sqrt_one_minus_alpha_bars, t)
    trace = n * signs * pulled_back - torch.square(n)
    return n * (value - n * x), torch.mean(trace, dim=(1, 2, 3))


def heun_steps(
    tables: Tables, objective: str, predict: Callable, x: Tensor, signs: Tensor, t: np.ndarray, t_next: np.ndarray
) -> tuple[Tensor, Tensor]:
    """x at the last timestep, and the integral of the mean divergence (B,). Heun's steps from t (K,) to t_next (K,)."""
    integral = torch.zeros_like(x[:, 0, 0, 0])
    for pair in zip(t.tolist(), t_next.tolist(), strict=True):
        t, t_next = (torch.full((x.shape[0],), number, device=x.device) for number in pair)
        log_sigma, log_sigma_next = (-tables.half_log_snr[number] for number in pair)
        h = float(log_sigma_next - log_sigma)
        f, divergence = velocity(tables, objective, predict, x, t, signs)
        f_next, divergence_next = velocity(tables, objective, predict, x + h * f, t_next, signs)
        x, integral = x + h * (f + f_next) / 2, integral + h * (divergence + divergence_next) / 2
    return x, integral


@torch.no_grad()
def flow_of_batch(
    network: nn.Module,
    config: DiffusionConfig,
    seed: int,
    indices,
    images: np.ndarray,
    chain: np.ndarray,
    dtype=torch.float32,
    labels: Tensor | None = None,
    progress: Callable | None = None,
) -> np.ndarray:
    """Bits per dimension of the decoder and of the state of one batch, images `indices` of the data: (B, 2).

    images: uint8 (B, H, W, C). chain: ascending timesteps from 0 to T - 1. labels: of these images, integers (B,) or
    floats (B, D).
    """
    keys, device, shape = image_keys(seed, indices, rng.LIKELIHOOD), device_of(network), images.shape[1:]
    tables, steps = schedule_tables(config, numpy_dtype(dtype)), len(chain) - 1
    every = steps if progress is None else max(1, steps // 50)
    x_0 = prepare_images(torch.from_numpy(images).to(device), dtype, None, config.data_range)
    t, noise = torch.zeros(len(images), dtype=torch.int64, device=device), noise_at(keys, 0, shape, dtype).to(device)
    predict = with_labels(network, labels)
    decoder, x = term_bits(tables, config, predict, x_0, t, noise), diffusion.q_sample(tables, x_0, t, noise)
    coins = rng.bernoulli(rng.fold_in(keys, config.timesteps + 1), 0.5, shape).permute(0, 3, 1, 2)
    signs, integral = 2 * coins.to(device, dtype) - 1, np.zeros(len(images))
    for done in range(0, steps, every):
        part = chain[:-1][done : done + every], chain[1:][done : done + every]
        x, divergence = heun_steps(tables, config.objective, by_timestep(predict, config), x, signs, *part)
        integral = integral + divergence.double().cpu().numpy()
        if progress is not None:
            progress(min(done + every, steps))
    log_n = np.log(schedule_tables(config, np.float64).sqrt_one_minus_alpha_bars[0])
    ends = torch.mean(torch.square(x) - torch.square(noise), dim=(1, 2, 3)).double().cpu().numpy()
    return np.stack([decoder.cpu().numpy(), (ends / 2 - log_n - integral) / math.log(2)], axis=1)


def flow_bits_per_dimension(
    model: nn.Module,
    images: np.ndarray,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    labels=None,
    progress: Callable | None = None,
) -> FlowLikelihood:
    """The likelihood of images by the probability-flow ODE in bits per dimension. Nothing is clipped in the ODE.

    Arguments are those of `jax_ddpm.evaluation.flow_bits_per_dimension`: images are uint8 (N, H, W, C).
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    config.check()
    require_timesteps(config, "the likelihood by the ODE")
    images, alpha_bars = check_levels(images, image_shape), schedule_tables(config, np.float64).alpha_bars
    require(alpha_bars[-1] > 0, "last alpha_bar", 0, "expected more than 0, since x_T must depend on the image")
    num_steps = config.timesteps if num_steps is None else num_steps
    require(2 <= num_steps <= config.timesteps, "num_steps", num_steps, f"expected 2 to T = {config.timesteps}")
    chain = spaced_timesteps("logsnr", num_steps, alpha_bars)[::-1]

    of_images = labels_of(model, labels, len(images))

    def draw(indices):
        wanted = tensors(of_images, indices, device_of(network)).wanted
        return flow_of_batch(network, config, seed, indices, images[indices], chain, dtype, wanted, progress)

    return FlowLikelihood(*in_batches(draw, len(images), batch_size, torch.OutOfMemoryError).astype(np.float64).T)
