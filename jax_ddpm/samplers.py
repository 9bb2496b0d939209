"""The reverse process: one step function, one lax.scan around it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_ddpm import diffusion, rng
from jax_ddpm.arrays import Array
from jax_ddpm.config import DiffusionConfig
from jax_ddpm.errors import UserError
from jax_ddpm.schedules import Tables, make_tables

Images = Float[Array, "b h w c"]


def ancestral_step(
    tables: Tables,
    x_t: Images,
    prediction: Images,
    t: Array,
    noise: Images,
    *,
    objective: str = "eps",
    variance: str = "beta",
    clip: str = "x0",
) -> Images:
    """x_{t-1} from x_t: Ho et al. 2020, Algorithm 2, lines 3 and 4. `t`: one integer for the batch; no noise at t = 0.

    variance: "beta" (sigma_t^2 = beta_t) or "posterior" (beta~_t), section 3.2. clip: "x0" clips the predicted x_0 to
    [-1, 1] and takes the posterior mean; "state" clamps the new x to [-1, 1]; "none" does neither.
    """
    ts = jnp.full((x_t.shape[0],), t)
    if clip == "x0":
        x_0 = diffusion.predicted_x_0(tables, objective, x_t, ts, prediction)
        mean, _ = diffusion.posterior(tables, jnp.clip(x_0, -1, 1), x_t, ts)  # eq. 7
    else:
        eps = diffusion.predicted_eps(tables, objective, x_t, ts, prediction)
        factor = diffusion.at(tables.betas, ts) / diffusion.at(tables.sqrt_one_minus_alpha_bars, ts)
        mean = (x_t - factor * eps) / jnp.sqrt(diffusion.at(tables.alphas, ts))  # eq. 11
    sigma = jnp.sqrt(diffusion.at(tables.betas if variance == "beta" else tables.posterior_variance, ts))
    x = mean + jnp.where(t > 0, sigma, 0) * noise
    return jnp.clip(x, -1, 1) if clip == "state" else x


def reverse_process(
    step: Callable,
    predict: Callable,
    x_T: Images,
    timesteps: int,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """From x_T to x_0 in one scan over t = T-1, ..., 0: x <- step(x, predict(x, t), t, draw_noise(t)).

    predict takes t as integers (B,); step and draw_noise take one integer. Returns x_0 and `num_frames` states evenly
    spaced from x_T to x_0 (none unless asked for), or, for a tuple, the states after so many steps; memory does not
    grow with T. `progress` is called on the host with the number of steps done, about fifty times.
    """
    if isinstance(num_frames, int):
        num_frames = tuple(np.round(np.linspace(0, timesteps, num_frames)).astype(int))
    kept = np.asarray(num_frames, int)
    slots = np.full(timesteps + 1, len(kept), np.int32)  # after k steps the state goes to frame slots[k]; len: nowhere
    slots[kept] = np.arange(len(kept))
    frames = jnp.zeros((len(kept), *x_T.shape), x_T.dtype)
    every = max(1, timesteps // 50)

    def body(carry, t):
        x, frames = carry
        x = step(x, predict(x, jnp.full((x.shape[0],), t)), t, draw_noise(t))
        done = timesteps - t
        if num_frames:
            frames = frames.at[jnp.asarray(slots)[done]].set(x, mode="drop")
        if progress is not None:
            jax.lax.cond(done % every == 0, lambda: jax.debug.callback(progress, done), lambda: None)
        return (x, frames), None

    if num_frames:
        frames = frames.at[slots[0]].set(x_T, mode="drop")
    (x, frames), _ = jax.lax.scan(body, (x_T, frames), jnp.arange(timesteps - 1, -1, -1, dtype=jnp.int32))
    return x, frames


@partial(jax.jit, static_argnames=("graph", "diffusion_config", "shape", "dtype", "num_frames", "progress"))
def _sample(graph, state, keys, diffusion_config, shape, dtype, num_frames, progress):
    tables = make_tables(
        diffusion_config.schedule,
        diffusion_config.timesteps,
        diffusion_config.beta_start,
        diffusion_config.beta_end,
        dtype=dtype,
    )
    step = partial(
        ancestral_step,
        tables,
        objective=diffusion_config.objective,
        variance=diffusion_config.variance,
        clip=diffusion_config.clip,
    )
    timesteps = diffusion_config.timesteps

    def draw_noise(t):
        return jax.vmap(lambda k: rng.normal(jax.random.fold_in(k, t), shape, dtype))(keys)

    network = nnx.merge(graph, state)
    return reverse_process(step, network, draw_noise(timesteps), timesteps, draw_noise, num_frames, progress)


def sample_indices(
    network: nnx.Module,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
    seed: int,
    indices,
    *,
    num_frames: int | tuple[int, ...] = 0,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """Pictures number `indices` of a seed, by ancestral sampling: float (B, H, W, C), around [-1, 1], and frames.

    Picture i is drawn at (SAMPLING, i, t): it does not depend on its batch or on the number of devices, beyond the
    last digits of floating-point arithmetic. The batch is spread over all devices where their number divides it.
    """
    config.check()
    indices = jnp.asarray(indices, jnp.uint32)
    base = rng.key(seed, rng.SAMPLING)
    keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(indices)
    devices = jax.local_devices()
    if len(devices) > 1 and len(indices) % len(devices) == 0:
        mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
        keys = jax.device_put(keys, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        graph, state = nnx.split(network)
        state = jax.device_put(state, replicated)
    else:
        graph, state = nnx.split(network)
    return _sample(graph, state, keys, config, tuple(image_shape), jnp.dtype(dtype), num_frames, progress)


def sample(
    model,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Pictures 0 to num_images - 1 of a seed as a NumPy array (N, H, W, C), around [-1, 1], `batch_size` at a time.

    model: what `load_model` returns, or any NNX module (x, t) -> prediction, which needs `config` and `image_shape`.
    The last batch is filled up and cut, so that all are computed alike. `progress` as in `reverse_process`, per batch.
    Raises UserError for counts below 1.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} = {value}: expected at least 1.")
    info = getattr(model, "info", None)
    network = model if info is None else model.network
    config = config or info.diffusion
    image_shape = image_shape or info.image_shape
    batch_size = min(batch_size, num_images)
    parts = []
    for first in range(0, num_images, batch_size):
        indices = np.arange(first, first + batch_size)
        x_0, _ = sample_indices(network, config, image_shape, seed, indices, dtype=dtype, progress=progress)
        parts.append(np.asarray(x_0))
        jax.effects_barrier()  # progress is told before the next batch begins
    return np.concatenate(parts)[:num_images]
