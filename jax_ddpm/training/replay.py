"""Repeat one step of a run, to find out why it failed."""

import math
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import jax_ddpm
from jax_ddpm import data, rng, weights
from jax_ddpm.objectives import make_objective
from jax_ddpm.process import check_devices
from jax_ddpm.spec.data_record import check_same_images
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.noise_levels import level_text, symbol
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.feed import Feed, make_dispatch
from jax_ddpm.training.prepare import count_steps, load_images, make_network
from jax_ddpm.training.run_folder import default_out
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import global_norm, make_gradients, make_optimizer, make_train_step


def replay(config: RunConfig, out: Path | None, replay_step: int, log: Callable[[str], None] = print) -> None:
    """Repeat step `replay_step` of a run, counted from 1 as in metrics.jsonl, from the newest checkpoint before it.

    Logs the step's loss, t, image indices and gradient norms; if they are not finite, also the first operation that
    gave nan or inf. Writes nothing. Raises UserError for a step that the run does not have.
    """
    if config.training.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    check_devices()
    folder, training = out or default_out(config), config.training
    data_set = load_images(config, log, resumed=True)
    check_same_images(folder, data_set, log, training.conditional)
    images, labels = data_set.train, data_set.labels if training.conditional else None
    total_steps = count_steps(config, len(images))[1]
    if not 1 <= replay_step <= total_steps:
        raise UserError(f"replay_step = {replay_step}: expected 1 to {total_steps}, the steps of this run.")
    optimizer = make_optimizer(training)
    checkpoints = Checkpoints(folder / "checkpoints", config.output, log)
    has_checkpoint = any(step < replay_step for step in checkpoints.steps())
    network = make_network(config, images.shape[1:], has_checkpoint)
    dtype = np.float64 if training.precision == "float64" else np.float32
    graph, state = create_state(network, optimizer, training.ema, dtype, training.power_ema)
    start = 0
    if found := checkpoints.restore_newest(state, max_step=replay_step - 1):
        start, state, _ = found
    log(f"Repeating the steps after step {start:,} ...")

    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))  # one device is enough, and works for any batch size
    feed = Feed(images, config, mesh, labels)
    state = jax.device_put(state, feed.replicated)
    train_step = make_train_step(graph, optimizer, config, total_steps, mesh, feed.unroll_accumulation)
    dispatch = make_dispatch(train_step, feed.steps_per_dispatch, image_shape=feed.image_shape)
    step = start
    while step < replay_step - 1:
        n = min(feed.next_steps, replay_step - 1 - step)
        state, _ = feed.run(dispatch, state, step, n)
        step += n
    indices = data.batch_indices(training.seed, replay_step - 1, len(images), training.batch_size)
    gradients = jax.jit(make_gradients(graph, config, mesh, feed.unroll_accumulation))
    batch = (images[indices],) if labels is None else (images[indices], labels[indices])
    loss, grads, _ = gradients(state, *batch)
    key = rng.key(training.seed, rng.TIMESTEPS, replay_step - 1)
    levels = np.asarray(make_objective(config.diffusion).draw_level(key, training.batch_size))
    finite = bool(np.isfinite(loss) & np.isfinite(global_norm(grads)))
    result = "finite" if finite else "not finite"
    log(f"Step {replay_step:,}: loss {loss:.6g}, gradient norm {global_norm(grads):.6g}: {result}.")
    log(f"{symbol(config.diffusion)}: {' '.join(map(level_text, levels))}")
    log(f"Training images: {' '.join(map(str, indices))}")
    if labels is not None:
        log(f"Labels, before some are dropped: {' '.join(map(str, labels[indices]))}")
    arrays = weights.torch_arrays(nnx.merge(graph, grads, state.buffers))
    values = {array.name: array.read() for array in arrays if isinstance(array.variable, nnx.Param)}
    for group, norm in norms_by_group(values).items():
        log(f"  gradient norm of {group}: {norm:.4g}")
    if not finite:
        log(f"First operation that gave nan or inf: {first_cause(gradients, state, *batch)}.")


def norms_by_group(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """The gradient norm of each part of the network (enc_convs.0, output, ...)."""
    squares: dict[str, float] = {}
    for name, value in gradients.items():
        first, second, *_ = f"{name}.".split(".")
        group = f"{first}.{second}" if second.isdecimal() else first
        squares[group] = squares.get(group, 0.0) + float(np.sum(np.square(value, dtype=np.float64)))
    return {group: math.sqrt(value) for group, value in squares.items()}


def first_cause(gradients: Callable, *arguments) -> str:
    """The operation that first gave nan or inf, and the line of this package that called it."""
    try:
        with jax.debug_nans(True), jax.debug_infs(True):
            gradients(*arguments)
    except FloatingPointError as error:
        package = str(Path(jax_ddpm.__file__).parent)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
        place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        return f"{error}{place}"
    return "none found by jax_debug_nans and jax_debug_infs"
