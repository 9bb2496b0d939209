"""How far the frameworks are apart: one function for each thing that is measured on the ladder.

A measurement computes torch_ref's side anew whenever it is called, so that a fault seeded there shows in it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.flow
import torch_ref.likelihood
import torch_ref.sampling.reverse
import torch_ref.sampling.samplers
import torch_ref.sampling.steps
import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import data, diffusion, embeddings, rng, unets, weights
from jax_ddpm.evaluation import bits_per_dimension, flow_bits_per_dimension
from jax_ddpm.sampling import reverse, samplers
from jax_ddpm.sampling.steps import first_history
from jax_ddpm.schedules import make_tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.network_config import ConvBlockConfig, DDPMConfig, NetworkConfig
from jax_ddpm.spec.run_config import DataConfig, RunConfig, TrainingConfig
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer, make_train_step
from parity_tests.golden_weights import rule
from parity_tests.networks import Case

NETWORK = ConvBlockConfig(widths=(32, 64, 128), time_width=64)
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
SCHEDULES = [
    *[DiffusionConfig(schedule=name) for name in ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas")],
    *[DiffusionConfig(schedule=name, zero_terminal_snr=True) for name in ("linear", "scaled_linear")],
    DiffusionConfig(schedule="trained", timesteps=3, trained_betas=(0.2, 0.1, 0.5)),
]
STEPS = 50
QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast: for programs that run once
TORCH = {np.float32: torch.float32, np.float64: torch.float64}
DOUBLE_BATCH = 4  # images in a training step in float64: XLA's convolutions are slow in it
NUM_SAMPLES = {np.float32: 8, np.float64: 2}  # float64 takes ten times as long


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def channels_first(x) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def compiled(function: Callable, quick: bool) -> Callable:
    """The jitted function. quick: on CPUs, without LLVM's optimisations."""
    return jax.jit(function, compiler_options=QUICK if quick and jax.default_backend() == "cpu" else None)


def relative(ours, theirs) -> float:
    """The largest difference, as a share of the largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# Random numbers, tables, embeddings, noising


def bits() -> float:
    """How many of 2^16 words, uniforms and integers at one address differ."""
    k, twin = rng.key(7, rng.NOISE, 5), torch_ref.rng.key(7, torch_ref.rng.NOISE, 5)
    pairs = [
        (jax.random.bits(k, (2**16,)), torch_ref.rng.bits(twin, (2**16,))),
        (jax.random.uniform(k, (2**16,)), torch_ref.rng.uniform(twin, (2**16,)).numpy()),
        (rng.timesteps(k, 2**16, 1000), torch_ref.rng.timesteps(twin, 2**16, 1000).numpy()),
    ]
    return float(sum(np.sum(np.asarray(a) != b) for a, b in pairs))


def normals() -> float:
    ours = rng.normal(rng.key(7, rng.NOISE, 5), (2**16,))
    theirs = torch_ref.rng.normal(torch_ref.rng.key(7, torch_ref.rng.NOISE, 5), (2**16,))
    return float(np.abs(np.asarray(ours) - theirs.numpy()).max())


def tables() -> float:
    """How many entries of all tables of all schedules differ."""
    count = 0
    for config in SCHEDULES:
        ours, theirs = vars(schedule_tables(config)), vars(torch_ref.schedules.schedule_tables(config))
        count += sum(np.sum(ours[name] != theirs[name]) for name in ours)
    return float(count)


def embedding() -> float:
    t, table = np.arange(1000), embeddings.geometric_frequencies(256)
    ours = embeddings.interleaved_embedding(jnp.asarray(t), jnp.asarray(table))
    theirs = torch_ref.embeddings.interleaved_embedding(
        torch.from_numpy(t), torch.from_numpy(torch_ref.embeddings.geometric_frequencies(256))
    )
    return float(np.abs(np.asarray(ours) - theirs.numpy()).max())


def noising() -> float:
    g = np.random.default_rng(1)
    x_0, noise = (
        g.uniform(-1, 1, (100, 8, 8, 3)).astype(np.float32),
        g.standard_normal((100, 8, 8, 3)).astype(np.float32),
    )
    t = np.linspace(0, 999, 100).astype(int)
    ours = diffusion.q_sample(make_tables(), x_0, jnp.asarray(t), noise)
    theirs = torch_ref.diffusion.q_sample(
        torch_ref.schedules.make_tables(), channels_first(x_0), torch.from_numpy(t), channels_first(noise)
    )
    return relative(ours, channels_last(theirs))


# Networks


def random_weights(config: NetworkConfig, channels: int) -> dict[str, np.ndarray]:
    """Weights by the golden rule: norms and biases are not at their special initial values."""
    values = {}
    for e in weights.torch_arrays(unets.build(config, channels)):
        computed = e.layer is None and not np.isnan(e.variable[...]).any()
        values[e.name] = e.to_torch(e.variable[...]) if computed else rule(e.name, e.shape)
        if e.name == "time_embed.embed.0.weight":
            values[e.name] /= 1000  # strided takes t as it is: else t drowns all features, and every fault in them
    return values


@cache
def random(config: NetworkConfig, channels: int) -> Callable:
    """`random_weights` to come: one function for one network, by which jax_ddpm's side is remembered."""
    return cache(partial(random_weights, config, channels))


