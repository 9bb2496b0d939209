"""One optimiser step: pure, and the same on one device and on many."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm import diffusion, ops, rng
from jax_ddpm.arrays import Array
from jax_ddpm.layers import FIRST_PASS, Dropout, Statistic, batch_statistics, remat_blocks, store_statistics
from jax_ddpm.objectives import make_objective
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.sampling.guidance import self_conditioned
from jax_ddpm.spec.data_range import USUAL, from_levels
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.power_ema import gamma_of
from jax_ddpm.spec.run_config import RunConfig, TrainingConfig
from jax_ddpm.training import fsdp
from jax_ddpm.training.adam import scale_by_adam
from jax_ddpm.training.state import TrainState
from jax_ddpm.unets.flax_layers import dropout_in_layers

Metrics = dict[str, Array]


def learning_rate(config: TrainingConfig, step: Array | int, total_steps: int) -> Array:
    """Learning rate of a step (0 is the first), float32.

    Linear warm-up from 0; then constant, or to the minimum by a line or a cosine (Loshchilov & Hutter 2017, eq. 5).
    """
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.full((), config.learning_rate, jnp.float32)
    if config.lr_schedule != "constant":
        progress = jnp.clip((step - config.warmup_steps) / max(1, total_steps - config.warmup_steps), 0, 1)
        span = config.learning_rate - config.min_learning_rate
        share = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
        rate = config.min_learning_rate + span * share
    if config.warmup_steps:
        rate = jnp.where(step < config.warmup_steps, config.learning_rate * step / config.warmup_steps, rate)
    return rate


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Adam or AdamW with PyTorch's constants.

    Its updates do not contain the learning rate: the train step computes params - learning_rate * update.
    """
    transformations = [scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)]
    if config.optimizer == "adamw":
        transformations.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*transformations)


def global_norm(gradients) -> Array:
    """L2 norm over all gradients together."""
    return jnp.sqrt(sum(ops.sum_of_squares(g) for g in jax.tree.leaves(gradients)))


def clip_by_global_norm(gradients, norm: Array, max_norm: float):
    """The gradients, scaled to the global norm `max_norm` unless `norm` is smaller. norm: their global norm."""
    return jax.tree.map(lambda g: jnp.where(norm < max_norm, g, g / norm * max_norm), gradients)


