"""Features of images, from which distances between sets of images are computed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import getsourcefile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jax_ddpm.data import ImageData, ShardedImages
from jax_ddpm.evaluation import inception
from jax_ddpm.evaluation.inception_file import download
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.user_code import load_object

BATCH_SIZE = 64
KINDS = "pixels, classifier, inception, inception:FILE, FILE.py:FUNCTION or module:FUNCTION"


@dataclass(frozen=True)
class Extractor:
    """A function from images to features, and what it is."""

    name: str
    """As in `open_extractor`."""
    description: str
    """One line that says what the features are."""
    fingerprint: str
    """SHA-256 (hex) of what decides the features: weights, or code."""
    function: Callable[[np.ndarray], np.ndarray]
    """From uint8 images (B, H, W, C) to features, real numbers (B, D)."""
    may_cache: bool = True
    """Whether the fingerprint tells everything that decides the features, so that they may be kept on disk."""
    classify: Callable[[np.ndarray | ShardedImages], np.ndarray] | None = None
    """From uint8 images (N, H, W, C) to their classes, integers (N,); None for features that are of no classifier."""

    def __call__(
        self,
        images: np.ndarray | ShardedImages,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Features of uint8 images (N, H, W, C): float64 (N, D).

        progress: called with the number of images done, after each batch. Raises UserError if the function fails.
        """
        parts = []
        for start in range(0, len(images), batch_size):
            batch = np.asarray(images[start : start + batch_size])
            count = len(batch)
            if parts and count < batch_size:  # all batches have one shape, for which the function is compiled
                batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - count, axis=0)])
            parts.append(self.features_of(batch)[:count])
            if progress is not None:
                progress(start + count)
        return np.concatenate(parts)

    def features_of(self, batch: np.ndarray) -> np.ndarray:
        """Features float64 (B, D) of one batch. Raises UserError if the function fails."""
        what = f"It gets images, uint8 {batch.shape}, and returns features, ({len(batch)}, D)."
        try:
            found = np.asarray(self.function(batch))
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"{self.name} fails: {type(error).__name__}: {one_line(error)}.\n{what}") from error
        if found.ndim != 2 or len(found) != len(batch) or found.dtype.kind not in "fiub":
            raise UserError(f"{self.name} returns {found.dtype} {found.shape}.\n{what}")
        return found.astype(np.float64)


def open_extractor(
    text: str,
    data: ImageData | None = None,
    cache_dir: str | Path | None = None,
    log: Callable[[str], None] = print,
    fingerprint: str | None = None,
) -> Extractor:
    """The extractor that a text names.

    Args:
        text: `pixels`; `classifier`, a network that is trained on the labels of `data`; `inception:FILE`, the network
            of the original FID with the weights in a PyTorch file, or `inception`, which downloads that file;
            FILE.py:FUNCTION or module:FUNCTION, a function of yours from uint8 images (B, H, W, C) to features (B, D).
            Its code is run.
        data: the data set of the reference.
        cache_dir: folder for what is trained or downloaded. Default: that of data sets.
        log: called with a line of text before each long operation.
        fingerprint: of a classifier that was trained before, to take it from `cache_dir` if there is no `data`.

    Raises:
        UserError: an unknown name, weights that are not those of the network, a data set without labels.
    """
    folder = Path(cache_dir).expanduser() if cache_dir else user_cache_dir()
    kind, colon, path = text.partition(":")
    if text == "pixels":
        return PIXELS
    if text == "classifier":
        from jax_ddpm.evaluation.classifier import kept_classifier, load_classifier  # here: it imports this file

        if data is None and fingerprint is not None:
            return kept_classifier(fingerprint, folder)
        return load_classifier(data, folder, log)
    if kind == "inception":
        return inception_features(Path(path).expanduser() if colon else download(folder, log))
    if colon:
        return own_features(text)
    raise UserError(f"features = {text}: expected {KINDS}.")


def pixel_values(images: np.ndarray) -> np.ndarray:
    """The values of the pixels in [-1, 1], float64: uint8 (B, H, W, C) -> (B, H W C)."""
    return images.reshape(len(images), -1) / 127.5 - 1


PIXELS = Extractor(
    "pixels",
    "the values of the pixels, in [-1, 1]: they see means, contrast and blur, but not what an image shows",
    hashlib.sha256(b"pixels in [-1, 1], by row, column and channel").hexdigest(),
    pixel_values,
)


def inception_features(path: Path) -> Extractor:
    """The 2,048 features of the original FID. Raises UserError for a file without its weights."""
    if not path.is_file():
        raise UserError(
            f"features = inception:{path}: there is no such file. Expected the weights of the FID's Inception network, "
            "such as pt_inception-2015-12-05-6726825d.pth.\nWrite inception alone to download them."
        )
    weights = inception.load(path)
    arrays = {name: jnp.asarray(value) for name, value in weights.items()}
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    description = "the 2,048 features of the Inception-v3 of the original FID; images are resized to 299x299"
    return Extractor("inception", description, digest.hexdigest(), partial(inception_batch, arrays))


def inception_batch(arrays: dict, images: np.ndarray) -> np.ndarray:
    if images.shape[-1] not in (1, 3):
        raise UserError(f"features = inception needs images with 1 or 3 channels, not {images.shape[-1]}.")
    return np.asarray(inception.features_of(arrays, jnp.asarray(images))["2048"])


def own_features(text: str) -> Extractor:
    """The features of the user's function that FILE.py:NAME or module:NAME names."""
    function = load_object(text)
    if not callable(function):
        raise UserError(f"features = {text} is no function.\nIt gets uint8 (B, H, W, C) and returns features (B, D).")
    return features_of_function(function, text)


def features_of_function(function: Callable, name: str | None = None) -> Extractor:
    """The features of a function from uint8 images (B, H, W, C) to features (B, D).

    Nothing of them is kept on disk: the fingerprint is that of the function's file, and what it imports may change.
    """
    name = name or getattr(function, "__qualname__", type(function).__name__)
    try:
        code = Path(getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):  # built-in, an object, or from a notebook
        path = Path(name.rpartition(":")[0])
        code = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(code + name.rpartition(":")[2].encode()).hexdigest()
    return Extractor(name, f"the function {name}", digest, function, may_cache=False)
