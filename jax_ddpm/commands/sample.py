"""`jax-ddpm sample`: draw pictures from a trained model; edit images with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from jax_ddpm.commands.drawing import EditingFlags, check_together, draw
from jax_ddpm.commands.flags import DiffusionFlags, parse
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import describe
from jax_ddpm.spec.types import Precision


@dataclass(frozen=True)
class SampleFlags:
    """Draw pictures from a trained model: from noise, from images, or between two seeds."""

    model: Path
    """Run folder, diffusers folder, .safetensors, .pt, .pth or .bin."""
    out: Path = Path("samples.png")
    """A .png (grid), a .npz (images: uint8, and x0: float32, both (N, H, W, C)), or a folder (one PNG an image)."""
    num_images: int | None = None
    """Default: 16, or as many as there are seeds or given images; of one given image so many variations."""
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
    editing: EditingFlags = field(default_factory=EditingFlags)
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(SampleFlags, arguments, prog)
    from jax_ddpm import report  # after the flags, so that --help and mistakes answer at once

    report.check_images_path(flags.out)
    check_together(flags)
    model, package, settings, described = with_jax(flags) if flags.framework == "jax" else with_torch(flags)
    print(described)
    print(f"Saved {draw(flags, model, package, settings)}")


def with_jax(flags: SampleFlags):
    import jax
    import jax.numpy as jnp

    import jax_ddpm

    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    model = jax_ddpm.load_model(flags.model, flags.image_size, flags.precision, **asdict(flags.diffusion))
    dtype = jnp.float64 if flags.precision == "float64" else jnp.float32
    described = describe(model.info, model.num_parameters)
    return model, jax_ddpm, {"sampler": flags.sampling, "dtype": dtype}, described


def with_torch(flags: SampleFlags):
    try:
        import torch
    except ImportError:
        raise UserError("--framework torch needs PyTorch: pip install 'jax-ddpm[torch]'.") from None

    import torch_ref
    from torch_ref.weights import num_parameters

    model = torch_ref.load_model(flags.model, flags.image_size, flags.precision, **asdict(flags.diffusion))
    dtype = torch.float64 if flags.precision == "float64" else torch.float32
    settings = {"sampler": flags.sampling, "dtype": dtype}
    return model, torch_ref, settings, describe(model.info, num_parameters(model))
