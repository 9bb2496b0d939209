"""Pictures from noise: keys of pictures, batches, devices, and `sample`."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_ddpm import rng
from jax_ddpm.arrays import Array
from jax_ddpm.sampling.reverse import initial_carry, make_step, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.steps import first_history
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.batches import in_batches
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.inputs import check_images, seeds_and_indices

Images = Float[Array, "b h w c"]
ANCESTRAL = SamplerConfig()  # all T steps


def noise_at(keys: Array, number, shape: tuple[int, int, int], dtype) -> Images:
    """The draw at (..., image index, number) for each picture's key."""
    return rng.normal(jax.vmap(lambda k: jax.random.fold_in(k, number))(keys), shape, dtype)


compiled_noise_at = jax.jit(noise_at, static_argnames=("shape", "dtype"))


@partial(jax.jit, static_argnames=("graph", "config", "sampler", "dtype"))
def _sample(graph, state, keys, carry, xs, config, sampler, dtype):
    network, chain = nnx.merge(graph, state), sampling_timesteps(config, sampler)
    step = make_step(schedule_tables(config, dtype, chain), config, sampler, chain, network)

    def draw_noise(t):
        return None if sampler.is_deterministic else noise_at(keys, t, carry[0].shape[1:], dtype)

    return scan_steps(step, network, draw_noise, carry, xs)


def image_keys(seed: int | Sequence[int], indices, purpose: int = rng.SAMPLING) -> Array:
    """Keys of pictures: number `indices` of one seed, or of one seed each."""
    if np.ndim(seed) == 0:
        base = rng.key(seed, purpose)
        return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.asarray(indices, jnp.uint32))
    return jnp.stack([rng.key(s, purpose, int(i)) for s, i in zip(seed, indices, strict=True)])


def shard(network: nnx.Module, *arrays: Array | None) -> tuple:
    """The network's graph and state, and arrays of one row per image, over all devices where they divide the images.

    On one device the arrays are placed as the state is, as is what comes of both: else it would be compiled for twice.
    """
    graph, state = nnx.split(network)
    state = jax.device_put(state)  # once for all parts of the chain
    devices = jax.local_devices()
    if len(devices) > 1 and len(arrays[0]) % len(devices) == 0:
        mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
        arrays = jax.device_put(arrays, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    elif isinstance(leaf := next(iter(jax.tree.leaves(state)), None), jax.Array) and leaf.committed:
        arrays = jax.device_put(arrays, leaf.sharding)
    return graph, state, *arrays


def sample_indices(
    network: nnx.Module,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
    seed: int | Sequence[int],
    indices,
    *,
    sampler: SamplerConfig = ANCESTRAL,
    num_frames: int | tuple[int, ...] = 0,
    dtype=jnp.float32,
    progress: Callable | None = None,
    x_T: Images | None = None,
    start_t: int | None = None,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """Pictures number `indices` of a seed, or of one seed each: float (B, H, W, C), around [-1, 1], and frames.

    Picture i is drawn at (SAMPLING, i, t), x_T at t = T whatever the chain: it does not depend on its batch or on the
    number of devices, beyond the last digits of floating-point arithmetic. The batch is spread over all devices where
    their number divides it. Raises UserError for settings that do not fit.
    """
    config.check()
    sampler.check(config.timesteps)
    graph, state, keys, x_T = shard(network, image_keys(seed, indices), x_T)
    shape, dtype = tuple(image_shape), jnp.dtype(dtype)
    x_T = compiled_noise_at(keys, config.timesteps, shape, dtype) if x_T is None else jnp.asarray(x_T)
    history = first_history(x_T) if sampler.sampler == "dpmpp" else None
    carry, xs = initial_carry(x_T, sampling_timesteps(config, sampler, start_t), num_frames, history)

    def run(carry, xs):
        return _sample(graph, state, keys, carry, xs, config, sampler, dtype)

    return run_with_progress(run, carry, xs, progress)


def sample_in_batches(draw: Callable, num_images: int, batch_size: int) -> np.ndarray:
    """`spec.batches.in_batches` for draw(indices) -> (B, H, W, C) on JAX's devices."""

    def to_numpy(indices):
        return np.asarray(draw(indices))

    memory_error = jax.errors.JaxRuntimeError, "RESOURCE_EXHAUSTED"
    return in_batches(to_numpy, num_images, batch_size, *memory_error, len(jax.local_devices()))


def sample(
    model,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    x_T: Array | None = None,
    start_t: int | None = None,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Pictures 0 to num_images - 1 of a seed as a NumPy array (N, H, W, C), around [-1, 1], `batch_size` at a time.

    seeds: one picture of each of these seeds instead, its picture 0. x_T: (N, H, W, C), the states to start from
    instead of drawn ones, one picture of each; they are states at the chain's first timestep, or, with start_t, at its
    first one that is at most start_t, where the chain then begins. model: what `load_model` returns, or any NNX module
    (x, t) -> prediction, which needs `config` and `image_shape`. `progress` as in `reverse_process`, per batch. Raises
    UserError for counts below 1, and for shapes and settings that do not fit.
    """
    network, config, image_shape = unpack_model(model, config, image_shape)
    require(start_t is None or x_T is not None, "start_t", start_t, "expected x_T besides, the states at that time")
    if x_T is not None:
        x_T = check_images("x_T", x_T, image_shape, dtype)
        num_images = len(x_T)
    elif seeds is not None:
        num_images = len(seeds)
    seeds, all_indices = seeds_and_indices(seed, seeds, num_images)

    def draw(indices):
        settings = {"sampler": sampler, "dtype": dtype, "progress": progress, "start_t": start_t}
        states = None if x_T is None else x_T[indices]
        of = seeds if np.ndim(seeds) == 0 else [seeds[i] for i in indices]
        return sample_indices(network, config, image_shape, of, all_indices[indices], **settings, x_T=states)[0]

    return sample_in_batches(draw, num_images, batch_size)


def unpack_model(model, config: DiffusionConfig | None, image_shape: tuple[int, int, int] | None) -> tuple:
    """Network, settings and image shape of what `load_model` returns, or of a bare network and what is given."""
    info = getattr(model, "info", None)
    if info is None:
        return model, config, image_shape
    return model.network, config or info.diffusion, image_shape or info.image_shape
