"""How far the frameworks are apart after steps of training.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import numpy as np
from flax import nnx

import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import data, unets, weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.network_config import ConvBlockConfig, DDPMConfig
from jax_ddpm.spec.run_config import DataConfig, RunConfig, TrainingConfig
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer, make_train_step
from parity_tests.measures import NETWORK, TORCH, compiled

RUN = RunConfig(
    data=DataConfig(image_size=8),
    network=NETWORK,
    training=TrainingConfig(steps=50, batch_size=16, learning_rate=1e-3, ema_decay=0.9, seed=3),
)
SMALL = replace(RUN, network=ConvBlockConfig(widths=(32,), time_width=64))  # for single steps in float64
LEARNED = replace(
    RUN,
    network=DDPMConfig(
        widths=(32,),
        layers_per_block=1,
        down_attention=(False,),
        up_attention=(False,),
        learned_variance=True,
    ),
    diffusion=DiffusionConfig(variance="learned_range"),
)
TO_NOISE = replace(
    SMALL,
    training=replace(RUN.training, seed=7),  # draws the last of the four timesteps for an image of a batch
    diffusion=DiffusionConfig(timesteps=4, beta_end=0.4, objective="v", zero_terminal_snr=True),
)
LABELLED = replace(
    SMALL,
    network=replace(SMALL.network, num_classes=10),
    training=replace(RUN.training, conditional=True),
)
STEPS = 50
DOUBLE_BATCH = 4  # images in a training step in float64: XLA's convolutions are slow in it


@cache
def digit_data() -> data.ImageData:
    return data.load("digits", 8, log=lambda line: None)


def digits() -> np.ndarray:
    return digit_data().train


@cache
def float_digits() -> np.ndarray:
    """As those of `broken_digits` are, so that both have one compiled program."""
    return digits().astype(np.float32)


def batch(step: int, images: np.ndarray, batch_size: int) -> np.ndarray:
    return images[data.batch_indices(RUN.training.seed, step, len(images), batch_size)]


def labels_of(run: RunConfig, step: int) -> tuple[np.ndarray, ...]:
    """The labels of the digits of a batch; () for a run that takes none."""
    return (batch(step, digit_data().labels, run.training.batch_size),) if run.training.conditional else ()


@cache
def train_step_of_jax(run: RunConfig, channels: int, dtype):
    """A compiled step: one program for all measurements with the same settings."""
    optimizer = make_optimizer(run.training)
    net = unets.build(run.network, channels)
    graph, _ = create_state(net, optimizer, True, dtype)
    return compiled(make_train_step(graph, optimizer, run, STEPS), quick=dtype == np.float64)


@cache
def train_jax(run: RunConfig, steps: int, dtype=np.float32, make_images: Callable[[], np.ndarray] = digits):
    """Losses, parameters and EMA after `steps` steps on images, uint8 (N, H, W, C)."""
    images = make_images()
    with jax.enable_x64(dtype == np.float64):
        net = unets.build(run.network, images.shape[-1])
        weights.initialise(net, run.training.seed)
        graph, state = create_state(net, make_optimizer(run.training), True, dtype)
        step = train_step_of_jax(run, images.shape[-1], dtype)
        losses = []
        for number in range(steps):
            state, metrics = step(state, batch(number, images, run.training.batch_size), *labels_of(run, number))
            losses.append(float(metrics["loss"]))
        return losses, *(weights.state_dict(nnx.merge(graph, p, state.buffers)) for p in (state.params, state.ema))


def train_torch(run: RunConfig, steps: int, dtype=np.float32, make_images: Callable[[], np.ndarray] = digits):
    images = make_images()
    net = torch_ref.unets.build(run.network, images.shape[-1])
    torch_ref.weights.initialise(net, run.training.seed)
    net.to(TORCH[dtype])
    state = torch_ref.step.create_state(net, torch_ref.step.make_optimizer(run.training, net), True, TORCH[dtype])
    step, losses = torch_ref.step.make_train_step(run, STEPS), []
    for number in range(steps):
        state, metrics = step(state, batch(number, images, run.training.batch_size), *labels_of(run, number))
        losses.append(metrics["loss"])
    return losses, *(torch_ref.weights.state_dict(n) for n in (state.network, state.ema))


def in_double(run: RunConfig, **changes) -> RunConfig:
    return replace(run, training=replace(run.training, precision="float64", batch_size=DOUBLE_BATCH, **changes))


def furthest(ours: dict, theirs: dict) -> float:
    return float(max(np.abs(ours[name] - theirs[name]).max() for name in ours))


def optimiser_step(run: RunConfig = SMALL, make_images: Callable[[], np.ndarray] = float_digits, **changes) -> float:
    """Of the parameters after one step in float64, in units of the learning rate."""
    run = in_double(run, **changes)
    ours, theirs = (train(run, 1, np.float64, make_images) for train in (train_jax, train_torch))
    return furthest(ours[1], theirs[1]) / run.training.learning_rate


def ema() -> float:
    """Of the averaged weights after three steps in float64, in units of the learning rate."""
    run = in_double(SMALL)
    ours, theirs = (train(run, 3, np.float64, float_digits) for train in (train_jax, train_torch))
    return furthest(ours[2], theirs[2]) / run.training.learning_rate


def broken_digits() -> np.ndarray:
    """Step 1 takes an image that is not finite."""
    images = float_digits().copy()
    images[data.batch_indices(RUN.training.seed, 1, len(images), DOUBLE_BATCH)[0]] = np.nan
    return images


def skipped_step() -> float:
    """Of the parameters after three steps in float64, the second of them not finite, in units of the learning rate."""
    run = in_double(SMALL)
    ours, theirs = (train(run, 3, np.float64, broken_digits) for train in (train_jax, train_torch))
    assert np.isnan(ours[0][1]) and np.isfinite(ours[0][2])
    return furthest(ours[1], theirs[1]) / run.training.learning_rate


def trained():
    """50 steps of jax_ddpm: losses, parameters, EMA."""
    return train_jax(RUN, STEPS)


def trained_parameters() -> dict[str, np.ndarray]:
    return trained()[1]


def fifty_losses() -> float:
    """The largest relative difference of 50 losses on real images, float32."""
    ours, theirs = trained()[0], train_torch(RUN, STEPS)[0]
    return float(np.max(np.abs(np.array(ours) / np.array(theirs) - 1)))


def fifty_parameters() -> float:
    """Root mean square difference of the parameters after 50 steps, as a share of how far they came from the start."""
    ours, theirs = trained()[1], train_torch(RUN, STEPS)[1]
    start = unets.build(NETWORK, 1)
    weights.initialise(start, RUN.training.seed)
    start = weights.state_dict(start)
    apart = sum(np.sum((ours[name] - theirs[name]) ** 2) for name in ours)
    way = sum(np.sum((ours[name] - start[name]) ** 2) for name in ours)
    return float(np.sqrt(apart / way))
