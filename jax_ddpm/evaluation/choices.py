"""What an evaluation compares with what, where nobody says it: the reference, the features, the number of images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jax_ddpm.data import ImageData
from jax_ddpm.data.sources import ARRAYS
from jax_ddpm.evaluation.image_sets import (
    SPLITS,
    Images,
    ImageSet,
    Shape,
    check_shape,
    load_data,
    open_images,
    split_of,
)
from jax_ddpm.spec.classifier import SMALLEST_IMAGE
from jax_ddpm.spec.data_record import check_same_images, find_images
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.hub import local_path
from jax_ddpm.spec.model_folder import find_source
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.read_run import CONFIG_FILE, read_config
from jax_ddpm.spec.run_checkpoints import find_checkpoint, is_run
from jax_ddpm.spec.run_config import DataConfig

ON_CPU, ON_ACCELERATOR = 1000, 10_000  # images that are drawn


def holds_model(text: str) -> bool:
    """Whether a text names a model, not images: a run, one of its checkpoints, a model's folder or file."""
    path = Path(text).expanduser()
    if text.partition(":")[0] in SPLITS or path.suffix.lower() in (".npz", ".npy"):
        return False
    if not path.is_dir():
        return True
    try:
        return find_checkpoint(path, None, None) is not None or find_source(path, None) is not None
    except UserError:
        return is_run(path)


def run_of(model: str | Path) -> Path | None:
    """The folder of the run that a model belongs to; None if it is of no run."""
    path = local_path(Path(model).expanduser(), lambda line: None)
    places = [path, path.parent, path.absolute().parents[1] if len(path.absolute().parents) > 1 else path.parent]
    return next((place for place in places if is_run(place)), None)


def data_settings(run: Path | None, given: DataConfig | None = None) -> DataConfig:
    """Where data sets lie, and which images they hold out: what is given, over the settings of the run."""
    given = given or DataConfig()
    if run is None:
        return given
    names = ("data_dir", "manual_dir", "cache_dir", "validation_fraction", "value_range")
    known = {name: value for name in names if (value := getattr(given, name)) is not None}
    return replace(read_config(run / CONFIG_FILE).data, **known)


def reference_images(
    reference: str | None,
    run: Path | None,
    image_shape: Shape | None,
    settings: DataConfig | None = None,
    log: Callable[[str], None] = print,
) -> ImageSet:
    """The real images to compare with: those that `reference` names, else the training images of the run.

    Args:
        reference: as in `open_images`.
        run: the run of the model, whose settings say where data sets lie; None without one.
        image_shape: (H, W, C) of the images that are evaluated.
        settings: as in `data_settings`.
        log: called with lines about what is read.

    Raises:
        UserError: neither a reference nor a run is given, or the images of the run have changed.
    """
    settings = data_settings(run, settings)
    if reference is not None:
        return check_shape(open_images(reference, image_shape, settings, log), image_shape)
    if run is None:
        raise UserError(
            "What to compare with is not known: give --reference train:DATASET, a .npz file or a folder of pictures."
        )
    if settings.dataset == ARRAYS:
        raise UserError(
            f"The images of {run} were given from Python.\n"
            "Save them as a .npz with `images` (and `labels`), and give --reference train:FILE.npz."
        )
    images = load_data(find_images(run, settings.dataset), image_shape, settings, log)
    check_same_images(run, images, log)
    return split_of(images, "train")


def default_features(data: ImageData | None) -> str:
    """`classifier` for a data set with two classes or more, and images that are large enough for it, else `pixels`."""
    has_classes = data is not None and data.labels is not None and len(np.unique(data.labels)) > 1
    return "classifier" if has_classes and min(data.train.shape[1:3]) >= SMALLEST_IMAGE else "pixels"


def features_of(real: ImageSet) -> tuple[str, str]:
    """The features to use where none are named: those of statistics, if they tell, or `default_features`; and why."""
    if real.statistics is not None and real.statistics.features is not None:
        return real.statistics.features[0], "the statistics are of these features"
    name = default_features(real.data)
    return name, "the data set has classes" if name == "classifier" else "no classifier can be trained on the reference"


def likelihood_images(real: ImageSet) -> tuple[Images, np.ndarray | None]:
    """Held-out images and their labels, integers (N,), or None without labels.

    They are the validation images of the data set; of other references the images themselves. UserError if there are
    none.
    """
    data = real.data
    images, labels = (real.images, real.labels) if data is None else (data.validation, data.validation_labels)
    if images is None or not len(images):
        raise UserError(f"--likelihood needs held-out images, and {real.name} has none: give another --reference.")
    return images, labels


def labels_for_model(info: ModelInfo, real: ImageSet, labels: np.ndarray | None) -> list[int | None] | None:
    """The labels of real images in the numbering of the model, and None for classes that it does not have.

    Where both name their classes, classes of one name are the same. Returns None if there are no labels, or if the
    model has no classes.
    """
    count = info.network.label_count
    if labels is None or not count:
        return None
    numbers = dict(enumerate(range(count)))
    if info.class_names and real.data is not None and real.data.class_names:
        known = {name: number for number, name in enumerate(info.class_names)}
        numbers = {number: known.get(name) for number, name in enumerate(real.data.class_names)}
    return [numbers.get(int(label)) for label in labels]


def default_num_images() -> int:
    """How many images to draw: many cost time, and few make the distances larger."""
    return ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR
