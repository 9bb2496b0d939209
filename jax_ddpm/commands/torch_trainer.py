"""The training loop of the PyTorch reference."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from jax_ddpm import data, report
from jax_ddpm.spec.ema_snapshots import SNAPSHOTS, snapshot_path
from jax_ddpm.spec.model_files import MODEL_FILE, initial_weights
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.run_classes import check_takes_labels, describe_classes, with_classes
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.progress import Intervals, Progress
from jax_ddpm.training.run_folder import MetricsLog, lock_folder
from torch_ref import rng, unets, weights
from torch_ref.objectives import make_objective
from torch_ref.sampling import samplers
from torch_ref.step import create_state, make_optimizer, make_train_step, make_validation


def train(config: RunConfig, folder: Path) -> None:
    """Train in `folder`: the same images, batches, noise and initial weights as `jax_ddpm.train`.

    Writes config.json, metrics.jsonl, model.safetensors and a few pictures, no checkpoints. Raises UserError for data,
    weights or a folder that cannot be used.
    """
    training, d = config.training, config.data
    images = data.load(
        d.dataset,
        d.image_size,
        data_dir=d.data_dir,
        manual_dir=d.manual_dir,
        cache_dir=d.cache_dir,
        validation_fraction=d.validation_fraction,
        value_range=d.value_range,
    )
    # Raises UserError if a batch is larger than the data set.
    data.batch_indices(training.seed, 0, len(images.train), training.batch_size)
    config = with_classes(config, images)
    class_names = images.class_names if training.conditional else None
    info = ModelInfo(config.network, images.train.shape[1:], config.diffusion, class_names=class_names)

    network = unets.build_in(training.precision, info.network, info.image_shape[2])
    check_takes_labels(config, network.forward)
    torch.manual_seed(training.seed)  # for nn.Dropout in a network of the user's own
    if training.init_from is None:
        weights.initialise(network, training.seed)
    else:
        file, checks = training.init_from, (weights.array_shapes, weights.refuse_checkpoint)
        weights.load_state_dict(network, initial_weights(file, info.network, *checks))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    with lock_folder(folder, config, False, images):
        run(config, folder, images, network, info)


def run(config: RunConfig, folder: Path, images: data.ImageData, network: torch.nn.Module, info: ModelInfo):
    training, steps_per_epoch = config.training, len(images.train) // config.training.batch_size
    total_steps = training.steps or training.epochs * steps_per_epoch
    dtype = torch.float64 if training.precision == "float64" else torch.float32
    state = create_state(network, make_optimizer(training, network.to(dtype)), training.ema, dtype, training.power_ema)
    print(describe(info, weights.num_parameters(network)))
    if info.class_names is not None:
        print(describe_classes(config, info.class_names))

    train_step, validate = make_train_step(config, total_steps), make_validation(config)
    objective = make_objective(config.diffusion)
    intervals = Intervals(config, steps_per_epoch, total_steps, len(images.validation) > 0)
    metrics_log = MetricsLog(folder, tqdm.write)
    progress = Progress(
        0,
        total_steps,
        config,
        metrics_log,
        steps_per_epoch,
        intervals,
        lambda step: objective.draw_level(rng.key(training.seed, rng.TIMESTEPS, step), training.batch_size).numpy(),
        tqdm.write,
    )
    best, best_weights, keep_best = math.inf, state.weights, config.output.keep_best
    for step in range(total_steps):
        indices = data.batch_indices(training.seed, step, len(images.train), training.batch_size)
        labels = images.labels[indices] if training.conditional else None
        state, metrics = train_step(state, images.train[indices], labels)
        progress.update(step, 1, {name: np.asarray([value]) for name, value in metrics.items()})
        with progress.pause():
            improved = False
            if intervals.validation(step + 1):
                loss = validation_loss(validate, state.weights, images, training)
                progress.write_row(step + 1, validation_loss=loss)
                improved = keep_best and loss < best
            elif step + 1 == total_steps and metrics_log.pending:
                progress.write_row(step + 1)
            if intervals.snapshot(step + 1):
                (folder / SNAPSHOTS).mkdir(exist_ok=True)
                for average, width in zip(state.power_ema, training.power_ema_widths, strict=True):
                    path = snapshot_path(folder, step + 1, width)
                    write_model(path, weights.state_dict(average), replace(info, step=step + 1))
            if improved:
                best, best_weights = loss, copy.deepcopy(state.weights)
            if improved or (intervals.checkpoint(step + 1) and not keep_best):
                values = weights.state_dict(state.weights)
                write_model(folder / MODEL_FILE, values, replace(info, step=step + 1))
    progress.close()
    network = best_weights if keep_best else state.weights
    network.info = info
    count = min(config.output.num_samples, 16)
    print(f"Sampling {count} images ... {report.channel_note(info.image_shape[2])}".rstrip())
    x_0 = samplers.sample(network.eval(), count, training.seed, sampler=config.sampling, dtype=dtype)
    report.grid(data.to_uint8(x_0)).save(folder / "samples" / "grid.png")
    report.loss_curve(metrics_log.rows()).savefig(folder / "samples" / "loss.png", dpi=120)
    print(f"Pictures: {folder / 'samples'}   Weights: {folder / MODEL_FILE}   Metrics: {metrics_log.path}")


def validation_loss(validate, network, images: data.ImageData, training) -> float:
    total, size = 0.0, training.batch_size
    for number, first in enumerate(range(0, len(images.validation), size)):
        batch = images.validation[first : first + size]
        mask = np.arange(size) < len(batch)
        padding = np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)
        labels = None
        if training.conditional:
            labels = np.pad(images.validation_labels[first : first + size], (0, size - len(batch)))
        total += validate(network, np.concatenate([batch, padding]), mask, number, labels)
    return total / len(images.validation)