def twin(values: dict[str, np.ndarray], config: NetworkConfig, channels: int, dtype) -> torch.nn.Module:
    """torch_ref's network with these weights."""
    theirs = torch_ref.unets.build(config, channels)
    torch_ref.weights.load_state_dict(theirs, values, dtype)
    return theirs


def pair(values: dict[str, np.ndarray], config: NetworkConfig, channels: int, dtype):
    """The network in both frameworks with the same weights."""
    ours = unets.build(config, channels)
    weights.load_state_dict(ours, values, dtype)
    return ours, twin(values, config, channels, dtype)


def inputs(batch: int, size: ImageSize, channels: int, dtype):
    g = np.random.default_rng(2)
    x = g.standard_normal((batch, *height_and_width(size), channels)).astype(dtype)
    return x, g.integers(0, 1000, batch)


@cache
def program_of_jax(config: NetworkConfig, channels: int, dtype):
    """Compiled (parameters, buffers, x, t) -> (gradients of the mean squared output, output).

    One program for outputs and gradients, and for all weights, because compiling takes most of the time.
    """
    graph, _, _ = nnx.split(unets.build(config, channels), nnx.Param, ...)

    def loss(params, buffers, x, t):
        y = nnx.merge(graph, params, buffers)(x, t)
        return jnp.mean(jnp.square(y)), y

    return compiled(jax.grad(loss, has_aux=True), quick=dtype == np.float64 or config != NETWORK)


@cache
def computed_by_jax(make_values: Callable, config: NetworkConfig, channels: int, size: ImageSize, batch: int, dtype):
    """The output, and the gradients by PyTorch name."""
    ours = unets.build(config, channels)
    with jax.enable_x64(dtype == np.float64):
        weights.load_state_dict(ours, make_values(), dtype)
        graph, params, buffers = nnx.split(ours, nnx.Param, ...)
        x, t = inputs(batch, size, channels, dtype)
        grads, y = program_of_jax(config, channels, dtype)(params, buffers, x, t)
        assert y.dtype == dtype
        return np.asarray(y), weights.state_dict(nnx.merge(graph, grads, buffers))


def network(make_values: Callable, config=NETWORK, *, channels=1, size=(8, 12), batch=2, dtype=np.float32) -> float:
    """Of the network's outputs."""
    theirs = twin(make_values(), config, channels, dtype)
    x, t = inputs(batch, size, channels, dtype)
    y = theirs(channels_first(x), torch.from_numpy(t))
    return relative(computed_by_jax(make_values, config, channels, size, batch, dtype)[0], channels_last(y))


def block() -> float:
    """Of one ConvBlock alone, float64."""
    values = random_weights(NETWORK, 1)
    with jax.enable_x64(True):
        ours, theirs = pair(values, NETWORK, 1, np.float64)
        g = np.random.default_rng(3)
        x, time = g.standard_normal((2, 8, 8, 32)), g.standard_normal((2, 64))
        y = ours.encoder[1](jnp.asarray(x), jnp.asarray(time))
        return relative(y, channels_last(theirs.enc_convs[1](channels_first(x), torch.from_numpy(time))))


