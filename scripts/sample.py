"""Sample from a trained model: python scripts/sample.py --model runs/digits-digits --num-images 64 --out grid.png"""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from jax_ddpm.command_line import run_command
from jax_ddpm.config import Clip, Objective, Precision, Schedule, Variance


@dataclass(frozen=True)
class DiffusionFlags:
    """What overrules the model file, or what it cannot tell; by default its own, or its network's preset."""

    timesteps: int | None = None
    """T of the training."""
    schedule: Schedule | None = None
    """Noise schedule of the training."""
    beta_start: float | None = None
    beta_end: float | None = None
    objective: Objective | None = None
    """What the network predicts."""
    variance: Variance | None = None
    """Variance of a reverse step."""
    clip: Clip | None = None
    """Clip the predicted x_0, clamp every x_t (state), or neither."""


@dataclass(frozen=True)
class SampleFlags:
    """Draw pictures from a trained model."""

    model: Path
    """Run folder, .safetensors, .pt or .pth."""
    out: Path = Path("samples.png")
    """A .png (grid), a .npz (images: uint8, and x0: float32, both (N, H, W, C)), or a folder (one PNG an image)."""
    num_images: int = 16
    seed: int = 0
    """Picture i of a seed is always the same."""
    batch_size: int = 64
    """Images drawn at a time."""
    precision: Precision = "float32"
    image_size: int | None = None
    """Height and width, for files that cannot tell."""
    diffusion: DiffusionFlags = DiffusionFlags()


def main():
    flags = tyro.cli(SampleFlags, config=(tyro.conf.OmitArgPrefixes,))
    import jax  # after the flags, so that --help and mistakes answer at once
    import jax.numpy as jnp
    from tqdm import tqdm

    from jax_ddpm import model_files, report, samplers

    report.check_images_path(flags.out)
    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    model = model_files.load_model(flags.model, flags.image_size, flags.precision, **asdict(flags.diffusion))
    print(model_files.describe(model.info, model.num_parameters))
    diffusion = model.info.diffusion
    with tqdm(
        total=diffusion.timesteps * -(-flags.num_images // max(1, flags.batch_size)), unit="step", delay=0.5
    ) as bar:
        x_0 = samplers.sample(
            model,
            flags.num_images,
            flags.seed,
            flags.batch_size,
            dtype=jnp.float64 if flags.precision == "float64" else jnp.float32,
            progress=lambda done: bar.update(int(done) - bar.n % diffusion.timesteps),
        )
        jax.effects_barrier()
    print(f"Saved {report.write_images(flags.out, x_0)}")


if __name__ == "__main__":
    run_command(main)
