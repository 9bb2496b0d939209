"""One optimiser step and its state: `jax_ddpm.training.step` and `jax_ddpm.training.state` in PyTorch."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from jax_ddpm.spec.data_range import USUAL, from_levels
from jax_ddpm.spec.power_ema import gamma_of
from jax_ddpm.spec.run_config import RunConfig, TrainingConfig
from torch_ref import diffusion, rng
from torch_ref.layers import FIRST_PASS, Dropout
from torch_ref.objectives import Continuous, Discrete, make_objective
from torch_ref.objectives.discrete import by_timestep
from torch_ref.sampling.guidance import self_conditioned
from torch_ref.unets.tf32 import tf32

Metrics = dict[str, float]


@dataclass
class TrainState:
    """step: the number of optimiser steps done; ema: a copy of `network` that holds the averages, or None.

    power_ema: copies that hold the power-function averages, one for each of `power_ema_widths`; empty without
    --power-ema.
    """

    step: int
    network: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    power_ema: tuple[nn.Module, ...] = ()

    @property
    def weights(self) -> nn.Module:
        """The weights used for sampling, validation and export: the EMA if there is one, else `network`."""
        return self.network if self.ema is None else self.ema


def create_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, ema: bool, dtype=torch.float32, power_ema: bool = False
) -> TrainState:
    """The state at step 0 of an initialised network, which is cast to `dtype`. All averages start as copies of it."""
    network.to(dtype)

    def average() -> nn.Module:
        return copy.deepcopy(network).requires_grad_(False)

    return TrainState(0, network, average() if ema else None, optimizer, tuple(average() for _ in range(2 * power_ema)))


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step (0 is the first), computed in float32 as in jax_ddpm.

    Linear warm-up from 0; then constant, or to the minimum by a line or a cosine (Loshchilov & Hutter 2017, eq. 5).
    """
    step = np.float32(step)
    if step < config.warmup_steps:
        return float(config.learning_rate * step / config.warmup_steps)
    if config.lr_schedule == "constant":
        return float(np.float32(config.learning_rate))
    progress = np.clip((step - config.warmup_steps) / max(1, total_steps - config.warmup_steps), 0, 1)
    span = config.learning_rate - config.min_learning_rate
    share = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + np.cos(np.pi * progress))
    return float(config.min_learning_rate + span * share)


