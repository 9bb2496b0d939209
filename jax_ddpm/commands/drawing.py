"""Parts of `jax-ddpm sample`: check that its flags can be combined, draw, and arrange the images in one picture."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import tyro
from tqdm import tqdm

from jax_ddpm.commands.flags import integers
from jax_ddpm.commands.label_flags import check_label_flags, check_labels, default_count, labels_to_draw, names_of
from jax_ddpm.spec.diffusion_config import check_sampler, require_timesteps
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.inputs import seeds_and_indices
from jax_ddpm.spec.labels import label_array, labelled_by
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.noisy_classifier import NoisyClassifierInfo
from jax_ddpm.waiting import ticking

MAX_COLUMNS = 16  # of a grid of interpolated pictures
MAX_FRAMES = 60  # of a .gif
DRAWING = {"unit": "step", "delay": 0.5, "postfix": "compiling the sampler"}  # of a progress bar
NUM_IMAGES = 16  # default number of pictures, if neither a flag nor the images decide it


@dataclass(frozen=True)
class EditingFlags:
    """Edit an image, or interpolate between two seeds. Without these flags, pictures are drawn from noise."""

    image: Path | None = None
    """For --start-t, --mask and --invert: an image of the model's size, a folder of them, or a .npz with `images`."""
    start_t: int | None = None
    """Add noise to the image up to this timestep (0 to T - 1) and sample from there; a larger one changes more."""
    mask: Path | None = None
    """Inpainting: a mask of the image's size. White pixels of the mask keep the image, black pixels are drawn."""
    resamplings: int = 10
    """How many times inpainting denoises each segment of the timesteps (RePaint). Multiplies the network calls."""
    jump: int = 10
    """Sampling steps per segment of inpainting."""
    invert: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compute the image's x_T, sample from it, and print how much the result differs. Needs --sampler ddim."""
    interpolate: str | None = None
    """Two seeds, such as 3,7: draw pictures that change gradually from the first seed's picture to the second's.
    Needs a sampler without noise, such as ddim."""

    @property
    def asked(self) -> list[str]:
        """The kinds of editing that were asked for, by their flags."""
        flags = {
            "--start-t": self.start_t is not None,
            "--mask": self.mask is not None,
            "--invert": self.invert,
            "--interpolate": self.interpolate is not None,
        }
        return [flag for flag, given in flags.items() if given]

    @property
    def kind(self) -> str | None:
        """The first flag in `asked`, or None if pictures are drawn from noise alone."""
        return self.asked[0] if self.asked else None


def check_together(flags) -> None:
    """UserError for flags that cannot be combined."""
    editing, kind = flags.editing, flags.editing.kind
    check_label_flags(flags)
    if len(editing.asked) > 1:
        raise UserError(f"{' and '.join(editing.asked)} do not go together: choose one of them.")
    if editing.image is None and kind in ("--start-t", "--mask", "--invert"):
        raise UserError(f"{kind} needs an image: give --image PATH.")
    for name, path in (("--image", editing.image), ("--mask", editing.mask)):
        if path is not None and not flags.overwrite and flags.out.is_file() and flags.out.resolve() == path.resolve():
            raise UserError(
                f"--out {flags.out} would replace the file of {name}.\nChoose another --out, or add --overwrite."
            )
    if editing.image is not None and kind in (None, "--interpolate"):
        raise UserError(f"--image {editing.image} needs one of --start-t, --mask and --invert, which say what to do.")
    if kind != "--mask" and (editing.resamplings, editing.jump) != (10, 10):
        raise UserError("--resamplings and --jump belong to inpainting: give --mask, or leave them out.")
    if flags.out.suffix == ".gif" and kind is not None:
        raise UserError(f"--out {flags.out}: a .gif shows drawing from noise. Give a .png, or leave {kind} out.")
    unused = {
        "--seed": (flags.seed or None, ("--invert", "--interpolate")),
        "--seeds": (flags.seeds, ("--invert", "--interpolate")),
        "--num-images": (flags.num_images, ("--invert",)),
        "--clip": (flags.diffusion.clip, ("--invert",)),  # clipping cannot be inverted
    }
    for name, (value, kinds) in unused.items():
        if value is not None and kind in kinds:
            raise UserError(f"{name} {value} has no effect with {kind}: leave it out.")
    if flags.sampling.sampler not in (None, "ddpm") and flags.diffusion.variance is not None:
        raise UserError(
            f"variance = {flags.diffusion.variance}: {flags.sampling.sampler} has none (ddim's noise is set by --eta). "
            "Leave --variance out, or use --sampler ddpm."
        )