def ema_update(ema, params, step: Array, decay: float):
    """d * ema + (1 - d) * params with d = min(decay, (1 + step) / (10 + step)), which warms up the average."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (d * e + (1 - d) * p).astype(e.dtype), ema, params)


def power_ema_update(ema, params, step: Array, gamma: float):
    """beta ema + (1 - beta) params with beta = (1 - 1/t)^(gamma + 1), t = step + 1 (Karras et al. 2024, section 3.1).

    After step t this is the integral of the profile of `spec.power_ema` over parameters that are constant within each
    step. 1 - beta is computed without cancellation.
    """
    one_minus_beta = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / (step + 1.0)))
    return jax.tree.map(lambda e, p: (e + one_minus_beta * (p - e)).astype(e.dtype), ema, params)


def prepare_images(images: Array, dtype, flip_key: Array | None, data_range: tuple[float, float] = USUAL) -> Array:
    """uint8 (B, H, W, C) to floats in `data_range`. With a key, each is flipped left to right with probability 1/2."""
    x = from_levels(images.astype(dtype), data_range)
    if flip_key is None:
        return x
    # float32: with x64 a Python float would be float64 and give other draws.
    flip = jax.random.bernoulli(flip_key, jnp.float32(0.5), (x.shape[0],))
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def drop_labels(k: Array, labels: Array, null_index: int, rate: float) -> Array:
    """Labels (B,), each replaced by the null label with probability `rate` (Ho & Salimans 2022, algorithm 1)."""
    # float32: with x64 a Python float would be float64 and give other draws.
    return jnp.where(jax.random.bernoulli(k, jnp.float32(rate), labels.shape), null_index, labels)


def with_statistics(buffers: nnx.State, statistics: nnx.State) -> nnx.State:
    """The buffers of a network with these running statistics of BatchNorm."""
    return nnx.merge_state(buffers, statistics) if statistics else buffers


def make_gradients(graph, config: RunConfig, mesh: Mesh | None = None, unroll_accumulation: bool = False) -> Callable:
    """Returns gradients(state, images uint8 (B, H, W, C), labels int32 (B,) or None) -> (loss, gradients, statistics).

    statistics: the running statistics of BatchNorm after the pass; empty for a network without. Every random number
    depends only on (seed, state.step). labels: None for a network without classes. mesh: shards the batch over its
    devices. unroll_accumulation: unroll the loop over the parts of an accumulated batch.
    """
    training, seed = config.training, config.training.seed
    rate, is_own = getattr(config.network, "dropout", 0.0), config.network.name not in BUILT_IN
    dtype = jnp.float64 if training.precision == "float64" else jnp.float32
    objective, null_index = make_objective(config.diffusion, dtype), config.network.null_index

    def shard(x, *axes):
        return x if mesh is None else lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def in_training(network, state, image_indices, labels, first_call=0):
        """The network as (x, t) -> prediction with labels and dropout, and the context in which to call it."""
        predict, in_layers = network, nullcontext()
        parameters = inspect.signature(predict).parameters if is_own else ()
        if rate or is_own:
            dropout = Dropout(rate, seed, state.step, image_indices, first_call)
            if is_own:
                in_layers = dropout_in_layers(dropout)
            if rate and (not is_own or "dropout" in parameters):
                predict = partial(predict, dropout=dropout)
        return predict if labels is None else partial(predict, labels=labels), in_layers

    def first_x_0(params, state, x_0, level, noise, image_indices, labels):
        """In every second step on average, the x_0 that the network predicts without an x_0, else zeros.

        Chen et al. 2023: self-conditioning. No gradient passes through it.
        """
        x_t = objective.noised(x_0, level, noise)
        coin = jax.random.bernoulli(rng.key(seed, rng.SELF_CONDITION, state.step), jnp.float32(0.5))

        def predicted():
            network = nnx.merge(graph, lax.stop_gradient(params), state.buffers)
            predict, in_layers = in_training(network, state, image_indices, labels, FIRST_PASS)
            with in_layers:
                prediction = by_timestep(predict, config.diffusion)(*objective.network_input(x_t, level))
            return objective.predicted_x_0(x_t, level, diffusion.split_prediction(prediction, x_t)[0])

        return lax.cond(coin, predicted, lambda: jnp.zeros_like(x_t))

    def loss_of(params, state, statistics, x_0, level, noise, image_indices, labels=None):
        network = nnx.merge(graph, params, with_statistics(state.buffers, statistics))
        predict, in_layers = in_training(network, state, image_indices, labels)
        if self_conditioned(network):
            given = first_x_0(params, state, x_0, level, noise, image_indices, labels)
            predict = partial(predict, x_self_cond=given)
        with remat_blocks(training.remat), in_layers, batch_statistics() as found:
            loss = objective.loss(predict, x_0, level, noise, **training.loss_settings)
        store_statistics(found)
        return loss, nnx.state(network, Statistic)

    def accumulated(state, *batch):
        """Loss and gradients of the batch: the mean over `accumulate` parts of equal size.

        The parts change the running statistics one after another.
        """
        grad = jax.value_and_grad(loss_of, has_aux=True)
        statistics = nnx.filter_state(state.buffers, Statistic)
        if training.accumulate == 1:
            (loss, statistics), grads = grad(state.params, state, statistics, *batch)
            return loss, grads, statistics

        def split(x):  # part a of A takes images a, a + A, a + 2A, ...: no image moves to another device
            x = x.reshape(x.shape[0] // training.accumulate, training.accumulate, *x.shape[1:]).swapaxes(0, 1)
            return x if by_device(state) else shard(x, None, "data")

        def add(carry, part):
            total, statistics = carry
            x_0, *draws = part
            if unroll_accumulation:
                # Unrolled parts could run at the same time and need the memory of the whole batch.
                # This dependency on the previous part makes them run one after another.
                x_0 = x_0 + 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(total))
            (loss, statistics), grads = grad(state.params, state, statistics, x_0, *draws)
            return (jax.tree.map(jnp.add, total, (loss, grads)), statistics), None

        zero = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, state.params))
        parts = jax.tree.map(split, batch)
        (total, statistics), _ = lax.scan(add, (zero, statistics), parts, unroll=unroll_accumulation)
        return *jax.tree.map(lambda x: x / training.accumulate, total), statistics

    def by_device(state) -> bool:
        """Whether each device computes the gradients of its images, and the mean of all is then taken in float32.

        Otherwise XLA adds up the gradients of bfloat16 products over the devices in bfloat16. BatchNorm needs the
        statistics of the whole batch. Programs for CPUs stay as they are.
        """
        several = mesh is not None and mesh.size > 1 and training.precision == "bfloat16" and ops.platform() != "cpu"
        return several and not nnx.filter_state(state.buffers, Statistic)

    def averaged(state, *batch):
        """As `accumulated`, of a batch that is split over the devices."""

        def of_device(state, *part):
            loss, grads, statistics = accumulated(state, *part)
            return *lax.pmean((loss, grads), "data"), statistics

        by_image = (PartitionSpec("data"),) * len(batch)
        arguments = {"mesh": mesh, "in_specs": (PartitionSpec(), *by_image), "out_specs": PartitionSpec()}
        return jax.shard_map(of_device, **arguments, check_vma=False)(state, *batch)

    def gradients(state: TrainState, images: Array, labels: Array | None = None):
        step, compute = state.step, averaged if by_device(state) else accumulated
        if fsdp.is_on(training.fsdp, mesh):  # ZeRO-3: the forward and backward pass need all parameters
            whole = fsdp.constrain_whole(state.params, mesh)
            state = replace(state, params=whole, ema=None, optimizer=(), power_ema=())
        flip_key = rng.key(seed, rng.FLIP, step) if config.data.flip else None
        x_0 = shard(prepare_images(images, dtype, flip_key, config.diffusion.data_range), "data")
        level = objective.draw_level(rng.key(seed, rng.TIMESTEPS, step), x_0.shape[0])
        noise = shard(rng.normal(rng.key(seed, rng.NOISE, step), x_0.shape, dtype), "data")
        batch = x_0, level, noise, jnp.arange(x_0.shape[0])
        if labels is None:
            return compute(state, *batch)
        if null_index is not None and training.label_dropout:
            k = rng.key(seed, rng.LABEL_DROPOUT, step)
            labels = drop_labels(k, labels, null_index, training.label_dropout)
        return compute(state, *batch, shard(labels, "data"))

    return gradients


def make_train_step(
    graph,
    optimizer: optax.GradientTransformationExtraArgs,
    config: RunConfig,
    total_steps: int,
    mesh: Mesh | None = None,
    unroll_accumulation: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns train_step(state, images uint8 (B, H, W, C), labels=None) -> (state, metrics), a pure function.

    labels: int32 (B,), for a network with classes. Those that are dropped are drawn inside.

    If the loss or a gradient is not finite, the step is skipped: only `state.step` increases, and the power-function
    averages take the unchanged parameters once more. Running statistics of BatchNorm are not averaged: the EMA is used
    with those of the raw network, as by PyTorch's AveragedModel. Metrics are float scalars: loss, grad_norm (before
    clipping), learning_rate and skipped (0 or 1).
    """
    training, gradients = config.training, make_gradients(graph, config, mesh, unroll_accumulation)
    gammas = [gamma_of(width) for width in training.power_ema_widths]

    def split(tree):
        """With --fsdp: each device holds and updates its part of these arrays."""
        return fsdp.constrain_split(tree, mesh) if fsdp.is_on(training.fsdp, mesh) else tree

    def train_step(state: TrainState, images: Array, labels: Array | None = None) -> tuple[TrainState, Metrics]:
        loss, grads, statistics = gradients(state, images, labels)
        grads = split(grads)
        norm, rate = global_norm(grads), learning_rate(training, state.step, total_steps)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def if_finite(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        if training.clip_norm is not None:
            grads = clip_by_global_norm(grads, norm, training.clip_norm)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, finite=finite)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
        params, ema = if_finite(params, state.params), state.ema
        if ema is not None:
            ema = if_finite(ema_update(ema, params, state.step, training.ema_decay), ema)
        statistics = if_finite(statistics, nnx.filter_state(state.buffers, Statistic))
        buffers = with_statistics(state.buffers, statistics)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "skipped": (~finite).astype(jnp.float32)}
        averages = zip(state.power_ema, gammas, strict=bool(state.power_ema))
        power_ema = tuple(power_ema_update(average, params, state.step, gamma) for average, gamma in averages)
        params, ema, optimizer_state, power_ema = split((params, ema, optimizer_state, power_ema))
        return TrainState(state.step + 1, params, ema, optimizer_state, buffers, power_ema), metrics

    return train_step


