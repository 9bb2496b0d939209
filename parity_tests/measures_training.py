"""How far the frameworks are apart after steps of training.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import data, unets, weights
from jax_ddpm.spec import power_ema as power_ema_algebra
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.network_config import ConvBlockConfig, DDPMConfig
from jax_ddpm.spec.power_ema import gamma_of
from jax_ddpm.spec.run_config import DataConfig, RunConfig, TrainingConfig
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import learning_rate, make_optimizer, make_train_step, power_ema_update
from parity_tests.measures import NETWORK, TORCH, compiled

RUN = RunConfig(
    data=DataConfig(image_size=8),
    network=NETWORK,
    training=TrainingConfig(steps=50, batch_size=16, learning_rate=1e-3, ema_decay=0.9, seed=3),
)
SMALL = replace(  # for single steps in float64
    RUN,
    network=ConvBlockConfig(widths=(32,), time_width=64),
    training=replace(RUN.training, power_ema=True),
)
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
    graph, _ = create_state(net, optimizer, True, dtype, run.training.power_ema)
    return compiled(make_train_step(graph, optimizer, run, STEPS), quick=dtype == np.float64)


@cache
def train_jax(run: RunConfig, steps: int, dtype=np.float32, make_images: Callable[[], np.ndarray] = digits):
    """Losses, parameters, EMA and power-function averages after `steps` steps on images, uint8 (N, H, W, C)."""
    images = make_images()
    with jax.enable_x64(dtype == np.float64):
        net = unets.build(run.network, images.shape[-1])
        weights.initialise(net, run.training.seed)
        graph, state = create_state(net, make_optimizer(run.training), True, dtype, run.training.power_ema)
        step = train_step_of_jax(run, images.shape[-1], dtype)
        losses = []
        for number in range(steps):
            state, metrics = step(state, batch(number, images, run.training.batch_size), *labels_of(run, number))
            losses.append(float(metrics["loss"]))
        averages = (state.params, state.ema, *state.power_ema)
        return losses, *(weights.state_dict(nnx.merge(graph, p, state.buffers)) for p in averages)


def train_torch(run: RunConfig, steps: int, dtype=np.float32, make_images: Callable[[], np.ndarray] = digits):
    images = make_images()
    net = torch_ref.unets.build(run.network, images.shape[-1])
    torch_ref.weights.initialise(net, run.training.seed)
    net.to(TORCH[dtype])
    optimizer = torch_ref.step.make_optimizer(run.training, net)
    state = torch_ref.step.create_state(net, optimizer, True, TORCH[dtype], run.training.power_ema)
    step, losses = torch_ref.step.make_train_step(run, STEPS), []
    for number in range(steps):
        state, metrics = step(state, batch(number, images, run.training.batch_size), *labels_of(run, number))
        losses.append(metrics["loss"])
    return losses, *(torch_ref.weights.state_dict(n) for n in (state.network, state.ema, *state.power_ema))


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


def power_ema(make_images: Callable[[], np.ndarray] = float_digits) -> float:
    """Of both power-function averages after three steps in float64, in units of the learning rate."""
    run = in_double(SMALL)
    ours, theirs = (train(run, 3, np.float64, make_images) for train in (train_jax, train_torch))
    return max(furthest(ours[i], theirs[i]) for i in (3, 4)) / run.training.learning_rate


@cache
def walk() -> np.ndarray:
    """A random walk of 50 weights from a random start, float64 (128, 50)."""
    return np.cumsum(np.random.default_rng(5).standard_normal((128, 50)), axis=0)


@cache
def snapshots_of_jax() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages of two widths of `walk`, every 4 steps: steps (64,), exponents (64,) and averages (64, 50)."""
    gammas = [gamma_of(width) for width in TrainingConfig().power_ema_widths]
    with jax.enable_x64(True):

        def step(averages, number):
            values = jnp.asarray(walk())[number]
            averages = [power_ema_update(a, values, number, gamma) for a, gamma in zip(averages, gammas, strict=True)]
            return averages, averages

        _, stored = jax.lax.scan(step, [jnp.zeros(50)] * 2, jnp.arange(128))
    steps = np.arange(4, 129, 4)
    averages = np.concatenate([np.asarray(a)[steps - 1] for a in stored])
    return np.tile(steps, 2), np.repeat(gammas, len(steps)), averages


def other_widths() -> float:
    """Of averages of four widths, combined from snapshots of jax_ddpm, and averaged directly by torch_ref.

    The root mean square difference, as a share of that between the direct average and the last weights.
    """
    steps, gammas, averages = snapshots_of_jax()
    worst = 0.0
    for width in (0.03, 0.07, 0.12, 0.2):
        combined = power_ema_algebra.coefficients(steps, gammas, 128, gamma_of(width)) @ averages
        network, direct = (torch.nn.ParameterList([torch.zeros(50, dtype=torch.float64)]) for _ in range(2))
        for number, values in enumerate(walk()):
            network[0].data = torch.from_numpy(values)
            torch_ref.step.power_ema_update(direct, network, number, gamma_of(width))
        direct = direct[0].detach().numpy()
        worst = max(worst, np.sqrt(np.mean((combined - direct) ** 2) / np.mean((direct - walk()[-1]) ** 2)))
    return float(worst)


def broken_digits(step: int = 1) -> np.ndarray:
    """The step takes an image that is not finite."""
    images = float_digits().copy()
    images[data.batch_indices(RUN.training.seed, step, len(images), DOUBLE_BATCH)[0]] = np.nan
    return images


def broken_at_the_end() -> np.ndarray:
    """The third step is skipped."""
    return broken_digits(2)


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


def learning_rates() -> float:
    """Of the rates of all schedules, before, in and after the decay, relative."""
    errors = []
    for schedule in ("cosine", "linear", "constant"):
        config = TrainingConfig(lr_schedule=schedule, warmup_steps=20, learning_rate=3e-4)
        for at in (1, 19, 20, 21, 57, 99, 100, 130):
            theirs = float(learning_rate(config, at, 100))
            errors.append(abs(torch_ref.step.learning_rate(config, at, 100) / theirs - 1))
    return max(errors)
