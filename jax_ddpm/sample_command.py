"""What `scripts/sample.py` does once a model is loaded: which flags go together, drawing, and the picture of it."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import tyro
from tqdm import tqdm

from jax_ddpm.command_line import integers
from jax_ddpm.errors import UserError, require

COLUMNS = 16  # at most, of interpolated pictures
NUM_IMAGES = 16  # where nothing else tells


@dataclass(frozen=True)
class EditingFlags:
    """Begin with an image, or with two seeds; by default from noise alone."""

    image: Path | None = None
    """An image, a folder of them, or a .npz (its `images`), of the model's size: with --start-t, --mask or --invert."""
    start_t: int | None = None
    """Noise the image to this timestep, 0 to T - 1, and sample from there: the larger, the more is drawn anew."""
    mask: Path | None = None
    """Inpainting: keep the image where this one is white, and draw anew where it is black."""
    resamplings: int = 10
    """Of inpainting: how often each stretch of the way is gone through, for so many times as many network calls."""
    jump: int = 10
    """Of inpainting: the length of such a stretch in steps."""
    invert: tyro.conf.FlagCreatePairsOff[bool] = False
    """From the image to its x_T and back again, and how near that comes; wants --sampler ddim."""
    interpolate: str | None = None
    """3,7: from the first picture of one seed to that of another; wants a sampler without noise, such as ddim."""

    @property
    def kind(self) -> str:
        """The flag that says what to do, or "sample"."""
        names = ("start_t", "mask", "invert", "interpolate")
        return next((name for name in names if getattr(self, name) not in (None, False)), "sample")


def check_together(flags) -> None:
    """UserError for flags of scripts/sample.py that contradict one another, or mean nothing together."""
    editing, kind = flags.editing, flags.editing.kind
    named = f"--{kind.replace('_', '-')}"
    for other in ("mask", "invert", "interpolate"):
        if kind not in ("sample", other) and getattr(editing, other) not in (None, False):
            raise UserError(f"{named} and --{other} do not go together: choose one of them.")
    if editing.image is None and kind in ("start_t", "mask", "invert"):
        raise UserError(f"{named} wants an image: give --image PATH.")
    if editing.image is not None and kind in ("sample", "interpolate"):
        raise UserError(f"--image {editing.image}: what is to be done with it? Give --start-t, --mask or --invert.")
    if kind != "mask" and (editing.resamplings, editing.jump) != (10, 10):
        raise UserError("--resamplings and --jump belong to inpainting: give --mask, or leave them out.")
    meaningless = {
        "--seeds": (flags.seeds, ("invert", "interpolate")),
        "--num-images": (flags.num_images, ("invert",)),
        "--clip": (flags.diffusion.clip, ("invert",)),  # what is clipped cannot be undone
    }
    for name, (value, beside) in meaningless.items():
        if value is not None and kind in beside:
            raise UserError(f"{name} {value} means nothing beside {named}: leave it out.")
    if flags.sampling.sampler != "ddpm" and flags.diffusion.variance is not None:
        raise UserError(
            f"variance = {flags.diffusion.variance}: {flags.sampling.sampler} has none (ddim's noise is set by --eta). "
            "Leave --variance out, or use --sampler ddpm."
        )


