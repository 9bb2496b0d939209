"""Features of images by a small convolutional classifier that is trained on the data set's own classes.

It is trained once from a fixed seed, and kept on disk. The mathematics is also in `torch_ref.classifier`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float
from tqdm import tqdm

from jax_ddpm import ops, weights
from jax_ddpm.arrays import Array, upcast
from jax_ddpm.data import ImageData, batch_indices
from jax_ddpm.evaluation.extractors import Extractor
from jax_ddpm.layers import Conv, Linear
from jax_ddpm.spec.classifier import (
    PIXELS_INSTEAD,
    VERSION,
    ClassifierConfig,
    ClassifierInfo,
    config_for,
    read_classifier,
    write_classifier,
)
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.types import StateDict

SEED = 0
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
EPOCHS = 5
MIN_IMAGES = 100_000  # the training sees at least so many images, those of small data sets in more epochs
MAX_IMAGES = 300_000  # and at most so many
TEST_BATCH = 500
NORMALISED_BY = 5_000  # images, at most, over which the mean square of the features is 1


class Classifier(nnx.Module):
    """Images (B, H, W, C) in [-1, 1] -> features (B, D), which are not negative, and logits (B, num_classes).

    3x3 convolutions with ReLU and 2x2 max pooling, a linear layer with ReLU, which gives the features, and a linear
    layer.
    """

    def __init__(self, config: ClassifierConfig):
        self.config = config
        channels = (config.image_shape[2], *config.widths)
        self.convs = nnx.List([Conv(i, o, 3) for i, o in pairwise(channels)])
        height, width = config.map_size
        self.features = Linear(height * width * channels[-1], config.num_features)
        self.output = Linear(config.num_features, config.num_classes)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b n"]]:
        h = average_pool(x, self.config.reduction)
        for conv in self.convs:
            h = max_pool(ops.relu(conv(h)))
        features = ops.relu(self.features(h.reshape(len(h), -1)))
        return features, self.output(features)


def average_pool(x: Array, size: int) -> Array:
    """Mean of each block of size x size pixels. Rows and columns that fill no block are left out."""
    b, h, w, c = (x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3])
    blocks = upcast(x[:, : h * size, : w * size]).reshape(b, h, size, w, size, c)
    return jnp.mean(blocks, axis=(2, 4)).astype(x.dtype)


def max_pool(x: Array) -> Array:
    """2x2 max pooling. A last row or column without a partner is left out."""
    return ops.max_pool_2x2(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])


def prepare_images(images: Array, dtype) -> Array:
    """uint8 to floats in [-1, 1]."""
    return images.astype(dtype) / 127.5 - 1


def loss(network: nnx.Module, images: Array, labels: Array) -> Float[Array, ""]:
    """Mean cross entropy of images uint8 (B, H, W, C) with classes (B,)."""
    _, logits = network(prepare_images(images, network.output.kernel.dtype))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def num_steps(num_images: int, batch_size: int) -> int:
    """Optimiser steps of the training: EPOCHS, within MIN_IMAGES and MAX_IMAGES."""
    return max(1, min(max(EPOCHS * num_images, MIN_IMAGES), MAX_IMAGES) // batch_size)


def train(config: ClassifierConfig, images, labels: np.ndarray, steps: int | None = None) -> nnx.Module:
    """A classifier, trained with Adam (Kingma & Ba 2015) and a learning rate that falls to 0 as a cosine.

    The same images give the same weights on the same machine.

    Args:
        images: uint8 (N, H, W, C), an array or `ShardedImages`.
        labels: class of each image, integers (N,) in [0, num_classes).
        steps: number of optimiser steps; `num_steps` if None.
    """
    batch_size = min(BATCH_SIZE, len(images))
    steps = steps or num_steps(len(images), batch_size)
    network = Classifier(config)
    weights.initialise(network, SEED)
    graph, parameters = nnx.split(network)
    parameters = jax.device_put(parameters)
    state = optimizer(steps).init(parameters)
    with tqdm(total=steps, desc="training the classifier", unit="step", leave=False, disable=None) as bar:
        for step in range(steps):
            batch = batch_indices(SEED, step, len(images), batch_size)
            parameters, state = train_step(graph, steps, parameters, state, images[batch], labels[batch])
            jax.block_until_ready(parameters)
            bar.update()
    network = nnx.merge(graph, parameters)
    normalise(network, images)
    return network


def optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))


@partial(jax.jit, static_argnames=("graph", "steps"), donate_argnames=("parameters", "state"))
def train_step(graph, steps: int, parameters, state, images: Array, labels: Array):
    """One step of the optimiser on images uint8 (B, H, W, C) with classes (B,): new parameters and its new state."""
    gradients = jax.grad(lambda parameters: loss(nnx.merge(graph, parameters), images, labels))(parameters)
    updates, state = optimizer(steps).update(gradients, state)
    return optax.apply_updates(parameters, updates), state


@partial(jax.jit, static_argnames="graph")
def apply(graph, parameters, images: Array) -> tuple[Array, Array]:
    """Features (B, D) and logits (B, num_classes) of images uint8 (B, H, W, C)."""
    network = nnx.merge(graph, parameters)
    return network(prepare_images(images, network.output.kernel.dtype))


def normalise(network: nnx.Module, images) -> None:
    """Scale the features, in place, so that their mean square over images of the data set is 1. Logits stay the same.

    Otherwise the scale of all distances would be an accident of the training.
    """
    every = -(-len(images) // NORMALISED_BY)
    features = np.concatenate([each for each, _ in in_batches(network, images[::every])])
    scale = np.float32(np.sqrt(np.mean(np.square(features, dtype=np.float64))))
    if scale > 0:
        for array in (network.features.kernel, network.features.bias):
            array.set_value(array[...] / scale)
        network.output.kernel.set_value(network.output.kernel[...] * scale)


def in_batches(network: nnx.Module, images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and logits of images uint8 (N, H, W, C), TEST_BATCH at a time."""
    graph, parameters = nnx.split(network)
    parameters = jax.device_put(parameters)
    for start in range(0, len(images), TEST_BATCH):
        features, logits = apply(graph, parameters, images[start : start + TEST_BATCH])
        yield np.asarray(features), np.asarray(logits)


