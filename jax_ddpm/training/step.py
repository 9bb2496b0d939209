"""One optimiser step: pure, and the same on one device and on many."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm import diffusion, ops, rng
from jax_ddpm.arrays import Array
from jax_ddpm.layers import Dropout, rematerialised
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.run_config import RunConfig, TrainingConfig
from jax_ddpm.training.adam import scale_by_adam
from jax_ddpm.training.state import TrainState

Metrics = dict[str, Array]


def learning_rate(config: TrainingConfig, step: Array | int, total_steps: int) -> Array:
    """Linear warm-up from 0, then constant or a cosine to the minimum (Loshchilov & Hutter 2017, eq. 5). Float32."""
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.full((), config.learning_rate, jnp.float32)
    if config.lr_schedule == "cosine":
        progress = jnp.clip((step - config.warmup_steps) / max(1, total_steps - config.warmup_steps), 0, 1)
        span = config.learning_rate - config.min_learning_rate
        rate = config.min_learning_rate + span * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if config.warmup_steps:
        rate = jnp.where(step < config.warmup_steps, config.learning_rate * step / config.warmup_steps, rate)
    return rate


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Adam or AdamW with PyTorch's constants.

    It turns gradients into directions; the step goes against them, times the learning rate of its number.
    """
    parts = [scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)]
    if config.optimizer == "adamw":
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts)


def global_norm(gradients) -> Array:
    return jnp.sqrt(sum(ops.sum_of_squares(g) for g in jax.tree.leaves(gradients)))


def clip_by_global_norm(gradients, norm: Array, max_norm: float):
    """Gradients of global norm `norm`, scaled down to `max_norm` where that is smaller."""
    return jax.tree.map(lambda g: jnp.where(norm < max_norm, g, g / norm * max_norm), gradients)


def ema_update(ema, params, step: Array, decay: float):
    """decay * ema + (1 - decay) * params, the decay warmed up: (1 + step) / (10 + step) where that is smaller."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (d * e + (1 - d) * p).astype(e.dtype), ema, params)


def prepare_images(images: Array, dtype, flip_key: Array | None) -> Array:
    """uint8 (B, H, W, C) to [-1, 1], half of them mirrored where a key is given."""
    x = images.astype(dtype) / 127.5 - 1
    if flip_key is None:
        return x
    coins = jax.random.bernoulli(flip_key, jnp.float32(0.5), (x.shape[0],))  # float32: else x64 would change the coins
    return jnp.where(coins[:, None, None, None], x[:, :, ::-1], x)


def make_gradients(graph, config: RunConfig, mesh: Mesh | None = None, unroll_accumulation: bool = False) -> Callable:
    """gradients(state, images uint8 (B, H, W, C)) -> (loss, gradients): every draw comes from (seed, state.step)."""
    training, seed = config.training, config.training.seed
    dropout = getattr(config.network, "dropout", 0.0)
    dtype = jnp.float64 if training.precision == "float64" else jnp.float32
    tables = schedule_tables(config.diffusion, dtype)

    def split_by_device(x, *axes):
        return x if mesh is None else lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def loss_of(params, state, x_0, t, noise, places):
        predict = nnx.merge(graph, params, state.buffers)
        if dropout:
            predict = partial(predict, dropout=Dropout(dropout, seed, state.step, places))
        settings = training.min_snr_gamma, config.diffusion.variance
        with rematerialised(training.remat):
            return diffusion.loss(tables, config.diffusion.objective, predict, x_0, t, noise, *settings)

    def in_parts(state, *batch):
        """Of the batch, in `accumulate` parts of equal size."""
        grad = jax.value_and_grad(loss_of)
        if training.accumulate == 1:
            return grad(state.params, state, *batch)

        def parts(x):  # part a takes images a, a + A, a + 2A, ...: every device keeps its own
            x = x.reshape(x.shape[0] // training.accumulate, training.accumulate, *x.shape[1:])
            return split_by_device(x.swapaxes(0, 1), None, "data")

        def add(total, part):
            x_0, *draws = part
            if (
                unroll_accumulation
            ):  # no loop orders the parts, and side by side they would take the memory of the whole batch
                x_0 = x_0 + 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(total))
            return jax.tree.map(jnp.add, total, grad(state.params, state, x_0, *draws)), None

        zero = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, state.params))
        total, _ = lax.scan(add, zero, jax.tree.map(parts, batch), unroll=unroll_accumulation)
        return jax.tree.map(lambda x: x / training.accumulate, total)

    def gradients(state: TrainState, images: Array):
        step = state.step
        flip_key = rng.key(seed, rng.FLIP, step) if config.data.flip else None
        x_0 = split_by_device(prepare_images(images, dtype, flip_key), "data")
        t = rng.timesteps(rng.key(seed, rng.TIMESTEPS, step), x_0.shape[0], config.diffusion.timesteps)
        noise = split_by_device(rng.normal(rng.key(seed, rng.NOISE, step), x_0.shape, dtype), "data")
        return in_parts(state, x_0, t, noise, jnp.arange(x_0.shape[0]))

    return gradients


def make_train_step(
    graph,
    optimizer: optax.GradientTransformationExtraArgs,
    config: RunConfig,
    total_steps: int,
    mesh: Mesh | None = None,
    unroll_accumulation: bool = False,
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """train_step(state, images uint8 (B, H, W, C)) -> (state, metrics), pure.

    Where the loss or a gradient is not finite, the step counts and changes nothing else. Metrics: loss, grad_norm
    (before clipping), learning_rate and skipped (0 or 1), float scalars.
    """
    training, gradients = config.training, make_gradients(graph, config, mesh, unroll_accumulation)

    def train_step(state: TrainState, images: Array) -> tuple[TrainState, Metrics]:
        loss, grads = gradients(state, images)
        norm, rate = global_norm(grads), learning_rate(training, state.step, total_steps)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        if training.clip_norm is not None:
            grads = clip_by_global_norm(grads, norm, training.clip_norm)
        directions, adam = optimizer.update(grads, state.optimizer, state.params, finite=finite)
        params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, state.params, directions)
        params, ema = keep(params, state.params), state.ema
        if ema is not None:
            ema = keep(ema_update(ema, params, state.step, training.ema_decay), ema)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "skipped": (~finite).astype(jnp.float32)}
        return TrainState(state.step + 1, params, ema, adam, state.buffers), metrics

    return train_step


def make_validation(graph, config: RunConfig) -> Callable[[nnx.State, nnx.State, Array, Array, int], Array]:
    """validate(weights, buffers, images (B, H, W, C), mask (B,), number) -> summed loss of the masked-in images.

    Batch `number` always meets the same timesteps and noise.
    """
    dtype = jnp.float64 if config.training.precision == "float64" else jnp.float32
    tables = schedule_tables(config.diffusion, dtype)

    @jax.jit
    def validate(weights, buffers, images, mask, number):
        x_0 = prepare_images(images, dtype, None)
        seed = config.training.seed
        t_key = rng.key(seed, rng.VALIDATION, rng.TIMESTEPS, number)
        t = rng.timesteps(t_key, x_0.shape[0], config.diffusion.timesteps)
        noise = rng.normal(rng.key(seed, rng.VALIDATION, rng.NOISE, number), x_0.shape, dtype)
        network = nnx.merge(graph, weights, buffers)
        settings = config.training.min_snr_gamma, config.diffusion.variance
        errors = diffusion.loss_per_image(tables, config.diffusion.objective, network, x_0, t, noise, *settings)
        return jnp.sum(errors * mask)

    return validate
