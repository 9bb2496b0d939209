"""`draw_samples`: many images of a model, written in blocks, so that an interrupted drawing goes on."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock, Timeout
from flax import nnx
from jax.experimental import multihost_utils

import jax_ddpm
from jax_ddpm import data, weights
from jax_ddpm.sampling.processes import num_drawing
from jax_ddpm.sampling.reverse import sampling_timesteps
from jax_ddpm.sampling.samplers import labels_and_guide, sample_in_batches, sample_indices
from jax_ddpm.spec.diffusion_config import SamplerConfig, check_sampler, default_sampler
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.files import atomic_path, write_text
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.registered import code_of
from jax_ddpm.unets.tf32 import is_in_tf32

SETTINGS_FILE = "settings.json"
LOCK_FILE = ".lock"
BLOCK_FILE = "images-{:08d}.npy"


def draw_samples(
    model: weights.Model,
    num_images: int,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
    folder: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    guide: weights.Model | None = None,
) -> np.ndarray:
    """Images 0 to `num_images` - 1 of a seed, as `jax_ddpm.sample` draws them, in 8 bits.

    A model with classes draws them in turn.

    With `folder`, each batch is written when it is complete, into a sub-folder for the settings that the images depend
    on (`settings_of`). Images that are there already are read. So a drawing that was interrupted, or a larger one, goes
    on after them, and images of other weights or settings are never used.

    Args:
        model: from `jax_ddpm.load_model`.
        num_images: N, at least 1.
        sampler: method and number of steps. Default: that of `jax_ddpm.sample`.
        seed: integer in [0, 2^32).
        batch_size: images at a time. If the memory of the device does not hold a batch, it is halved, with a warning.
        folder: where the images are kept. None: nowhere.
        progress: called with the number of images done. Inside a batch, it grows with the steps that are done.
        guide: a weaker model, for autoguidance.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        UserError: a wrong count or setting, images that are not finite, or a folder that cannot be written or in which
            another process draws.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        require(value >= 1, name, value, "expected at least 1")
    sampler = sampler or default_sampler(model.info.diffusion)
    check_sampler(sampler, model.info.diffusion)
    if num_drawing() > 1 and jax.process_index() > 0:
        folder = None  # process 0 writes
    if folder is None:
        return draw_missing(model, num_images, [], sampler, seed, batch_size, None, progress, guide)
    settings = settings_of(model, sampler, seed, guide)
    inside = Path(folder) / key_of(settings)
    try:
        inside.mkdir(parents=True, exist_ok=True)
        with FileLock(inside / LOCK_FILE, blocking=False):
            for draft in inside.glob(".images-*"):  # of a process that was killed
                draft.unlink()
            if not (inside / SETTINGS_FILE).exists():
                write_text(inside / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
            found = read_blocks(inside, num_images, model.info.image_shape)
            return draw_missing(model, num_images, found, sampler, seed, batch_size, inside, progress, guide)
    except Timeout:
        raise UserError(f"Another process is drawing the same images into {inside}. Wait for it.") from None
    except OSError as error:
        raise UserError(f"{inside} cannot be written ({error.strerror}).") from None


def draw_missing(
    model: weights.Model,
    num_images: int,
    found: list[np.ndarray],
    sampler: SamplerConfig,
    seed: int,
    batch_size: int,
    folder: Path | None,
    progress: Callable[[int], None] | None,
    guide: weights.Model | None,
) -> np.ndarray:
    """The images of `found`, which are the first ones, and those after them, which are drawn and written."""
    first = sum(map(len, found))
    if num_drawing() > 1:  # process 0 knows what is there
        first = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
    if progress is not None:
        progress(min(first, num_images))
    if first and not found:
        found = [np.zeros((first, *model.info.image_shape), np.uint8)]  # of a process that does not need them
    if first >= num_images:
        return np.concatenate(found)[:num_images]
    num_steps = len(sampling_timesteps(model.info.diffusion, sampler))
    labels, guide = labels_and_guide(model, None, num_images, sampler, guide)
    dtype = jnp.float64 if "float64" in dtypes_of(model.network, nnx.Param) else jnp.float32

    def draw(batch: np.ndarray) -> np.ndarray:
        """Images first + batch; beyond the last image, the last one again."""
        indices = np.minimum(first + batch, num_images - 1)
        start, count = int(indices[0]), len(np.unique(indices))

        def in_batch(steps: int) -> None:
            progress(min(num_images, start + count * num_drawing() * steps // num_steps))

        x_0, _ = sample_indices(
            model.network,
            model.info.diffusion,
            model.info.image_shape,
            seed,
            indices,
            sampler=sampler,
            dtype=dtype,
            labels=labels and labels.rows(indices),
            guide=guide,
            progress=None if progress is None else in_batch,
        )
        x_0 = np.asarray(x_0)
        if not np.isfinite(x_0).all():
            raise UserError(
                f"The model draws images that are not finite (nan, inf), with {sampler.sampler} in {num_steps} steps.\n"
                "Use other weights, such as an earlier checkpoint (--step), or --clip x0."
            )
        return data.to_uint8(x_0)

    def keep(batch: np.ndarray, images: np.ndarray) -> None:
        indices = np.minimum(first + batch, num_images - 1)
        start, count = int(indices[0]), len(np.unique(indices))
        if folder is not None:
            with atomic_path(folder / BLOCK_FILE.format(start)) as draft, draft.open("wb") as file:
                np.save(file, images[:count])
        if progress is not None:
            progress(start + count)

    # At least a whole batch, although fewer images may be missing: the same program as in an uninterrupted drawing.
    count = max(num_images - first, min(batch_size, num_images))
    return np.concatenate([*found, sample_in_batches(draw, count, batch_size, keep)])[:num_images]


def read_blocks(folder: Path, num_images: int, image_shape: tuple[int, int, int]) -> list[np.ndarray]:
    """The blocks uint8 (B, H, W, C) from image 0 on, up to the first one that is missing or damaged."""
    blocks, done = [], 0
    while done < num_images:
        try:
            block = np.load(folder / BLOCK_FILE.format(done), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            break
        if block.dtype != np.uint8 or block.shape[1:] != tuple(image_shape) or not len(block):
            break
        blocks.append(block)
        done += len(block)
    return blocks


def settings_of(model: weights.Model, sampler: SamplerConfig, seed: int, guide: weights.Model | None = None) -> dict:
    """Everything that sampled images depend on, for JSON: weights, network, diffusion, precision, sampler, seed.

    Of a network of the user's own, also the hash of the file of its class; of registered schedules, objectives and
    samplers, their code.
    """
    info, network = model.info, model.network
    settings = {
        "jax_ddpm": jax_ddpm.__version__,
        "weights": weights_fingerprint(model),
        "network": asdict(info.network),
        "image_shape": list(info.image_shape),
        "diffusion": asdict(info.diffusion),
        "activations": dtypes_of(network, nnx.Module),
        "sampler": asdict(sampler) if sampler.guidance != 1 else without_guidance(sampler),
        "seed": int(seed),
    }
    if is_in_tf32(network):
        settings["tf32"] = True
    if guide is not None:
        settings["guide"] = weights_fingerprint(guide)
    if info.network.name not in BUILT_IN:
        source = inspect.getsourcefile(type(network))
        settings["code"] = source and hashlib.sha256(Path(source).read_bytes()).hexdigest()
    names = info.diffusion.schedule, info.diffusion.objective, sampler.sampler
    if code := code_of(*names):
        settings["registered"] = code
    return settings


def without_guidance(sampler: SamplerConfig) -> dict:
    """The settings that decide the images of a sampler without guidance."""
    return {name: value for name, value in asdict(sampler).items() if not name.startswith("guidance")}


def key_of(settings: dict) -> str:
    """A name for the settings: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def weights_fingerprint(model: weights.Model) -> str:
    """SHA-256 (hex) of the names, shapes, dtypes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.state_dict(model.network).items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.data)
    return digest.hexdigest()


def name_of_guide(guide: weights.Model | None, sampler: SamplerConfig) -> str | None:
    """What results call a guide: the start of `weights_fingerprint`. None without one, or if it has no effect."""
    return None if guide is None or sampler.guidance == 1 else weights_fingerprint(guide)[:16]


def dtypes_of(network: nnx.Module, kind: type) -> list[str]:
    """The dtypes of a network's parameters (kind `nnx.Param`), or those that its modules compute in (`nnx.Module`)."""
    found = {getattr(node, "dtype", None) for _, node in nnx.iter_graph(network) if isinstance(node, kind)}
    return sorted({str(jnp.dtype(each)) for each in found if each is not None})
