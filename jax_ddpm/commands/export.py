"""`jax-ddpm export`: write a sampler as a file that runs without this package."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, ImportFlag, LoadingFlags, SamplerFlags, parse
from jax_ddpm.commands.noise_checking import CheckFlags, say_check
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.exporting import STABLEHLO, STEP_SUFFIXES, check_export_path, null_label, takes_weight
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.types import Precision

EXAMPLES = (
    "runs/digits-digits sampler.stablehlo",
    "runs/digits-digits step.onnx --sampler ddim --num-steps 50",
)


@dataclass(frozen=True)
class ExportedSamplerFlags(SamplerFlags):
    """Settings of the sampler. The weight of guidance is an argument of the exported file."""

    guidance: tyro.conf.Suppress[tyro.conf.Fixed[float]] = 1.0


@dataclass(frozen=True)
class ExportFlags:
    """Write a sampler, with the weights of a model in it, as a file that runs without this package."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Run folder, one of its checkpoints, diffusers folder, or a file of safetensors or PyTorch, whatever its name."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    """A .stablehlo: the whole sampler, for JAX. A .onnx or a .pt2: one step of it, for ONNX Runtime or PyTorch."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace OUTPUT if it exists."""
    precision: Precision = "float32"
    """dtype of the network's activations. With float64, everything is computed in float64. tf32: float32, but products
    in TF32 on GPUs and in three bfloat16 passes on TPUs."""
    image_size: ImageSize | None = None
    """Height and width of the images, or one number if they are square, for model files that do not say."""
    guide: Path | None = None
    """A weaker model, away from which the pictures are guided (autoguidance). The file then takes the weight."""
    imports: ImportFlag = ()
    sampling: ExportedSamplerFlags = field(default_factory=ExportedSamplerFlags)
    loading: LoadingFlags = field(default_factory=LoadingFlags)
    check: CheckFlags = field(default_factory=CheckFlags)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ExportFlags, arguments, prog, EXAMPLES)
    check_export_path(flags.output, (STABLEHLO, *STEP_SUFFIXES), flags.overwrite)
    info, guide = write_sampler(flags) if flags.output.suffix == STABLEHLO else write_step(flags)
    print(f"Wrote {flags.output}, {flags.output.stat().st_size / 1e6:.1f} MB.")
    if null_label(info, guide) is not None:
        print(f"Its labels are numbers of classes. {null_label(info, guide)} stands for no label.")
    if takes_weight(info, guide):
        print("It takes the weight of guidance as an argument. 1: none.")


def write_sampler(flags: ExportFlags) -> tuple[ModelInfo, ModelInfo | None]:
    import jax
    import jax.numpy as jnp

    import jax_ddpm

    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    settings = {**flags.loading.arguments, **asdict(flags.diffusion)}
    model = jax_ddpm.load_model(flags.model, flags.image_size, flags.precision, **settings)
    say_check(flags, flags.model, model)
    guide = flags.guide and jax_ddpm.load_model(flags.guide, flags.image_size, flags.precision)
    dtype = jnp.float64 if flags.precision == "float64" else jnp.float32
    sampler = flags.sampling.fitting(model.info.diffusion)
    jax_ddpm.export_sampler(model, flags.output, sampler=sampler, guide=guide, dtype=dtype)
    return model.info, guide and guide.info


def write_step(flags: ExportFlags) -> tuple[ModelInfo, ModelInfo | None]:
    fits = ("float32",) if flags.output.suffix == ".onnx" else ("float32", "float64")
    require(flags.precision in fits, "precision", flags.precision, f"for {flags.output.suffix} {' or '.join(fits)}")
    try:
        import torch
    except ImportError:
        raise UserError(
            f"A {flags.output.suffix} is made by PyTorch: pip install 'jax-ddpm[torch]'.\n"
            "A .stablehlo is made without it."
        ) from None

    import torch_ref

    settings = {**flags.loading.arguments, **asdict(flags.diffusion)}
    model = torch_ref.load_model(flags.model, flags.image_size, flags.precision, **settings)
    say_check(flags, flags.model, model)
    guide = flags.guide and torch_ref.load_model(flags.guide, flags.image_size, flags.precision)
    dtype = torch.float64 if flags.precision == "float64" else torch.float32
    sampler = flags.sampling.fitting(model.info.diffusion)
    torch_ref.export_step(model, flags.output, sampler=sampler, guide=guide, dtype=dtype)
    return model.info, guide and guide.info
