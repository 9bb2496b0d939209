"""How far the frameworks are apart in random numbers, tables and networks: one function for each rung of the ladder.

A measurement computes torch_ref's side anew whenever it is called, so that a fault seeded there shows in it.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.diffusion
import torch_ref.embeddings
import torch_ref.rng
import torch_ref.schedules
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import diffusion, embeddings, rng, unets, weights
from jax_ddpm.schedules import make_tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.network_config import ConvBlockConfig, NetworkConfig
from parity_tests.golden_weights import rule
from parity_tests.networks import Case

NETWORK = ConvBlockConfig(widths=(32, 64, 128), time_width=64)
SCHEDULES = [
    *[DiffusionConfig(schedule=name) for name in ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas")],
    *[DiffusionConfig(schedule=name, zero_terminal_snr=True) for name in ("linear", "scaled_linear")],
    DiffusionConfig(schedule="trained", timesteps=3, trained_betas=(0.2, 0.1, 0.5)),
]
TORCH = {np.float32: torch.float32, np.float64: torch.float64}
QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast: for programs that run once


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
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
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


def label_inputs(config: NetworkConfig, batch: int, dtype) -> tuple[np.ndarray, ...]:
    """The labels of a batch: class 1 and, where there is one, the null label, in turn. () for a network without."""
    if not config.takes_labels:
        return ()
    if config.label_width is not None:
        return (np.random.default_rng(3).standard_normal((batch, config.label_width)).astype(dtype),)
    return (np.resize([1, 0 if config.null_index is None else config.null_index], batch),)


@cache
def program_of_jax(config: NetworkConfig, channels: int, dtype):
    """Compiled (parameters, buffers, x, t) -> (gradients of the mean squared output, output).

    Labels follow t for a network that takes some. BatchNorm uses its running statistics. One program for
    outputs and gradients, and for all weights, because compiling takes most of the time.
    """
    graph, _, _ = nnx.split(unets.build(config, channels), nnx.Param, ...)

    def loss(params, buffers, *inputs):
        y = nnx.merge(graph, params, buffers)(*inputs)
        return jnp.mean(jnp.square(y)), y

    return compiled(jax.grad(loss, has_aux=True), quick=dtype == np.float64 or config != NETWORK)


@cache
def computed_by_jax(make_values: Callable, config: NetworkConfig, channels: int, size: ImageSize, batch: int, dtype):
    """The output, and the gradients by PyTorch name."""
    ours = unets.build(config, channels)
    with jax.enable_x64(dtype == np.float64):
        weights.load_state_dict(ours, make_values(), dtype)
        graph, params, buffers = nnx.split(ours, nnx.Param, ...)
        given = *inputs(batch, size, channels, dtype), *label_inputs(config, batch, dtype)
        grads, y = program_of_jax(config, channels, dtype)(params, buffers, *given)
        assert y.dtype == dtype
        return np.asarray(y), weights.state_dict(nnx.merge(graph, grads, buffers))


def inputs_of_torch(config: NetworkConfig, batch: int, size: ImageSize, channels: int, dtype) -> list[torch.Tensor]:
    x, t = inputs(batch, size, channels, dtype)
    return [channels_first(x), *map(torch.from_numpy, (t, *label_inputs(config, batch, dtype)))]


def network(make_values: Callable, config=NETWORK, *, channels=1, size=(8, 12), batch=2, dtype=np.float32) -> float:
    """Of the network's outputs."""
    theirs = twin(make_values(), config, channels, dtype)
    y = theirs(*inputs_of_torch(config, batch, size, channels, dtype))
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
    torch.mean(torch.square(theirs(*inputs_of_torch(config, batch, size, channels, dtype)))).backward()
    wanted = {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in theirs.named_parameters()}
    largest = max(np.abs(g).max() for g in wanted.values())
    _, ours = computed_by_jax(make_values, config, channels, size, batch, dtype)
    return float(max(np.abs(ours[name] - g).max() for name, g in wanted.items()) / largest)


def of_case(measure: Callable, case: Case, dtype, size: ImageSize | None = None) -> float:
    """`network` or `gradients` of a small configuration with random weights. size: by default the case's."""
    values = random(case.config, case.channels)
    return measure(values, case.config, channels=case.channels, size=size or case.size, dtype=dtype)