def make_validation(graph, config: RunConfig, mesh: Mesh | None = None) -> Callable[..., Array]:
    """Returns validate(weights, buffers, images uint8 (B, H, W, C), mask bool (B,), batch_index, labels=None) -> sum.

    The sum of the losses is over the images whose mask is True. Noise levels and noise depend only on the seed and
    `batch_index`. labels: as in `make_train_step`; none is dropped. mesh: that of the training, whose weights may be
    split over its devices.
    """
    dtype = jnp.float64 if config.training.precision == "float64" else jnp.float32
    objective = make_objective(config.diffusion, dtype)

    @jax.jit
    def validate(weights, buffers, images, mask, batch_index, labels=None):
        x_0 = prepare_images(images, dtype, None, config.diffusion.data_range)
        seed = config.training.seed
        level = objective.draw_level(rng.key(seed, rng.VALIDATION, rng.TIMESTEPS, batch_index), x_0.shape[0])
        noise = rng.normal(rng.key(seed, rng.VALIDATION, rng.NOISE, batch_index), x_0.shape, dtype)
        if fsdp.is_on(config.training.fsdp, mesh):
            weights = fsdp.constrain_whole(weights, mesh)
        network = nnx.merge(graph, weights, buffers)
        if labels is not None:
            network = partial(network, labels=labels)
        losses = objective.loss_per_image(network, x_0, level, noise, **config.training.loss_settings)
        return jnp.sum(losses * mask)

    return validate