def gradients(make_values: Callable, config=NETWORK, *, channels=1, size=(8, 12), batch=2, dtype=np.float64) -> float:
    """Of every parameter's gradient, as a share of the largest gradient of all."""
    theirs = twin(make_values(), config, channels, dtype)
    x, t = inputs(batch, size, channels, dtype)
    torch.mean(torch.square(theirs(channels_first(x), torch.from_numpy(t)))).backward()
    wanted = {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in theirs.named_parameters()}
    largest = max(np.abs(g).max() for g in wanted.values())
    _, ours = computed_by_jax(make_values, config, channels, size, batch, dtype)
    return float(max(np.abs(ours[name] - g).max() for name, g in wanted.items()) / largest)


def of_case(measure: Callable, case: Case, dtype, size: ImageSize | None = None) -> float:
    """`network` or `gradients` of a small configuration with random weights. size: by default the case's."""
    values = random(case.config, case.channels)
    return measure(values, case.config, channels=case.channels, size=size or case.size, dtype=dtype)


# Training


@cache
def digits() -> np.ndarray:
    return data.load("digits", 8, log=lambda line: None).train


@cache
def float_digits() -> np.ndarray:
    """As those of `broken_digits` are, so that both have one compiled program."""
    return digits().astype(np.float32)


def batch(step: int, images: np.ndarray, batch_size: int) -> np.ndarray:
    return images[data.batch_indices(RUN.training.seed, step, len(images), batch_size)]


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
            state, metrics = step(state, batch(number, images, run.training.batch_size))
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
        state, metrics = step(state, batch(number, images, run.training.batch_size))
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


# Sampling


def reverse_steps() -> float:
    """One reverse step at several t, for each objective, variance and clipping, float32."""
    kinds = [
        DiffusionConfig(objective=objective, variance=variance, clip=clip)
        for objective in ("eps", "x0", "v")
        for variance in ("beta", "posterior")
        for clip in ("x0", "state", "none")
    ]
    limits = [DiffusionConfig(clip="x0", clip_range=0.5), DiffusionConfig(clip="dynamic", clip_max=1.5)]
    return max(reverse_steps_of(config, SamplerConfig()) for config in [*kinds, *limits])


def reverse_steps_from_pure_noise() -> float:
    """One step of each sampler at several t of a schedule that ends in pure noise, float32."""
    kinds = [
        DiffusionConfig(objective=objective, clip=clip, schedule="scaled_linear", zero_terminal_snr=True)
        for objective, clip in (("v", "none"), ("x0", "x0"))
    ]
    samplers = ("ddpm", "ddim", "dpmpp", "heun", "euler")
    return max(reverse_steps_of(config, SamplerConfig(sampler)) for config in kinds for sampler in samplers)


def reverse_steps_of(config: DiffusionConfig, sampler: SamplerConfig) -> float:
    """One step of a sampler at the first and the last two timesteps and in the middle, float32."""
    g, chain, worst = np.random.default_rng(4), np.arange(1000)[::-1], 0.0
    x, prediction, noise = (g.standard_normal((3, 8, 8, 1)).astype(np.float32) for _ in range(3))
    ours, theirs = schedule_tables(config), torch_ref.schedules.schedule_tables(config)
    step = reverse.make_step(ours, config, sampler, chain, lambda x, t: x / 2)
    twin_step = torch_ref.sampling.reverse.make_step(theirs, config, sampler, chain, lambda x, t: x / 2)
    history, twin_history = (), ()
    if sampler.sampler == "dpmpp":
        history, twin_history = [first_history(x)], [torch_ref.sampling.steps.first_history(channels_first(x))]
    for t in (999, 998, 500, 1, 0):
        a = step(x, prediction, jnp.int32(t), noise, *history)
        b = twin_step(channels_first(x), channels_first(prediction), t, channels_first(noise), *twin_history)
        if history:
            (a, *history), (b, *twin_history) = a, b
        assert np.isfinite(a).all()
        worst = max(worst, relative(a, channels_last(b)))
    return worst


@cache
def sampled_by_jax(dtype, sampler: SamplerConfig, size: ImageSize) -> np.ndarray:
    """Whole samples of the trained network, (N, H, W, 1)."""
    with jax.enable_x64(dtype == np.float64):
        ours, _ = pair(trained()[2], NETWORK, 1, dtype)
        settings = {"sampler": sampler, "config": DiffusionConfig(), "image_shape": (*height_and_width(size), 1)}
        return samplers.sample(ours, NUM_SAMPLES[dtype], 11, **settings, dtype=dtype)


