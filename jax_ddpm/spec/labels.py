"""Labels of the images to draw: from names and numbers to arrays, and whether a model can be guided."""

import difflib
import operator
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.flat_settings import SamplingSettings
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.noisy_classifier import NoisyClassifierInfo
from jax_ddpm.spec.text import some

Label = int | str | None
NONE = "none"  # the word for "no label"


class Labels(NamedTuple):
    """What the networks get as labels of a batch, in either framework: integers (B,), or floats (B, D)."""

    wanted: Any = None
    """Of the model; None if it takes none."""
    none: Any = None
    """The null label for each image, for guidance; None without guidance, and with a guide."""
    of_guide: Any = None
    """Of the guide; None if it takes none."""
    of_classifier: Any = None
    """Integers (B,): the classes to which a classifier of noisy images guides; None without one."""

    def rows(self, indices) -> "Labels":
        """Those of some images."""
        return self.map(lambda of_images: of_images[indices])

    def map(self, change: Callable) -> "Labels":
        """With each array changed."""
        return Labels(*(None if each is None else change(each) for each in self))


def labels_of_images(
    info: ModelInfo,
    labels: Any,
    num_images: int,
    sampler: SamplerConfig,
    guide: ModelInfo | None = None,
    classifier: NoisyClassifierInfo | None = None,
) -> Labels | None:
    """The labels of N images as NumPy arrays; None if no network takes labels.

    Args:
        info: of the model that draws.
        labels: one for all images, or a sequence of N. Each is the name of a class, its number, or None or "none" for
            no label. Or floats (D,) or (N, D): for a network that takes vectors, or from `mixed_labels`. None: the
            classes in turn, so that image i has class i mod K.
        num_images: N.
        sampler: its guidance.
        guide: of the guide, if there is one.
        classifier: of the classifier, if there is one. A model without labels is then drawn by its classes.

    Raises:
        UserError: labels that the model does not have, or guidance that it cannot have.
    """
    check_guidance(info, sampler, guide)
    of_classifier = None if classifier is None else classes_of_images(info, labels, num_images, classifier)
    unlabelled = classifier is not None and not info.network.takes_labels
    wanted = None if unlabelled else label_array(info, labels, num_images)
    none = of_guide = None
    if sampler.guidance != 1 and guide is None:
        none = as_weights(np.full(num_images, info.network.null_index, np.int32), wanted)
    if guide is not None and guide.network.takes_labels and wanted is not None:
        check_same_labels(info, guide, wanted)
        of_guide = wanted
    return None if wanted is of_classifier is None else Labels(wanted, none, of_guide, of_classifier)


def labelled_by(info: ModelInfo, classifier: NoisyClassifierInfo | None) -> ModelInfo:
    """Whose labels images have: the model's, or those of the classifier if the model has none."""
    unlabelled = classifier is not None and not info.network.takes_labels
    return replace(info, network=classifier.network, class_names=None) if unlabelled else info


def classes_of_images(info: ModelInfo, labels: Any, num_images: int, classifier: NoisyClassifierInfo) -> np.ndarray:
    """The classes of N images, int32, for a classifier. UserError for no class, and if the model has other classes."""
    if info.network.takes_labels:
        ours, theirs = info.network.label_count, classifier.network.num_classes
        require(ours == theirs, "number of classes of the classifier", theirs, f"expected the model's, {ours}")
    classes = label_array(labelled_by(info, classifier), labels, num_images)
    assert classes is not None
    is_class = classes.ndim == 1 and (classes < classifier.network.num_classes).all()
    require(is_class, "labels", labels, "with a classifier every image needs a class, by its name or number")
    return classes


def labels_of_network(
    labels: Any, num_images: int, sampler: SamplerConfig, null_index: int | None, has_guide: bool
) -> Labels | None:
    """`labels_of_images` for a network alone: labels are integers, (N,) or one, or floats (N, D).

    null_index: the network's null label; None if it has none. Raises UserError for other labels, and for guidance
    without a guide or a null label.
    """
    if sampler.guidance != 1 and not has_guide and (null_index is None or labels is None):
        raise UserError(
            f"guidance = {sampler.guidance:g}: this network has no null label, or no labels are given for it.\n"
            "Give labels, or what load_model returns in place of the network alone."
        )
    if labels is None:
        return None
    array = np.asarray(labels)
    fits = array.dtype.kind in "iu" and array.shape in ((), (num_images,))
    fits = fits or (array.dtype.kind == "f" and array.ndim == 2 and len(array) == num_images)
    expected = (
        f"expected integers, one or {num_images}, or floats ({num_images}, D), for a network without its settings"
    )
    require(fits, "labels", f"{array.dtype} {array.shape}", expected)
    array = np.full(num_images, array) if array.ndim == 0 else array
    array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float32)
    uses_null = sampler.guidance != 1 and not has_guide
    return Labels(array, as_weights(np.full(num_images, null_index, np.int32), array) if uses_null else None)


def label_array(info: ModelInfo, labels: Any, num_images: int) -> np.ndarray | None:
    """The labels of N images: int32 (N,), or float32 (N, D). None for a network without labels. As in
    `labels_of_images`."""
    network = info.network
    if not network.takes_labels:
        if labels is not None:
            raise UserError(
                "labels: this model was trained without labels, so it cannot draw a class.\n"
                "Omit --labels, or train a model with --conditional (in Python: conditional=True)."
            )
        return None
    if labels is None:
        if not network.label_count:
            raise UserError("labels: this model needs a label for each image: give --labels.")
        return np.arange(num_images, dtype=np.int32) % network.label_count
    if np.ndim(labels) and np.asarray(labels).dtype.kind == "f":
        return label_vectors(info, np.asarray(labels, np.float32), num_images)
    if network.label_width is not None:
        raise UserError(f"labels: this model takes vectors of {network.label_width} numbers: give floats (N, D).")
    each = [labels] * num_images if np.ndim(labels) == 0 else list(labels)
    require(len(each) == num_images, "number of labels", len(each), f"expected {num_images}, one for each image, or 1")
    return np.array([label_index(info, label) for label in each], np.int32)