def load_inputs(flags, info: ModelInfo) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The images to edit, float32 (N, H, W, C), one per picture, and the mask, bool (H, W); None without them."""
    from jax_ddpm.data import to_float
    from jax_ddpm.data.user_images import read_images, read_mask

    if flags.editing.image is None:
        return None, None
    images = to_float(read_images(flags.editing.image, info.image_shape))
    mask = None if flags.editing.mask is None else read_mask(flags.editing.mask, info.image_shape)
    if len(images) == 1 and flags.editing.kind != "--invert":
        return images.repeat(num_images(flags, info), axis=0), mask
    if flags.num_images not in (None, len(images)):
        raise UserError(
            f"num_images = {flags.num_images}: --image gives {len(images)} images, and each gives one picture. "
            "Leave --num-images out."
        )
    return images, mask


def num_images(flags, info: ModelInfo) -> int:
    """Number of pictures that the flags ask for."""
    if flags.seeds is not None:
        return len(integers(flags.seeds))
    count = default_count(flags, info) or NUM_IMAGES if flags.num_images is None else flags.num_images
    require(count >= 1, "num_images", count, "expected at least 1")
    return count


def draw(flags, model, package: ModuleType, settings: dict) -> str:
    """Draw what the flags ask for and write it. Returns a description of the output.

    package: jax_ddpm or torch_ref. settings: the arguments `guide` and `dtype` of its functions, and, if there is one,
    `classifier` and its scale.
    """
    from jax_ddpm import report

    labelled = labelled_by(model.info, of_classifier(settings))
    check_labels(flags, labelled)
    first, *others = flags.sampling.samplers
    samplers = [first.fitting(model.info.diffusion)]
    samplers += [each.fitting(model.info.diffusion, log=lambda line: None) for each in others]
    names = names_of(labelled)
    settings = {**settings, "sampler": samplers[0]}
    if flags.out.suffix == ".gif":
        frames, labels = draw_frames(flags, model, package, settings)
        return report.write_frames(flags.out, frames, flags.rescale, labels if flags.label.label_grid else None, names)
    images, mask = load_inputs(flags, model.info)
    if len(samplers) > 1:
        columns = []
        for sampler in samplers:
            guide = None if sampler.guidance == 1 else settings["guide"]
            of_weight = {**settings, "sampler": sampler, "guide": guide}
            columns.append(draw_images(flags, model, package, of_weight, None, None))
        x_0, labels = np.concatenate([x_0 for x_0, _ in columns]), columns[0][1].get("labels")
        cells = report.as_uint8(x_0, flags.rescale).reshape(len(columns), -1, *x_0.shape[1:]).swapaxes(0, 1)
        rows = [] if labels is None or labels.ndim > 1 else [report.label_text(label, names) for label in labels]
        picture = report.table(cells, [f"{sampler.guidance:g}" for sampler in samplers], row_labels=rows)
        return written(flags, x_0, picture)
    x_0, arrays = draw_images(flags, model, package, settings, images, mask)
    if flags.editing.invert:
        error = float(np.sqrt(np.mean(np.square(x_0 - images))))
        print(f"Reconstruction: root mean square error {error:.4f} in [-1, 1], {127.5 * error:.2f} of 255 levels.")
    if flags.label.label_grid:
        picture = report.class_grid(report.as_uint8(x_0, flags.rescale), arrays["labels"], names)
    else:
        picture = layout(flags, images, mask, x_0, arrays.get("x_T"))
    return written(flags, x_0, picture, **arrays)


def written(flags, x_0: np.ndarray, picture, **arrays: np.ndarray) -> str:
    """Write the images and a picture of all of them, in the first process if several draw. Returns what was written."""
    from jax_ddpm import report

    if flags.hosts.distributed:
        from jax_ddpm.sampling.processes import writes

        if not writes():
            return ""
    if broken := int((~np.isfinite(x_0)).any(axis=(1, 2, 3)).sum()):
        print(
            f"{broken} of {len(x_0)} pictures have values that are not finite: the network or the classifier gave them."
        )
    return report.write_images(flags.out, x_0, flags.rescale, picture, **arrays)


def images_at_a_time(flags) -> int:
    """The images of a batch, in all processes together."""
    if not flags.hosts.distributed:
        return flags.batch_size
    from jax_ddpm.sampling.processes import num_drawing

    return flags.batch_size * num_drawing()


def draw_images(
    flags, model, package: ModuleType, settings: dict, images: np.ndarray | None, mask: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pictures, float32 (N, H, W, C), and further arrays by name: `x_T` after an inversion, and `labels` of
    pictures that are drawn from noise with labels."""
    kind, editing, sampler, config = flags.editing.kind, flags.editing, settings["sampler"], model.info.diffusion
    labelled = labelled_by(model.info, of_classifier(settings))
    count = num_images(flags, labelled) if images is None else len(images)
    repaint = {"resamplings": editing.resamplings, "jump": editing.jump}
    check_sampler(sampler, config)
    if kind in ("--start-t", "--mask", "--invert"):
        require_timesteps(config, kind)
    reverse = importlib.import_module(f"{package.__name__}.sampling.reverse")
    timesteps = reverse.sampling_timesteps(config, sampler, editing.start_t)
    if kind == "--mask":
        inpainting = importlib.import_module(f"{package.__name__}.sampling.inpainting")
        timesteps = inpainting.repaint_schedule(timesteps, **repaint)[0]
        print(f"Inpainting takes {len(timesteps):,} network calls.")
    elif kind == "--start-t":
        print(f"The image is noised to t = {timesteps[0]} and denoised in {len(timesteps):,} steps.")
    passes = -(-count // max(1, min(images_at_a_time(flags), count))) * (2 if kind == "--invert" else 1)
    labels, arrays = labels_to_draw(flags, labelled, count), {}
    with tqdm(total=len(timesteps) * passes, **DRAWING) as bar, ticking(bar):
        settings = {**settings, "batch_size": flags.batch_size, "progress": update_bar(bar, len(timesteps))}
        settings["labels"] = labels
        seeded = {**settings, "seed": flags.seed, "seeds": None if flags.seeds is None else integers(flags.seeds)}
        if kind is None:
            x_0 = package.sample(model, count, **seeded)
            if (drawn := label_array(labelled, labels, count)) is not None:
                arrays["labels"] = drawn
        elif kind == "--interpolate":
            x_0 = package.interpolate(model, *pair(editing.interpolate), count, **settings)
        elif kind == "--start-t":
            x_0 = package.img2img(model, images, editing.start_t, **seeded)
        elif kind == "--mask":
            x_0 = package.inpaint(model, images, mask, **seeded, **repaint)
        else:
            arrays["x_T"] = package.invert(model, images, **settings)
            x_0 = package.reconstruct(model, **arrays, **settings)
        bar.update(max(0, bar.total - bar.n))
    return x_0, arrays


def draw_frames(flags, model, package: ModuleType, settings: dict) -> tuple[np.ndarray, np.ndarray | None]:
    """States from noise to images, float (F, N, H, W, C), and the labels of the images."""
    samplers = importlib.import_module(f"{package.__name__}.sampling.samplers")
    network, config, image_shape = samplers.unpack_model(model, None, None)
    labelled, classifier = labelled_by(model.info, of_classifier(settings)), settings.get("classifier")
    sampler, count = settings["sampler"], num_images(flags, labelled)
    labels = labels_to_draw(flags, labelled, count)
    samplers.fitting_classifier(classifier, settings.get("classifier_scale", 1.0), config, image_shape)
    arrays, guide = samplers.labels_and_guide(model, labels, count, sampler, settings["guide"], classifier)
    if classifier is not None:
        settings = {**settings, "classifier": getattr(classifier, "network", classifier)}
    seeds, indices = seeds_and_indices(flags.seed, None if flags.seeds is None else integers(flags.seeds), count)
    steps = len(importlib.import_module(f"{package.__name__}.sampling.reverse").sampling_timesteps(config, sampler))
    frames = []
    with tqdm(total=steps * -(-count // flags.batch_size), **DRAWING) as bar, ticking(bar):
        for start in range(0, count, flags.batch_size):
            batch = slice(start, start + flags.batch_size)
            states = samplers.sample_indices(
                *(network, config, image_shape, seeds if np.ndim(seeds) == 0 else seeds[batch], indices[batch]),
                **{**settings, "guide": guide, "labels": arrays and arrays.rows(batch)},
                num_frames=min(MAX_FRAMES, steps + 1),
                progress=update_bar(bar, steps),
            )[1]
            frames.append(np.asarray(states if package.__name__ == "jax_ddpm" else states.permute(0, 1, 3, 4, 2)))
    wanted = arrays and (arrays.of_classifier if arrays.wanted is None else arrays.wanted)
    return np.concatenate(frames, axis=1), wanted


def of_classifier(settings: dict) -> NoisyClassifierInfo | None:
    """The settings of the classifier; None without one."""
    return settings["classifier"].info if "classifier" in settings else None


def layout(flags, images: np.ndarray | None, mask: np.ndarray | None, x_0: np.ndarray, x_T: np.ndarray | None = None):
    """All pictures in one.

    Without images: a grid. From a single image: a grid that starts with this image. From several images, or after an
    inversion: a table with each picture below its image.
    """
    from jax_ddpm import report

    after = report.as_uint8(x_0, flags.rescale)
    if images is None:
        return report.grid(after, min(len(after), MAX_COLUMNS) if flags.editing.interpolate else None)
    before = report.as_uint8(images if mask is None else np.where(mask[..., None], images, 0), flags.rescale)
    if x_T is not None:
        return report.table(
            np.stack([before, report.as_uint8(x_T, "per-image"), after]), row_labels=("image", "x_T", "back")
        )
    if (images == images[0]).all():
        return report.grid(np.concatenate([before[:1], after]))
    return report.table(np.stack([before, after]), row_labels=("image", "drawn"))


def pair(text: str) -> list[int]:
    """The two seeds of --interpolate."""
    seeds = integers(text)
    require(len(seeds) == 2, "interpolate", text, "expected two seeds separated by a comma, such as 3,7")
    return seeds


def update_bar(bar: tqdm, steps: int):
    """A `progress` function that moves the bar through reverse processes of `steps` steps, one after another."""

    def progress(done):
        bar.set_postfix_str("", refresh=False)
        bar.update((done - bar.n - 1) % steps + 1)

    return progress