def sampled(dtype, sampler: SamplerConfig, size: ImageSize = 8) -> tuple[np.ndarray, np.ndarray]:
    """The same samples from both frameworks."""
    theirs = twin(trained()[2], NETWORK, 1, dtype)
    settings = {"sampler": sampler, "config": DiffusionConfig(), "image_shape": (*height_and_width(size), 1)}
    return sampled_by_jax(dtype, sampler, size), torch_ref.sampling.samplers.sample(
        theirs, NUM_SAMPLES[dtype], 11, **settings, dtype=TORCH[dtype]
    )


def reverse_process(dtype=np.float32, sampler: SamplerConfig = samplers.ANCESTRAL, size: ImageSize = 8) -> float:
    return float(np.abs(np.subtract(*sampled(dtype, sampler, size))).max())


def pixels(dtype=np.float32, sampler: SamplerConfig = samplers.ANCESTRAL) -> float:
    """The share of 8-bit pixels that differ; 1 (all) if any is more than one level apart."""
    a, b = (data.to_uint8(x).astype(int) for x in sampled(dtype, sampler))
    return 1.0 if np.abs(a - b).max() > 1 else float(np.mean(a != b))


# Likelihood


class Formula(nnx.Module):
    """Some bounded function of the pixel, its neighbour and t, and a share for a learned variance."""

    def __call__(self, x, t):
        prediction = jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t.astype(x.dtype)).reshape(-1, 1, 1, 1)
        return jnp.concatenate([prediction, jnp.cos(3 * prediction)], axis=-1)


class TorchFormula(torch.nn.Module):
    def forward(self, x, t):
        prediction = torch.tanh(x + 0.5 * torch.roll(x, 1, 3)) + 0.1 * torch.sin(t.to(x.dtype)).reshape(-1, 1, 1, 1)
        return torch.cat([prediction, torch.cos(3 * prediction)], dim=1)


BOUND_KINDS = [
    DiffusionConfig(timesteps=12, beta_end=0.4, objective=objective, variance=variance, clip=clip)
    for objective, variance, clip in (("x0", "posterior", "x0"), ("v", "learned_range", "none"))
]
OF_NETWORK = DiffusionConfig(timesteps=12, beta_end=0.4, objective="eps", variance="beta", clip="none")


def levels() -> np.ndarray:
    """Three small images, which have the lowest and the highest level."""
    g = np.random.default_rng(5)
    return g.choice(np.uint8([0, 1, 100, 254, 255]), (3, 2, 3, 2))


@cache
def bound_by_jax(config: DiffusionConfig) -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"config": config, "dtype": jnp.float64}
        return bits_per_dimension(Formula(), levels(), None, 9, 2, **settings).per_image


def bounds() -> float:
    """Bits per dimension of each image from all timesteps, for several objectives and variances, float64."""
    worst = 0.0
    for config in BOUND_KINDS:
        settings = {"config": config, "dtype": torch.float64}
        theirs = torch_ref.likelihood.bits_per_dimension(TorchFormula(), levels(), None, 9, 2, **settings)
        worst = max(worst, relative(bound_by_jax(config), theirs.per_image))
    return worst


@cache
def network_bound_by_jax() -> np.ndarray:
    with jax.enable_x64(True):
        ours, _ = pair(random(SMALL.network, 1)(), SMALL.network, 1, np.float64)
        return bits_per_dimension(ours, digits()[:2], 4, config=OF_NETWORK, dtype=jnp.float64).per_image


def network_bound() -> float:
    """Bits per dimension of two digits from drawn timesteps, with a network, float64."""
    theirs = twin(random(SMALL.network, 1)(), SMALL.network, 1, np.float64)
    settings = {"config": OF_NETWORK, "dtype": torch.float64}
    found = torch_ref.likelihood.bits_per_dimension(theirs, digits()[:2], 4, **settings)
    return relative(network_bound_by_jax(), found.per_image)


@cache
def flow_by_jax() -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"config": BOUND_KINDS[-1], "dtype": jnp.float64}
        return flow_bits_per_dimension(Formula(), levels(), 7, 9, 3, **settings).per_image


def flow() -> float:
    """Bits per dimension of each image by the probability-flow ODE, float64."""
    settings = {"config": BOUND_KINDS[-1], "dtype": torch.float64}
    found = torch_ref.flow.flow_bits_per_dimension(TorchFormula(), levels(), 7, 9, 3, **settings)
    return relative(flow_by_jax(), found.per_image)