def label_vectors(info: ModelInfo, labels: np.ndarray, num_images: int) -> np.ndarray:
    """float32 (N, D) from (D,) or (N, D). D: of the network that takes vectors, or a weight for each label."""
    width = info.network.label_width or number_of_rows(info)
    if width is None:
        raise UserError("labels: this model takes integers, not vectors: give integers (N,).")
    shape, expected = labels.shape, f"expected (N, {width}) or ({width},), with N = {num_images}"
    require(shape in ((width,), (num_images, width)), "shape of labels", shape, expected)
    require(np.isfinite(labels).all(), "labels", "nan or inf", "expected finite numbers")
    return np.broadcast_to(labels, (num_images, width)).copy()


def number_of_rows(info: ModelInfo) -> int | None:
    """Labels with an embedding of their own: the classes and the null label; None if any integer is a label."""
    count = info.network.label_count
    return None if count is None else count + (info.network.null_index is not None)


def label_index(info: ModelInfo, label: Any) -> int:
    """The number of a class, by its name or number, or of the null label. UserError for anything else."""
    count, names = info.network.label_count, info.class_names or ()
    if label is None or label == NONE:
        if info.network.null_index is None:
            raise UserError(f"labels = {NONE}: this model has no null label: give a class.")
        return info.network.null_index
    known = {name.casefold(): index for index, name in reversed(list(enumerate(names)))}
    if isinstance(label, str) and label.casefold() in known:
        return known[label.casefold()]
    try:
        index = int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError):
        near = difflib.get_close_matches(str(label).casefold(), known, n=1)
        expected = f"one of {some(names, 12)}" if names else "the number of a class"
        hint = f"did you mean {names[known[near[0]]]}?" if near else f"expected {expected}."
        raise UserError(f"labels: there is no class {label}: {hint}") from None
    expected = "expected 0 or more" if count is None else f"expected a class from 0 to {count - 1}, a name, or {NONE}"
    require(index >= 0 and (count is None or index < count), "labels", label, expected)
    return index


def as_weights(indices: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Indices (N,) as `labels` are given: if they are weights (N, D), as weights with a single 1."""
    return np.eye(labels.shape[1], dtype=np.float32)[indices] if labels is not None and labels.ndim == 2 else indices


def mixed_labels(info: ModelInfo, a: Label, b: Label, num_images: int) -> np.ndarray:
    """From label a to label b in N equal steps, for `labels` of `sample`: float32 (N, D), a weight for each label.

    The network mixes the embeddings of the labels by these weights, Dhariwal & Nichol 2021's class embeddings being
    vectors that are added to the time's. a, b: names, numbers, or "none". Raises UserError for other labels.
    """
    rows, share = number_of_rows(info), np.linspace(0, 1, num_images, dtype=np.float32)[:, None]
    fits = info.network.takes_labels and rows is not None and info.network.label_width is None
    require(fits, "labels", f"{a}, {b}", "this model has no classes to mix")
    one, other = np.eye(rows, dtype=np.float32)[[label_index(info, a), label_index(info, b)]]
    return (1 - share) * one + share * other


def check_guidance(info: ModelInfo, sampler: SamplerConfig, guide: ModelInfo | None) -> None:
    """Raise UserError for guidance that a model cannot have, and for a guide of another kind."""
    if guide is not None:
        require(sampler.guidance != 1, "guidance", 1, "a guide has no effect at 1. Give another weight (--guidance 2)")
        shape = guide.image_shape
        require(
            shape == info.image_shape, "image shape of the guide", shape, f"expected the model's {info.image_shape}"
        )
        if guide.network.takes_labels and not info.network.takes_labels and guide.network.null_index is None:
            raise UserError(
                "guide: it needs a label for each image, and the model takes none.\n"
                "Give a guide without labels, or one that has a null label."
            )
        for name in (each.name for each in fields(info.diffusion) if each.name not in SamplingSettings.__annotations__):
            ours, theirs = getattr(info.diffusion, name), getattr(guide.diffusion, name)
            require(ours == theirs, f"{name} of the guide", theirs, f"expected the model's, {ours}")
    elif sampler.guidance != 1 and info.network.null_index is None:
        has = "has no null label" if info.network.takes_labels else "was trained without labels"
        raise UserError(
            f"guidance = {sampler.guidance:g}: this model {has}, so there is no prediction to guide it away from.\n"
            "Give a weaker model (--guide MODEL), or train one with --conditional (in Python: conditional=True)."
        )


def check_same_labels(info: ModelInfo, guide: ModelInfo, labels: np.ndarray) -> None:
    """Raise UserError unless the guide's labels mean what the model's do."""
    for name, ours, theirs in (
        ("number of classes", info.network.label_count, guide.network.label_count),
        ("length of labels", info.network.label_width, guide.network.label_width),
        ("class names", info.class_names, guide.class_names),
    ):
        same = ours == theirs or (name == "class names" and None in (ours, theirs))
        require(same, f"{name} of the guide", theirs, f"expected the model's, {ours}")
    uses_null = info.network.null_index is not None and (
        (labels == info.network.null_index).any() if labels.ndim == 1 else info.network.label_width is None
    )
    require(not uses_null or guide.network.null_index is not None, "labels", NONE, "the guide has no null label")
