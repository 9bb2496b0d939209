"""Images from noise: `sample`, its random keys and batches."""

import os
from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from jax_ddpm.spec.batches import in_batches
from jax_ddpm.spec.data_range import from_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, check_sampler, default_sampler
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import EXPECTED_GUIDE, EXPECTED_MODEL, check_images, seeds_and_indices
from jax_ddpm.spec.labels import NONE, Labels, labels_of_images, labels_of_network
from jax_ddpm.spec.noisy_classifier import EXPECTED_CLASSIFIER, NoisyClassifierInfo, check_noisy_classifier
from torch_ref import rng
from torch_ref.layouts import channels_first, device_of, numpy_dtype
from torch_ref.noisy_classifier import load_noisy_classifier
from torch_ref.objectives import make_objective
from torch_ref.sampling.classifier_guidance import class_gradient, guided_by_classifier
from torch_ref.sampling.guidance import guided_predict, self_conditioned
from torch_ref.sampling.reverse import make_step, reverse_process, sampling_timesteps
from torch_ref.sampling.solvers import make_solver
from torch_ref.sampling.steps import initial_history
from torch_ref.schedules import schedule_tables
from torch_ref.weights import load_model

ANCESTRAL = SamplerConfig()  # all T steps


def noise_at(keys: np.ndarray, number: int, shape: tuple[int, int, int], dtype) -> Tensor:
    """Standard normal noise (B, C, H, W) at the address (..., image index, number), on the CPU. shape: (H, W, C)."""
    return rng.normal(rng.fold_in(keys, number), tuple(shape), dtype).permute(0, 3, 1, 2).contiguous()


def image_keys(seed: int | Sequence[int], indices, purpose: int = rng.SAMPLING) -> np.ndarray:
    """Keys (B,) at the addresses (purpose, index). seed: one for all indices (B,), or a sequence with one for each."""
    if np.ndim(seed) == 0:
        return rng.fold_in(rng.key(seed, purpose), indices)
    return np.stack([rng.key(s, purpose, int(i)) for s, i in zip(seed, indices, strict=True)])


