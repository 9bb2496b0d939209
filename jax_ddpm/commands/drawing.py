"""`jax-ddpm sample` once the model is loaded: check that its flags fit together, draw, and lay out the picture."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import tyro
from tqdm import tqdm

from jax_ddpm.commands.flags import integers
from jax_ddpm.spec.errors import UserError, require

COLUMNS = 16  # at most, of interpolated pictures
NUM_IMAGES = 16  # where nothing else tells


@dataclass(frozen=True)
class EditingFlags:
    """Edit an image, or interpolate between two seeds. Without these flags, pictures are drawn from noise."""

    image: Path | None = None
    """For --start-t, --mask and --invert: an image of the model's size, a folder of them, or a .npz with `images`."""
    start_t: int | None = None
    """Add noise to the image up to this timestep (0 to T - 1) and sample from there; a larger one changes more."""
    mask: Path | None = None
    """Inpainting: a picture of the same size. The image is kept where it is white, and drawn anew where it is black."""
    resamplings: int = 10
    """RePaint passes per stretch of inpainting; multiplies the number of network calls."""
    jump: int = 10
    """Sampling steps in such a stretch."""
    invert: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compute the image's x_T, sample from it, and print how much the result differs. Needs --sampler ddim."""
    interpolate: str | None = None
    """Two seeds, such as 3,7: draw pictures between those of the two. Needs a sampler without noise, such as ddim."""

    @property
    def asked(self) -> list[str]:
        """Those of the flags that say what to do, as they are typed."""
        flags = {
            "--start-t": self.start_t is not None,
            "--mask": self.mask is not None,
            "--invert": self.invert,
            "--interpolate": self.interpolate is not None,
        }
        return [flag for flag, given in flags.items() if given]

    @property
    def kind(self) -> str | None:
        """The one of them; None where pictures are drawn from noise alone."""
        return self.asked[0] if self.asked else None


def check_together(flags) -> None:
    """UserError for flags of scripts/sample.py that contradict one another, or mean nothing together."""
    editing, kind = flags.editing, flags.editing.kind
    if len(editing.asked) > 1:
        raise UserError(f"{' and '.join(editing.asked)} do not go together: choose one of them.")
    if editing.image is None and kind in ("--start-t", "--mask", "--invert"):
        raise UserError(f"{kind} wants an image: give --image PATH.")
    if editing.image is not None and kind in (None, "--interpolate"):
        raise UserError(f"--image {editing.image}: what is to be done with it? Give --start-t, --mask or --invert.")
    if kind != "--mask" and (editing.resamplings, editing.jump) != (10, 10):
        raise UserError("--resamplings and --jump belong to inpainting: give --mask, or leave them out.")
    meaningless = {
        "--seed": (flags.seed or None, ("--invert", "--interpolate")),
        "--seeds": (flags.seeds, ("--invert", "--interpolate")),
        "--num-images": (flags.num_images, ("--invert",)),
        "--clip": (flags.diffusion.clip, ("--invert",)),  # what is clipped cannot be undone
    }
    for name, (value, beside) in meaningless.items():
        if value is not None and kind in beside:
            raise UserError(f"{name} {value} means nothing beside {kind}: leave it out.")
    if flags.sampling.sampler != "ddpm" and flags.diffusion.variance is not None:
        raise UserError(
            f"variance = {flags.diffusion.variance}: {flags.sampling.sampler} has none (ddim's noise is set by --eta). "
            "Leave --variance out, or use --sampler ddpm."
        )


