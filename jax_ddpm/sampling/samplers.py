"""Images from noise: `sample`, its random keys, batches and devices."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_ddpm import rng
from jax_ddpm.arrays import Array
from jax_ddpm.layers import cast_once
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling.classifier_guidance import class_gradient, guided_by_classifier
from jax_ddpm.sampling.guidance import guided_predict, self_conditioned
from jax_ddpm.sampling.processes import drawn_by_all, num_drawing
from jax_ddpm.sampling.reverse import initial_carry, make_step, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.solvers import make_solver
from jax_ddpm.sampling.steps import initial_history
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.batches import in_batches
from jax_ddpm.spec.data_range import from_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, check_sampler, default_sampler
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import EXPECTED_GUIDE, EXPECTED_MODEL, check_images, seeds_and_indices
from jax_ddpm.spec.labels import NONE, Labels, labels_of_images, labels_of_network
from jax_ddpm.spec.noisy_classifier import EXPECTED_CLASSIFIER, check_noisy_classifier
from jax_ddpm.weights.model import Model, load_model
from jax_ddpm.weights.noisy_classifier import NoisyClassifier, load_noisy_classifier

Images = Float[Array, "b h w c"]
ANCESTRAL = SamplerConfig()  # all T steps


def noise_at(keys: Array, number, shape: tuple[int, int, int], dtype) -> Images:
    """Standard normal noise (B, *shape) at the address (..., image index, number). keys: (B,), from `image_keys`."""
    return rng.normal(jax.vmap(lambda k: jax.random.fold_in(k, number))(keys), shape, dtype)


compiled_noise_at = jax.jit(noise_at, static_argnames=("shape", "dtype"))


def scan_sampler(
    predict: Callable,
    keys: Array,
    carry: tuple,
    xs: tuple,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    dtype,
    self_condition: bool = False,
    gradient: Callable | None = None,
) -> tuple:
    """`scan_steps` of a sampler. predict: the network, (x, t) -> prediction. keys: of the images, from `image_keys`.

    gradient: of a classifier, from `class_gradient`.
    """
    chain = sampling_timesteps(config, sampler)
    if config.is_continuous:
        step, predict = make_solver(make_objective(config, dtype), sampler, predict, self_condition)
        return scan_steps(step, predict, lambda i: None, carry, xs, self_condition)
    tables = schedule_tables(config, dtype, chain)
    if gradient is not None and sampler.sampler != "ddpm":
        config, predict = guided_by_classifier(tables, config, predict, gradient)
    step = make_step(tables, config, sampler, chain, predict, self_condition, gradient)

    def draw_noise(t):
        return None if sampler.is_deterministic else noise_at(keys, t, carry[0].shape[1:], dtype)

    return scan_steps(step, predict, draw_noise, carry, xs, self_condition)


@partial(jax.jit, static_argnames=("graph", "config", "sampler", "dtype"))
def _sample(graph, state, keys, labels, carry, xs, config, sampler, dtype, scale=None):
    network, guide, classifier = nnx.merge(graph, state)
    predict = guided_predict(network, config, sampler, labels, guide)
    gradient = None if classifier is None else class_gradient(classifier, labels.of_classifier, scale)
    self_condition = self_conditioned(network, guide)
    with cast_once(network, guide, classifier):
        return scan_sampler(predict, keys, carry, xs, config, sampler, dtype, self_condition, gradient)


def image_keys(seed: int | Sequence[int], indices, purpose: int = rng.SAMPLING) -> Array:
    """Keys (B,) at the addresses (purpose, index). seed: one for all indices (B,), or a sequence with one for each."""
    if np.ndim(seed) == 0:
        base = rng.key(seed, purpose)
        return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.asarray(indices, jnp.uint32))
    return jnp.stack([rng.key(s, purpose, int(i)) for s, i in zip(seed, indices, strict=True)])


def shard(networks: nnx.Module | tuple[nnx.Module | None, ...], *arrays: Array | tuple | None) -> tuple:
    """Split the networks into graph and state, and put state and arrays on the devices: (graph, state, *arrays).

    The arrays have one row per image. If the number of devices divides the number of images, they are sharded over all
    devices. On one device they get the placement of the state. The sampler's results have the same placement, and are
    the inputs of its next call: with another placement of the arrays, the sampler would be compiled twice.
    """
    graph, state = nnx.split(networks)
    state = jax.device_put(state)  # once for all calls
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
    sampler: SamplerConfig | None = None,
    num_frames: int | tuple[int, ...] = 0,
    dtype=jnp.float32,
    progress: Callable | None = None,
    x_T: Images | None = None,
    start_t: int | None = None,
    labels: Labels | None = None,
    guide: nnx.Module | None = None,
    classifier: nnx.Module | None = None,
    classifier_scale: float = 1.0,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """Sample one batch: images `indices` of a seed, or image indices[k] of seed[k].

    labels: of these images, from `spec.labels.labels_of_images`. guide: a weaker network, for autoguidance.
    classifier: (x_t, t) -> logits (B, K), for classifier guidance towards labels.of_classifier.

    Image i takes its noise from the address (SAMPLING, i, t), and its x_T from t = T with every sampler and objective;
    for edm, x_T is sigma_max times that noise. So an image does not depend on its batch or on the number of devices, up
    to rounding. The batch is sharded over all devices if their number divides it. sampler: by default that of `sample`.

    Returns:
        Images (B, H, W, C), about within [-1, 1] whatever the `data_range`, and frames (F, B, H, W, C) as in
        `reverse_process`, mapped as the images are. x_T is not mapped: it is a state, in the network's range.

    Raises:
        UserError: settings that do not fit.
    """
    config.check()
    sampler = sampler or default_sampler(config)
    check_sampler(sampler, config)
    graph, state, keys, x_T, labels = shard((network, guide, classifier), image_keys(seed, indices), x_T, labels)
    shape, dtype = tuple(image_shape), jnp.dtype(dtype)
    if x_T is None:
        x_T = compiled_noise_at(keys, config.timesteps, shape, dtype)
        x_T = x_T * config.initial_sigma if config.is_continuous else x_T
    else:
        x_T = jnp.asarray(x_T)
    history = initial_history(x_T, sampler, self_conditioned(network, guide))
    carry, xs = initial_carry(x_T, sampling_timesteps(config, sampler, start_t), num_frames, history)

    scale = None if classifier is None else jnp.asarray(classifier_scale, dtype)

    def run(carry, xs):
        return _sample(graph, state, keys, labels, carry, xs, config, sampler, dtype, scale)

    x_0, frames = run_with_progress(run, carry, xs, progress)
    return from_data_range(x_0, config.data_range), from_data_range(frames, config.data_range)


def sample_in_batches(
    draw: Callable, num_images: int, batch_size: int, keep: Callable[[np.ndarray, np.ndarray], None] | None = None
) -> np.ndarray:
    """`spec.batches.in_batches` for draw(indices) -> (B, H, W, C) on JAX devices.

    batch_size: of each process, if several draw together (`processes.drawing_together`); then a batch is not made
    smaller if it does not fit. keep: called with the indices and the images of each batch.
    """
    count = num_drawing()
    draw_batch = drawn_by_all(draw) if count > 1 else draw

    def to_numpy(indices):
        images = np.asarray(draw_batch(indices))
        if keep is not None:
            keep(indices, images)
        return images

    memory_error = (jax.errors.JaxRuntimeError, "RESOURCE_EXHAUSTED") if count == 1 else ((), "")
    return in_batches(to_numpy, num_images, batch_size * count, *memory_error, len(jax.local_devices()))


def sample(
    model: Any,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    guide: Any = None,
    classifier: Any = None,
    classifier_scale: float = 1.0,
    x_T: Array | None = None,
    start_t: int | None = None,
    sampler: SamplerConfig | str | None = None,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Sample images from noise.

    An image depends on its seed and its index only: it is the same in every batch size and on any number of devices,
    up to rounding. If the memory of the device does not hold a batch, the batch size is halved, with a warning.

    Args:
        model: a `Model` from `load_model`, what `load_model` takes, such as the path of a run, or an NNX module (x, t)
            -> prediction with x (B, H, W, C) and t integers (B,) in [0, T). The latter needs `config` and
            `image_shape`.
        num_images: N, at least 1: images 0 to N - 1 of the seed.
        seed: integer in [0, 2^32).
        batch_size: images at a time, at least 1.
        seeds: N seeds, to sample image 0 of each of them instead.
        labels: for a model with classes, one label for all images, or N of them: the name of a class, its number, or
            None or "none" for no label. Default: the classes in turn, so that image i has class i mod K. Or floats
            (N, D), as in `spec.labels.labels_of_images`.
        guide: a weaker `Model`, or the path of one, away from which the images are guided (autoguidance), in place of
            the model without labels. Needs guidance.
        classifier: what `load_noisy_classifier` returns, or the path of one: the images are guided towards the classes
            that it gives them (Dhariwal & Nichol 2021). A model without classes then takes those of the classifier as
            labels. Not for the objectives edm and flow.
        classifier_scale: weight of the classifier. 0: none; larger: closer to the class, with less variety.
        x_T: float (N, H, W, C), initial states instead of drawn ones: states at the first timestep of the sampler.
        start_t: integer in [0, T). Start at the sampler's first timestep that is at most start_t. Needs x_T, which are
            then states at that timestep.
        sampler: its name, such as "ddim", or all its settings. Default: ddpm with T steps; for the objectives edm and
            flow, heun with 32 steps.
        config: diffusion settings. Default: those of the `Model`.
        image_shape: (H, W, C). Default: that of the `Model`.
        dtype: of the states x_t: float32, or float64 (needs jax_enable_x64).
        progress: called with the number of steps done, about fifty times per batch.
        settings: single settings of the sampler (num_steps, spacing, eta, guidance, guidance_rescale,
            guidance_interval) and of the diffusion (variance, clip, clip_percentile, clip_range, clip_max, sigma_min,
            sigma_max, rho), over those in `sampler` and `config`.

    Returns:
        NumPy array (N, H, W, C), about within [-1, 1].

    Raises:
        UserError: a count below 1, a wrong shape, or settings that do not fit.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, image_shape)
    sampler, config = sampling_settings(sampler, config, settings)
    require(start_t is None or x_T is not None, "start_t", start_t, "expected x_T too, the states at start_t")
    if x_T is not None:
        x_T = check_images("x_T", x_T, image_shape, dtype)
        num_images = len(x_T)
    elif seeds is not None:
        num_images = len(seeds)
    seeds, image_indices = seeds_and_indices(seed, seeds, num_images)
    classifier = fitting_classifier(classifier, classifier_scale, config, image_shape)
    labels, guide = labels_and_guide(model, labels, num_images, sampler, guide, classifier)

    def draw(indices):
        options = {"sampler": sampler, "dtype": dtype, "progress": progress, "start_t": start_t, "guide": guide}
        if classifier is not None:
            options |= {"classifier": classifier.network, "classifier_scale": classifier_scale}
        options["labels"] = labels and labels.rows(indices)
        states = None if x_T is None else x_T[indices]
        batch_seeds = seeds if np.ndim(seeds) == 0 else [seeds[i] for i in indices]
        batch = image_indices[indices]
        return sample_indices(network, config, image_shape, batch_seeds, batch, **options, x_T=states)[0]

    return sample_in_batches(draw, num_images, batch_size)


def opened(model):
    """The model of a path; anything else as it is."""
    return load_model(model) if isinstance(model, str | os.PathLike) else model


def unpack_model(model, config: DiffusionConfig | None, image_shape: tuple[int, int, int] | None) -> tuple:
    """Network, diffusion settings and image shape of a `Model`, the path of one, or a bare network.

    Arguments override the model's. Raises UserError for anything else.
    """
    model = opened(model)
    if isinstance(model, nnx.Module):
        return model, config, image_shape
    require(isinstance(model, Model), "model", type(model).__name__, EXPECTED_MODEL)
    info = model.info
    return model.network, config or info.diffusion, image_shape or info.image_shape


def labels_and_guide(
    model, labels, num_images: int, sampler: SamplerConfig, guide, classifier=None
) -> tuple[Labels | None, nnx.Module | None]:
    """The arrays of `labels` for N images, and the network of the guide, both as in `sample`.

    A bare network takes integers (N,) or one. Raises UserError as `labels_of_images` does.
    """
    guide = opened(guide)
    require(guide is None or isinstance(guide, Model), "guide", type(guide).__name__, EXPECTED_GUIDE)
    if isinstance(model, Model):
        infos = model.info, None if guide is None else guide.info
        labels = labels_of_images(
            infos[0], labels, num_images, sampler, infos[1], None if classifier is None else classifier.info
        )
    else:
        require(classifier is None, "model", type(model).__name__, "a classifier needs what load_model returns")
        labels = labels_of_network(labels, num_images, sampler, getattr(model, "null_index", None), guide is not None)
    return labels, None if guide is None else guide.network


def fitting_classifier(
    classifier, scale: float, config: DiffusionConfig, image_shape: tuple[int, int, int]
) -> NoisyClassifier | None:
    """The classifier of `sample`, or of the path of one. Raises UserError if it does not fit the model."""
    if classifier is None:
        require(scale == 1, "classifier_scale", scale, "it has no effect without a classifier (--classifier FILE)")
        return None
    if isinstance(classifier, str | os.PathLike):
        classifier = load_noisy_classifier(classifier)
    require(isinstance(classifier, NoisyClassifier), "classifier", type(classifier).__name__, EXPECTED_CLASSIFIER)
    check_noisy_classifier(classifier.info, scale, config, image_shape)
    return classifier


def unless_given(model, labels):
    """Labels of images that are edited: no label, unless labels are given."""
    return NONE if labels is None and isinstance(model, Model) and model.info.network.takes_labels else labels
