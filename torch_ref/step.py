"""One optimiser step, and everything that it reads and writes.

`config` is the settings of a run (`jax_ddpm.config.RunConfig`), or anything with the same fields.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from torch_ref import diffusion, rng
from torch_ref.layers import Dropout
from torch_ref.layouts import numpy_dtype
from torch_ref.schedules import schedule_tables

Metrics = dict[str, float]


@dataclass
class TrainState:
    """step: optimiser steps done; network; ema: a network alike, or None; optimizer: that of network's parameters."""

    step: int
    network: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer

    @property
    def weights(self) -> nn.Module:
        """What is sampled, validated and exported: the EMA where there is one."""
        return self.network if self.ema is None else self.ema


def create_state(network: nn.Module, optimizer: torch.optim.Optimizer, ema: bool, dtype=torch.float32) -> TrainState:
    """The state of a filled network at step 0, converted to `dtype` in place; the EMA starts as a copy of it."""
    network.to(dtype)
    return TrainState(0, network, copy.deepcopy(network).requires_grad_(False) if ema else None, optimizer)


def learning_rate(config, step: int, total_steps: int) -> float:
    """Linear warm-up from 0, then constant or a cosine to `min_learning_rate` (Loshchilov & Hutter 2017, eq. 5).

    config: a TrainingConfig. Computed in float32, as on the other side.
    """
    step = np.float32(step)
    if step < config.warmup_steps:
        return float(config.learning_rate * step / config.warmup_steps)
    if config.lr_schedule != "cosine":
        return float(np.float32(config.learning_rate))
    progress = np.clip((step - config.warmup_steps) / max(1, total_steps - config.warmup_steps), 0, 1)
    span = config.learning_rate - config.min_learning_rate
    return float(config.min_learning_rate + span * 0.5 * (1 + np.cos(np.pi * progress)))


def make_optimizer(config, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; the learning rate is set before each step. config: a TrainingConfig."""
    settings = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), **settings)
    return torch.optim.AdamW(network.parameters(), **settings, weight_decay=config.weight_decay)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.sqrt(sum(torch.sum(torch.square(g)) for g in gradients))


def clip_by_global_norm(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Gradients of global norm `norm`, scaled down in place to `max_norm` where that is smaller.

    By optax's formula; torch's own adds 1e-6 to the norm.
    """
    if not norm < max_norm:
        for g in gradients:
            g.copy_(g / norm * max_norm)


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """decay * ema + (1 - decay) * params, in place.

    The decay is warmed up: (1 + step) / (10 + step) where that is smaller.
    """
    for e, p in zip(ema.parameters(), network.parameters(), strict=True):
        d = torch.clamp((1.0 + torch.tensor(step, dtype=e.dtype)) / (10.0 + step), max=decay)
        e.copy_(d * e + (1 - d) * p)


def prepare_images(images: Tensor, dtype, flip_key: np.ndarray | None) -> Tensor:
    """uint8 (B, H, W, C) to (B, C, H, W) in [-1, 1], half of them mirrored where a key is given."""
    x = (images.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
    if flip_key is None:
        return x
    coins = rng.bernoulli(flip_key, 0.5, (x.shape[0],)).to(x.device)
    return torch.where(coins[:, None, None, None], x.flip(-1), x)


def draw(t_key: np.ndarray, noise_key: np.ndarray, x_0: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
    """Timesteps (B,) and noise (B, C, H, W) for a batch; the noise is drawn channels last."""
    b, c, h, w = x_0.shape
    t = rng.timesteps(t_key, b, num_timesteps)
    noise = rng.normal(noise_key, (b, h, w, c), x_0.dtype).permute(0, 3, 1, 2).contiguous()
    return t.to(x_0.device), noise.to(x_0.device)


def make_train_step(config, total_steps: int) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Metrics]]:
    """train_step(state, images uint8 (B, H, W, C)) -> (state, metrics): the same state, updated in place.

    Every draw comes from (seed, state.step). Where the loss or a gradient is not finite, the step counts and changes
    nothing else. Metrics: loss, grad_norm (before clipping), learning_rate and skipped (0 or 1).
    """
    training, seed = config.training, config.training.seed
    dropout = getattr(config.network, "dropout", 0.0)
    dtype = torch.float64 if training.precision == "float64" else torch.float32
    tables = schedule_tables(config.diffusion, numpy_dtype(dtype))

    def gradients(network, step, *batch):
        """Loss of the batch, in `accumulate` parts of equal size; the gradients are left in the parameters."""
        total, parts = 0.0, training.accumulate
        for a in range(parts):  # part a takes images a, a + A, a + 2A, ...
            x_0, t, noise, places = (values[a::parts] for values in batch)
            predict = partial(network, dropout=Dropout(dropout, seed, step, places)) if dropout else network
            settings = training.min_snr_gamma, config.diffusion.variance
            loss = diffusion.loss(tables, config.diffusion.objective, predict, x_0, t, noise, *settings)
            loss.backward()
            total = total + loss.detach()
        for p in network.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of a parameter that is not used
        grads = [p.grad for p in network.parameters()]
        if parts > 1:
            for g in grads:
                g.div_(parts)
        return total / parts, grads

    def train_step(state: TrainState, images: np.ndarray) -> tuple[TrainState, Metrics]:
        step, device = state.step, next(state.network.parameters()).device
        flip_key = rng.key(seed, rng.FLIP, step) if config.data.flip else None
        x_0 = prepare_images(torch.as_tensor(images, device=device), dtype, flip_key)
        t_key, noise_key = rng.key(seed, rng.TIMESTEPS, step), rng.key(seed, rng.NOISE, step)
        t, noise = draw(t_key, noise_key, x_0, config.diffusion.timesteps)
        state.optimizer.zero_grad()
        loss, grads = gradients(state.network, step, x_0, t, noise, np.arange(len(x_0)))
        norm, rate = global_norm(grads), learning_rate(training, step, total_steps)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            if training.clip_norm is not None:
                clip_by_global_norm(grads, norm, training.clip_norm)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            if state.ema is not None:
                ema_update(state.ema, state.network, step, training.ema_decay)
        state.step += 1
        metrics = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate, "skipped": float(not finite)}
        return state, metrics

    return train_step


def make_validation(config) -> Callable[[nn.Module, np.ndarray, np.ndarray, int], float]:
    """validate(network, images (B, H, W, C), mask (B,), number) -> summed loss of the masked-in images.

    Batch `number` always meets the same timesteps and noise.
    """
    dtype = torch.float64 if config.training.precision == "float64" else torch.float32
    tables, seed = schedule_tables(config.diffusion, numpy_dtype(dtype)), config.training.seed

    @torch.no_grad()
    def validate(network, images, mask, number):
        device = next(network.parameters()).device
        x_0 = prepare_images(torch.as_tensor(images, device=device), dtype, None)
        t_key = rng.key(seed, rng.VALIDATION, rng.TIMESTEPS, number)
        noise_key = rng.key(seed, rng.VALIDATION, rng.NOISE, number)
        t, noise = draw(t_key, noise_key, x_0, config.diffusion.timesteps)
        settings = config.training.min_snr_gamma, config.diffusion.variance
        errors = diffusion.loss_per_image(tables, config.diffusion.objective, network, x_0, t, noise, *settings)
        return torch.sum(errors * torch.as_tensor(mask, device=device)).item()

    return validate