def given(flags, image_shape: tuple[int, int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The images to begin with, float32 (N, H, W, C), one for each picture, and the mask, bool (H, W); or None."""
    from jax_ddpm.data import to_float
    from jax_ddpm.data.user_images import read_images, read_mask

    if flags.editing.image is None:
        return None, None
    images = to_float(read_images(flags.editing.image, image_shape))
    mask = None if flags.editing.mask is None else read_mask(flags.editing.mask, image_shape)
    if len(images) == 1 and flags.editing.kind != "--invert":
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

    images, mask = given(flags, model.info.image_shape)
    x_0, arrays = drawn(flags, model, package, settings, images, mask)
    if flags.editing.invert:
        error = float(np.sqrt(np.mean(np.square(x_0 - images))))
        print(f"Back from x_T: root mean square error {error:.4f} in [-1, 1], {127.5 * error:.2f} of 255 levels.")
    picture = pictured(flags, images, mask, x_0, **arrays)
    return report.write_images(flags.out, x_0, flags.rescale, picture, **arrays)


def drawn(
    flags, model, package: ModuleType, settings: dict, images: np.ndarray | None, mask: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pictures, (N, H, W, C), and after an inversion x_T; tells how long the way is."""
    kind, editing, sampler, config = flags.editing.kind, flags.editing, settings["sampler"], model.info.diffusion
    count = num_images(flags) if images is None else len(images)
    again = {"resamplings": editing.resamplings, "jump": editing.jump}
    sampler.check(config.timesteps)
    chain = importlib.import_module(f"{package.__name__}.sampling.reverse").sampling_timesteps(
        config, sampler, editing.start_t
    )
    if kind == "--mask":
        chain = importlib.import_module(f"{package.__name__}.sampling.inpainting").repaint_schedule(chain, **again)[0]
        print(f"Inpainting takes {len(chain):,} network calls.")
    elif kind == "--start-t":
        print(f"From the image noised to t = {chain[0]} in {len(chain):,} steps.")
    walks = -(-count // max(1, min(flags.batch_size, count))) * (2 if kind == "--invert" else 1)
    with tqdm(total=len(chain) * walks, unit="step", delay=0.5) as bar:
        settings = {**settings, "batch_size": flags.batch_size, "progress": follow(bar, len(chain))}
        seeded = {**settings, "seed": flags.seed, "seeds": None if flags.seeds is None else integers(flags.seeds)}
        arrays = {}
        if kind is None:
            x_0 = package.sample(model, count, **seeded)
        elif kind == "--interpolate":
            x_0 = package.interpolate(model, *pair(editing.interpolate), count, **settings)
        elif kind == "--start-t":
            x_0 = package.img2img(model, images, editing.start_t, **seeded)
        elif kind == "--mask":
            x_0 = package.inpaint(model, images, mask, **seeded, **again)
        else:
            arrays["x_T"] = package.invert(model, images, **settings)
            x_0 = package.reconstruct(model, **arrays, **settings)
        bar.update(max(0, bar.total - bar.n))
    return x_0, arrays


def pictured(flags, images: np.ndarray | None, mask: np.ndarray | None, x_0: np.ndarray, x_T: np.ndarray | None = None):
    """A grid of the pictures, or of one image and what was drawn from it; of several images a column each."""
    from jax_ddpm import report

    made = report.as_uint8(x_0, flags.rescale)
    if images is None:
        return report.grid(made, min(len(made), COLUMNS) if flags.editing.interpolate else None)
    begun = report.as_uint8(images if mask is None else np.where(mask[..., None], images, 0), flags.rescale)
    if x_T is not None:
        return report.table(
            np.stack([begun, report.as_uint8(x_T, "per-image"), made]), row_labels=("image", "x_T", "back")
        )
    if (images == images[0]).all():
        return report.grid(np.concatenate([begun[:1], made]))
    return report.table(np.stack([begun, made]), row_labels=("image", "drawn"))


def pair(text: str) -> list[int]:
    seeds = integers(text)
    require(len(seeds) == 2, "interpolate", text, "expected two seeds with a comma between them, such as 3,7")
    return seeds


def follow(bar: tqdm, steps: int):
    """The `progress` that moves a bar along reverse processes of so many steps, one after another."""

    def progress(done):
        bar.update((done - bar.n - 1) % steps + 1)

    return progress