def accuracy(network: nnx.Module, images, labels: np.ndarray) -> float:
    """Share of the images, uint8 (N, H, W, C), whose class (N,) has the largest logit."""
    logits = np.concatenate([each for _, each in in_batches(network, images)])
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def load_classifier(
    data: ImageData | None, cache_dir: str | Path | None = None, log: Callable[[str], None] = print
) -> Extractor:
    """The features of the classifier of a data set: trained now, or read from the cache.

    Args:
        data: the data set, with labels.
        cache_dir: folder of the cache; if None, `$XDG_CACHE_HOME/jax_ddpm` or `~/.cache/jax_ddpm`.
        log: called with lines of text before and after a training; the second one says how good the classifier is.

    Raises:
        UserError: there are no labels, or fewer than two classes; or the images are too small.
    """
    labels = checked_labels(data)
    config = config_for(data.train.shape[1:], max(len(data.class_names or ()), int(labels.max()) + 1))
    path = cached_file(data, config, Path(cache_dir).expanduser() if cache_dir else user_cache_dir())
    found = read_if_there(path, log)
    if found is None:
        log(f"Training the classifier of {data.name} once, on {len(data.train):,} images.")
        with jax.enable_x64(False):  # the same bits whatever the precision of the rest
            network = train(config, data.train, labels)
        has_test = len(data.validation) > 0 and data.validation_labels is not None
        share = accuracy(network, data.validation, data.validation_labels) if has_test else None
        info = ClassifierInfo(config, data.name, len(data.train), len(data.validation) if has_test else 0, share)
        found = weights.state_dict(network), info
        log(f"{describe(info)}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_classifier(path, *found)
            log(f"The classifier is kept in {path}.")
        except OSError as error:
            log(f"The classifier is not kept: {path} cannot be written ({error.strerror}).")
    return extractor(*found)


def kept_classifier(fingerprint: str, cache_dir: str | Path | None = None) -> Extractor:
    """The features of the classifier with this fingerprint in a cache. UserError if it is not there."""
    folder = (Path(cache_dir).expanduser() if cache_dir else user_cache_dir()) / "classifiers"
    for path in sorted(folder.glob("*.safetensors")):
        found = read_if_there(path, lambda line: None)
        if found is not None and (made := extractor(*found)).fingerprint == fingerprint:
            return made
    raise UserError(
        f"The statistics are of a classifier (hash {fingerprint[:8]}) that is not in {folder}.\n"
        "Give the --cache-dir where it was trained, or --reference train:DATASET in place of the statistics."
    )


def checked_labels(data: ImageData | None) -> np.ndarray:
    """The labels of the training images. UserError unless there are two classes or more."""
    advice = f"Use a data set with labels, such as a folder for each class, or {PIXELS_INSTEAD}."
    if data is None:
        raise UserError(
            f"The classifier is trained on a data set, and none is given.\n{advice} Or give --reference train:DATASET."
        )
    if data.labels is None or not len(data.labels) or data.labels.min() < 0:
        raise UserError(f"{data.name} has no labels, on which the classifier is trained.\n{advice}")
    if len(np.unique(data.labels)) < 2:
        raise UserError(f"{data.name} has a single class, but the classifier needs two or more.\n{advice}")
    return data.labels


def cached_file(data: ImageData, config: ClassifierConfig, folder: Path) -> Path:
    """The file of a classifier. Its name depends on everything that its weights depend on."""
    labels = hashlib.sha256(np.ascontiguousarray(data.labels, np.int64)).hexdigest()
    key = [VERSION, data.fingerprint, labels, config.image_shape, config.num_classes]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return folder / "classifiers" / f"{digest}.safetensors"


def read_if_there(path: Path, log: Callable[[str], None]) -> tuple[StateDict, ClassifierInfo] | None:
    """A classifier of the cache; None if there is none, or if it is damaged."""
    if not path.exists():
        return None
    try:
        values, info = read_classifier(path)
        weights.check_state_dict(Classifier(info.config), values)
        return values, info
    except UserError as error:
        log(f"{error} The classifier is trained again.")
        return None


def describe(info: ClassifierInfo) -> str:
    """A line that says what the features are."""
    config = info.config
    known = f"{config.num_features} features of a classifier of {info.dataset} ({config.num_classes} classes"
    if info.accuracy is None:
        return f"{known}; there are no labelled held-out images to test it on)"
    return f"{known}, {info.accuracy:.1%} of {info.num_held_out:,} held-out images correct)"


def extractor(values: StateDict, info: ClassifierInfo) -> Extractor:
    """The features of a classifier with these arrays, by PyTorch name. Its fingerprint is the SHA-256 of them."""
    network = Classifier(info.config)
    weights.load_state_dict(network, values)
    weights.to_device(network)
    (graph, parameters), shape, digest = nnx.split(network), info.config.image_shape, hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name} {values[name].shape} {values[name].dtype} ".encode())
        digest.update(np.ascontiguousarray(values[name]))

    def features(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != shape:
            raise UserError(f"The classifier was trained on images {shape}, not {images.shape[1:]}.")
        return np.asarray(apply(graph, parameters, images)[0], np.float64)

    def classify(images) -> np.ndarray:
        return np.concatenate([np.argmax(logits, axis=1) for _, logits in in_batches(network, images)])

    return Extractor("classifier", describe(info), digest.hexdigest(), features, classify=classify)
