"""Sample from a trained model: python scripts/sample.py --model runs/digits-digits --num-images 64 --out grid.png"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from jax_ddpm.command_line import DiffusionFlags, integers, run_command
from jax_ddpm.config import Precision, SamplerConfig
from jax_ddpm.errors import UserError


@dataclass(frozen=True)
class SampleFlags:
    """Draw pictures from a trained model."""

    model: Path
    """Run folder, diffusers folder, .safetensors, .pt, .pth or .bin."""
    out: Path = Path("samples.png")
    """A .png (grid), a .npz (images: uint8, and x0: float32, both (N, H, W, C)), or a folder (one PNG an image)."""
    num_images: int = 16
    seed: int = 0
    """Picture i of a seed is always the same."""
    seeds: str | None = None
    """Instead of the first pictures of one seed the first of each of several: 3,7,11."""
    batch_size: int = 64
    """Images drawn at a time."""
    framework: Literal["jax", "torch"] = "jax"
    """Which implementation draws; both draw the same pictures."""
    precision: Precision = "float32"
    image_size: int | None = None
    """Height and width, for files that cannot tell."""
    rescale: Literal["none", "per-image"] = "none"
    """per-image: show each picture from its own darkest to its own brightest value (for samples that drift)."""
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main():
    flags = tyro.cli(SampleFlags, config=(tyro.conf.OmitArgPrefixes,))
    from jax_ddpm import report  # after the flags, so that --help and mistakes answer at once

    report.check_images_path(flags.out)
    if flags.sampling.sampler != "ddpm" and flags.diffusion.variance is not None:
        raise UserError(
            f"variance = {flags.diffusion.variance}: {flags.sampling.sampler} has none (ddim's noise is set by --eta). "
            "Leave --variance out, or use --sampler ddpm."
        )
    seeds = None if flags.seeds is None else integers(flags.seeds)
    model, sample, described = with_jax(flags) if flags.framework == "jax" else with_torch(flags)
    print(described)
    steps = flags.sampling.num_steps or model.info.diffusion.timesteps
    num_images = flags.num_images if seeds is None else len(seeds)
    batches = -(-num_images // max(1, min(flags.batch_size, num_images)))
    with tqdm(total=steps * batches, unit="step", delay=0.5) as bar:
        x_0 = sample(
            model,
            flags.num_images,
            flags.seed,
            flags.batch_size,
            seeds=seeds,
            progress=lambda done: bar.update(int(done) - bar.n % steps),
        )
        bar.update(bar.total - bar.n)
    print(f"Saved {report.write_images(flags.out, x_0, flags.rescale)}")


def with_jax(flags: SampleFlags):
    import jax
    import jax.numpy as jnp

    from jax_ddpm import model_files, samplers

    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    model = model_files.load_model(flags.model, flags.image_size, flags.precision, **asdict(flags.diffusion))
    dtype = jnp.float64 if flags.precision == "float64" else jnp.float32
    sample = partial(samplers.sample, sampler=flags.sampling, dtype=dtype)
    return model, sample, model_files.describe(model.info, model.num_parameters)


def with_torch(flags: SampleFlags):
    try:
        import torch
    except ImportError:
        raise UserError("--framework torch needs PyTorch: pip install 'jax-ddpm[torch]'.") from None

    from torch_ref import model_files, samplers
    from torch_ref.config import SamplerConfig

    model = model_files.load_model(flags.model, flags.image_size, flags.precision, **asdict(flags.diffusion))
    sampling = SamplerConfig(**asdict(flags.sampling))
    dtype = torch.float64 if flags.precision == "float64" else torch.float32
    sample = partial(samplers.sample, sampler=sampling, dtype=dtype)
    return model, sample, model_files.describe(model.info, model_files.num_parameters(model))


if __name__ == "__main__":
    run_command(main)