@torch.no_grad()
def sample_indices(
    network: nn.Module,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
    seed: int | Sequence[int],
    indices,
    *,
    sampler: SamplerConfig | None = None,
    num_frames: int | tuple[int, ...] = 0,
    dtype=torch.float32,
    progress: Callable | None = None,
    x_T: Tensor | None = None,
    start_t: int | None = None,
    labels: Labels | None = None,
    guide: nn.Module | None = None,
    classifier: nn.Module | None = None,
    classifier_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sample one batch: images `indices` of a seed, or image indices[k] of seed[k]; on the device of the network.

    labels: of these images, from `spec.labels.labels_of_images`. guide: a weaker network, for autoguidance.
    classifier: (x_t, t) -> logits (B, K), for classifier guidance towards labels.of_classifier.
    image_shape: (H, W, C). Returns images (B, C, H, W), about within [-1, 1] whatever the `data_range`, and frames (F,
    B, C, H, W), mapped as the images are. Image i takes its noise from the address (SAMPLING, i, t), and its x_T from
    t = T with every sampler and objective; for edm, x_T is sigma_max times that noise.
    """
    config.check()
    sampler = sampler or default_sampler(config)
    check_sampler(sampler, config)
    keys, device = image_keys(seed, indices), device_of(network)
    chain, visited = sampling_timesteps(config, sampler), sampling_timesteps(config, sampler, start_t)
    labels = tensors(labels, slice(None), device)
    predict = guided_predict(network, config, sampler, labels, guide)
    gradient = None if classifier is None else class_gradient(classifier, labels.of_classifier, classifier_scale)
    self_condition = self_conditioned(network, guide)
    if config.is_continuous:
        step, predict = make_solver(make_objective(config, dtype), sampler, predict, self_condition)
    else:
        tables = schedule_tables(config, numpy_dtype(dtype), chain)
        step_config = config
        if gradient is not None and sampler.sampler != "ddpm":
            step_config, predict = guided_by_classifier(tables, config, predict, gradient)
        step = make_step(tables, step_config, sampler, chain, predict, self_condition, gradient)

    def draw_noise(t):
        return noise_at(keys, t, image_shape, dtype).to(device)

    if x_T is None:
        x_T = draw_noise(config.timesteps)
        x_T = x_T * config.initial_sigma if config.is_continuous else x_T
    history = initial_history(x_T, sampler, self_condition)
    noise = (lambda t: None) if sampler.is_deterministic else draw_noise
    x_0, frames = reverse_process(step, predict, x_T, visited, noise, num_frames, progress, history, self_condition)
    return from_data_range(x_0, config.data_range), from_data_range(frames, config.data_range)


def sample_in_batches(draw: Callable, num_images: int, batch_size: int) -> np.ndarray:
    """`spec.batches.in_batches` for draw(indices) -> (B, C, H, W); returns NumPy (N, H, W, C)."""

    def to_numpy(indices):
        return draw(indices).permute(0, 2, 3, 1).cpu().numpy()

    return in_batches(to_numpy, num_images, batch_size, torch.OutOfMemoryError)


def sample(
    model: nn.Module,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels=None,
    guide=None,
    classifier=None,
    classifier_scale: float = 1.0,
    x_T: np.ndarray | None = None,
    start_t: int | None = None,
    sampler: SamplerConfig | str | None = None,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Sample images from noise: NumPy (N, H, W, C), about within [-1, 1]. Arguments are those of `jax_ddpm.sample`.

    model: what `load_model` returns or takes, or a module (x, t) -> prediction, which needs `config` and `image_shape`.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, image_shape)
    sampler, config = sampling_settings(sampler, config, settings)
    require(start_t is None or x_T is not None, "start_t", start_t, "expected x_T too, the states at start_t")
    if x_T is not None:
        x_T = check_images("x_T", x_T, image_shape, numpy_dtype(dtype))
        num_images = len(x_T)
    elif seeds is not None:
        num_images = len(seeds)
    seeds, image_indices = seeds_and_indices(seed, seeds, num_images)
    classifier = fitting_classifier(classifier, classifier_scale, config, image_shape)
    labels, guide = labels_and_guide(model, labels, num_images, sampler, guide, classifier)

    def draw(indices):
        options = {"sampler": sampler, "dtype": dtype, "progress": progress, "start_t": start_t, "guide": guide}
        if classifier is not None:
            options |= {"classifier": classifier, "classifier_scale": classifier_scale}
        options["labels"] = labels and labels.rows(indices)
        states = None if x_T is None else channels_first(x_T[indices], device_of(network))
        batch_seeds = seeds if np.ndim(seeds) == 0 else [seeds[i] for i in indices]
        batch = image_indices[indices]
        return sample_indices(network, config, image_shape, batch_seeds, batch, **options, x_T=states)[0]

    return sample_in_batches(draw, num_images, batch_size)


def opened(model):
    """The model of a path; anything else as it is."""
    return load_model(model) if isinstance(model, str | os.PathLike) else model


def unpack_model(model, config: DiffusionConfig | None, image_shape: tuple[int, int, int] | None) -> tuple:
    """Network, diffusion settings and image shape of a loaded model, the path of one, or a network.

    Arguments override the model's. Raises UserError for anything else.
    """
    model = opened(model)
    require(isinstance(model, nn.Module), "model", type(model).__name__, EXPECTED_MODEL)
    info = getattr(model, "info", None)
    if info is None:
        return model, config, image_shape
    return model, config or info.diffusion, image_shape or info.image_shape


def labels_and_guide(
    model, labels, num_images: int, sampler: SamplerConfig, guide, classifier=None
) -> tuple[Labels | None, nn.Module | None]:
    """The arrays of `labels` for N images, and the network of the guide, both as in `sample`."""
    guide = opened(guide)
    require(guide is None or hasattr(guide, "info"), "guide", type(guide).__name__, EXPECTED_GUIDE)
    if hasattr(model, "info"):
        infos = model.info, None if guide is None else guide.info
        labels = labels_of_images(
            infos[0], labels, num_images, sampler, infos[1], None if classifier is None else classifier.info
        )
    else:
        require(classifier is None, "model", type(model).__name__, "a classifier needs what load_model returns")
        labels = labels_of_network(labels, num_images, sampler, getattr(model, "null_index", None), guide is not None)
    return labels, guide


def fitting_classifier(
    classifier, scale: float, config: DiffusionConfig, image_shape: tuple[int, int, int]
) -> nn.Module | None:
    """The classifier of `sample`, or of the path of one. Raises UserError if it does not fit the model."""
    if classifier is None:
        require(scale == 1, "classifier_scale", scale, "it has no effect without a classifier (--classifier FILE)")
        return None
    if isinstance(classifier, str | os.PathLike):
        classifier = load_noisy_classifier(classifier)
    is_one = isinstance(getattr(classifier, "info", None), NoisyClassifierInfo)
    require(is_one, "classifier", type(classifier).__name__, EXPECTED_CLASSIFIER)
    check_noisy_classifier(classifier.info, scale, config, image_shape)
    return classifier


def unless_given(model, labels):
    """Labels of images that are edited: no label, unless labels are given."""
    return NONE if labels is None and hasattr(model, "info") and model.info.network.takes_labels else labels


def tensors(labels: Labels | None, indices, device) -> Labels | None:
    """The labels of some images on the device of the network."""
    return labels and labels.map(lambda of_images: torch.from_numpy(of_images[indices]).to(device))