def given(flags, image_shape: tuple[int, int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The images to begin with, float32 (N, H, W, C), one for each picture, and the mask, bool (H, W); or None."""
    from jax_ddpm.data import to_float
    from jax_ddpm.data.given import given_images, given_mask

    if flags.editing.image is None:
        return None, None
    images = to_float(given_images(flags.editing.image, image_shape))
    mask = None if flags.editing.mask is None else given_mask(flags.editing.mask, image_shape)
    if len(images) == 1 and flags.editing.kind != "invert":
        return images.repeat(num_images(flags), axis=0), mask
    if flags.num_images not in (None, len(images)):
        raise UserError(f"num_images = {flags.num_images}: --image holds {len(images)}, and each becomes one picture.")
    return images, mask


def num_images(flags) -> int:
    """How many pictures the flags ask for."""
    if flags.seeds is not None:
        return len(integers(flags.seeds))
    count = NUM_IMAGES if flags.num_images is None else flags.num_images
    require(count >= 1, "num_images", count, "expected at least 1")
    return count


def draw(flags, model, package: ModuleType, settings: dict) -> str:
    """Draw what the flags ask for with jax_ddpm's or torch_ref's functions, write it, and say what and where.

    settings: `sampler` and `dtype` of those functions.
    """
    from jax_ddpm import report

    kind, editing, sampler, config = flags.editing.kind, flags.editing, settings["sampler"], model.info.diffusion
    images, mask = given(flags, model.info.image_shape)
    seeds = None if flags.seeds is None else integers(flags.seeds)
    count = num_images(flags) if images is None else len(images)
    again = {"resamplings": editing.resamplings, "jump": editing.jump}

    sampler.check(config.timesteps)
    chain = importlib.import_module(f"{package.__name__}.samplers").chain_of(config, sampler, editing.start_t)
    if kind == "mask":
        chain = importlib.import_module(f"{package.__name__}.inpainting").repaint_schedule(chain, **again)[0]
        print(f"Inpainting takes {len(chain):,} network calls.")
    elif kind == "start_t":
        print(f"From the image noised to t = {chain[0]} in {len(chain):,} steps.")
    walks = -(-count // max(1, min(flags.batch_size, count))) * (2 if kind == "invert" else 1)
    with tqdm(total=len(chain) * walks, unit="step", delay=0.5) as bar:
        settings = {**settings, "batch_size": flags.batch_size, "progress": follow(bar, len(chain))}
        seeded = {**settings, "seed": flags.seed, "seeds": seeds}
        if kind == "sample":
            x_0 = package.sample(model, count, **seeded)
        elif kind == "interpolate":
            x_0 = package.interpolate(model, *pair(editing.interpolate), count, **settings)
        elif kind == "start_t":
            x_0 = package.img2img(model, images, editing.start_t, **seeded)
        elif kind == "mask":
            x_0 = package.inpaint(model, images, mask, **seeded, **again)
        else:
            x_T = package.invert(model, images, **settings)
            x_0 = package.reconstruct(model, x_T, **settings)
        bar.update(bar.total - bar.n)

    def shown(x):
        return report.shown(x, flags.rescale)

    if kind == "sample":
        return report.write_images(flags.out, x_0, flags.rescale)
    if kind == "interpolate":
        return report.write_images(flags.out, x_0, flags.rescale, report.grid(shown(x_0), min(count, COLUMNS)))
    if kind == "invert":
        error = float(np.sqrt(np.mean(np.square(x_0 - images))))
        print(
            f"Back after {len(chain)} steps up and down: rms error {error:.4f} in [-1, 1], {127.5 * error:.2f} levels."
        )
        rows = np.stack([shown(images), report.shown(x_T, "per-image"), shown(x_0)])
        picture = report.table(rows, row_labels=("image", "x_T", "again"))
        return report.write_images(flags.out, x_0, flags.rescale, picture, x_T=x_T)
    begun = shown(images if mask is None else np.where(mask[..., None], images, 0))
    if (images == images[0]).all():
        picture = report.grid(np.concatenate([begun[:1], shown(x_0)]))
    else:
        picture = report.table(np.stack([begun, shown(x_0)]), row_labels=("image", "drawn"))
    return report.write_images(flags.out, x_0, flags.rescale, picture)


def pair(text: str) -> list[int]:
    seeds = integers(text)
    require(len(seeds) == 2, "interpolate", text, "expected two seeds with a comma between them, such as 3,7")
    return seeds


def follow(bar: tqdm, steps: int):
    """The `progress` that moves a bar along reverse processes of so many steps, one after another."""

    def progress(done):
        bar.update((int(done) - bar.n + (steps - 1) // 2) % steps - (steps - 1) // 2)

    return progress