def make_optimizer(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW. The train step sets its learning rate."""
    settings = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), **settings)
    return torch.optim.AdamW(network.parameters(), **settings, weight_decay=config.weight_decay)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm over all gradients together."""
    return torch.sqrt(sum(torch.sum(torch.square(g)) for g in gradients))


def clip_by_global_norm(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients, in place, to the global norm `max_norm` unless `norm` is smaller. norm: their global norm.

    This is optax's formula. PyTorch's own function adds 1e-6 to the norm.
    """
    if not norm < max_norm:
        for g in gradients:
            g.copy_(g / norm * max_norm)


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """d * ema + (1 - d) * params, in place; d = min(decay, (1 + step) / (10 + step)), which warms up the average."""
    for e, p in zip(ema.parameters(), network.parameters(), strict=True):
        d = torch.clamp((1.0 + torch.tensor(step, dtype=e.dtype)) / (10.0 + step), max=decay)
        e.copy_(d * e + (1 - d) * p)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of BatchNorm, and its counters of batches, in a fixed order."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [buffer for layer in norms for buffer in layer.buffers(recurse=False)]


@torch.no_grad()
def copy_statistics(source: Sequence[Tensor], network: nn.Module) -> None:
    """Set the running statistics of a network to those of `running_statistics`, in place."""
    for ours, theirs in zip(running_statistics(network), source, strict=True):
        ours.copy_(theirs)


@torch.no_grad()
def power_ema_update(ema: nn.Module, network: nn.Module, step: int, gamma: float) -> None:
    """beta ema + (1 - beta) params, in place, with beta = (1 - 1/t)^(gamma + 1), t = step + 1.

    Karras et al. 2024, section 3.1. 1 - beta is computed without cancellation.
    """
    for e, p in zip(ema.parameters(), network.parameters(), strict=True):
        one_minus_beta = -torch.expm1((gamma + 1) * torch.log1p(-1 / torch.tensor(step + 1, dtype=e.dtype)))
        e.copy_(e + one_minus_beta * (p - e))


def prepare_images(
    images: Tensor, dtype, flip_key: np.ndarray | None, data_range: tuple[float, float] = USUAL
) -> Tensor:
    """uint8 (B, H, W, C) to floats (B, C, H, W) in `data_range`.

    With a key, each is flipped left to right with probability 1/2.
    """
    x = from_levels(images.to(dtype), data_range).permute(0, 3, 1, 2).contiguous()
    if flip_key is None:
        return x
    flip = rng.bernoulli(flip_key, 0.5, (x.shape[0],)).to(x.device)
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def drop_labels(k: np.ndarray, labels: Tensor, null_index: int, rate: float) -> Tensor:
    """Labels (B,), each replaced by the null label with probability `rate` (Ho & Salimans 2022, algorithm 1)."""
    return torch.where(rng.bernoulli(k, rate, labels.shape).to(labels.device), null_index, labels)


def draw_level_and_noise(
    level_key: np.ndarray, noise_key: np.ndarray, x_0: Tensor, objective: Discrete | Continuous
) -> tuple[Tensor, Tensor]:
    """Noise levels (B,) and noise (B, C, H, W) for a batch. The noise is drawn channels last."""
    b, c, h, w = x_0.shape
    level = objective.draw_level(level_key, b)
    noise = rng.normal(noise_key, (b, h, w, c), x_0.dtype).permute(0, 3, 1, 2).contiguous()
    return level.to(x_0.device), noise.to(x_0.device)


def make_train_step(config: RunConfig, total_steps: int) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns train_step(state, images uint8 (B, H, W, C), labels=None) -> (state, metrics); it changes the state.

    labels: integers (B,), for a network with classes. Those that are dropped are drawn inside.

    If the loss or a gradient is not finite, the step is skipped: only `state.step` increases, and the power-function
    averages take the unchanged parameters once more. All averages have the running statistics of the raw network's
    BatchNorm, as PyTorch's AveragedModel keeps them. Metrics: loss, grad_norm (before clipping), learning_rate and
    skipped (0 or 1). Every random number depends only on (seed, state.step).
    """
    training, seed = config.training, config.training.seed
    dropout = getattr(config.network, "dropout", 0.0)
    dtype = torch.float64 if training.precision == "float64" else torch.float32
    objective, null_index = make_objective(config.diffusion, dtype), config.network.null_index

    def in_training(network, step, image_indices, labels, first_call=0):
        """The network as (x, t) -> prediction with labels and dropout."""
        predict = network
        if dropout and "dropout" in inspect.signature(network.forward).parameters:
            predict = partial(network, dropout=Dropout(dropout, seed, step, image_indices, first_call))
        return partial(predict, labels=labels[0]) if labels else predict

    @torch.no_grad()
    def first_x_0(network, step, x_0, level, noise, image_indices, labels):
        """In every second step on average, the x_0 that the network predicts without an x_0, else zeros.

        Chen et al. 2023: self-conditioning. No gradient passes through it.
        """
        x_t = objective.noised(x_0, level, noise)
        if not bool(rng.bernoulli(rng.key(seed, rng.SELF_CONDITION, step), 0.5, ())):
            return torch.zeros_like(x_t)
        predict = in_training(network, step, image_indices, labels, FIRST_PASS)
        prediction = by_timestep(predict, config.diffusion)(*objective.network_input(x_t, level))
        return objective.predicted_x_0(x_t, level, diffusion.split_prediction(prediction, x_t)[0])

    def gradients(network, step, *batch):
        """Loss and gradients of the batch: the mean over `accumulate` parts of equal size."""
        total, parts = 0.0, training.accumulate
        for a in range(parts):  # part a takes images a, a + A, a + 2A, ...
            x_0, level, noise, image_indices, *labels = (values[a::parts] for values in batch)
            predict = in_training(network, step, image_indices, labels)
            if self_conditioned(network):
                given = first_x_0(network, step, x_0, level, noise, image_indices, labels)
                predict = partial(predict, x_self_cond=given)
            loss = objective.loss(predict, x_0, level, noise, **training.loss_settings)
            loss.backward()
            total = total + loss.detach()
        for p in network.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # None: the parameter is not used
            if parts > 1:
                p.grad.div_(parts)
        return total / parts, [p.grad for p in network.parameters()]

    def train_step(
        state: TrainState, images: np.ndarray, labels: np.ndarray | None = None
    ) -> tuple[TrainState, Metrics]:
        step, device = state.step, next(state.network.parameters()).device
        flip_key = rng.key(seed, rng.FLIP, step) if config.data.flip else None
        x_0 = prepare_images(torch.as_tensor(images, device=device), dtype, flip_key, config.diffusion.data_range)
        level_key, noise_key = rng.key(seed, rng.TIMESTEPS, step), rng.key(seed, rng.NOISE, step)
        level, noise = draw_level_and_noise(level_key, noise_key, x_0, objective)
        state.optimizer.zero_grad()
        batch = x_0, level, noise, np.arange(len(x_0))
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
            if null_index is not None and training.label_dropout:
                k = rng.key(seed, rng.LABEL_DROPOUT, step)
                labels = drop_labels(k, labels, null_index, training.label_dropout)
            batch = *batch, labels
        statistics = [value.clone() for value in running_statistics(state.network)]
        with tf32(training.precision == "tf32"):  # for the backward pass
            loss, grads = gradients(state.network, step, *batch)
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
        else:
            copy_statistics(statistics, state.network)
        for average in filter(None, (state.ema, *state.power_ema)):
            copy_statistics(running_statistics(state.network), average)
        for average, width in zip(state.power_ema, training.power_ema_widths, strict=bool(state.power_ema)):
            power_ema_update(average, state.network, step, gamma_of(width))
        state.step += 1
        metrics = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate, "skipped": float(not finite)}
        return state, metrics

    return train_step


def make_validation(config: RunConfig) -> Callable[..., float]:
    """Returns validate(network, images uint8 (B, H, W, C), mask bool (B,), batch_index, labels=None) -> sum.

    The sum of the losses is over the images whose mask is True. Noise levels and noise depend only on the seed and
    `batch_index`. labels: as in `make_train_step`; none is dropped.
    """
    dtype = torch.float64 if config.training.precision == "float64" else torch.float32
    objective, seed = make_objective(config.diffusion, dtype), config.training.seed

    @torch.no_grad()
    def validate(network, images, mask, batch_index, labels=None):
        device = next(network.parameters()).device
        x_0 = prepare_images(torch.as_tensor(images, device=device), dtype, None, config.diffusion.data_range)
        level_key = rng.key(seed, rng.VALIDATION, rng.TIMESTEPS, batch_index)
        noise_key = rng.key(seed, rng.VALIDATION, rng.NOISE, batch_index)
        level, noise = draw_level_and_noise(level_key, noise_key, x_0, objective)
        in_training = network.training
        network.eval()
        predict = network
        if labels is not None:
            predict = partial(network, labels=torch.as_tensor(labels, dtype=torch.int64, device=device))
        losses = objective.loss_per_image(predict, x_0, level, noise, **config.training.loss_settings)
        network.train(in_training)
        return torch.sum(losses * torch.as_tensor(mask, device=device)).item()

    return validate
