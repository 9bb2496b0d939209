"""`jax-ddpm sample`: draw pictures from a trained model; edit images with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro

from jax_ddpm.commands.drawing import EditingFlags, check_together, draw
from jax_ddpm.commands.flags import DiffusionFlags, ImportFlag, LoadingFlags, parse, read_setting
from jax_ddpm.commands.label_flags import GuidanceFlags, LabelFlags
from jax_ddpm.commands.noise_checking import CheckFlags, say_check
from jax_ddpm.commands.together import compare_weights, refuse_together, together
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.model_info import describe
from jax_ddpm.spec.types import Precision
from jax_ddpm.training.start_hosts import HostFlags

EXAMPLES = (
    "--model runs/digits-digits --num-images 64 --out grid.png",
    "--model runs/digits-digits --sampler ddim --num-steps 50 --out arrays.npz",
    "--model runs/clothes --labels sneaker,7,bag --guidance 2",
)


@dataclass(frozen=True)
class SampleFlags:
    """Draw pictures from a trained model, or edit images with it."""

    model: Path
    """Run folder, one of its checkpoints, diffusers folder, or a file of safetensors or PyTorch, whatever its name."""
    out: Path = Path("samples.png")
    """A .png (a grid), a .gif (from noise to images), a .npz (`images`, uint8, and `x0`, float32, both (N, H, W, C)),
    or a folder (a PNG each)."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write to --out even if it is a folder that is not empty, whose numbered pictures are then deleted, or a file that
    this command did not write."""
    num_images: int | None = None
    """Number of pictures. Default: 16; with --seeds one per seed; with several images one per image; with several
    labels one per label, or 8 with --label-grid."""
    seed: int = 0
    """Seed of the noise. Picture i of a seed is always the same, whatever the number of pictures."""
    seeds: str | None = None
    """Draw the first picture of each of these seeds, such as 3,7,11."""
    batch_size: int = 64
    """Pictures drawn at a time."""
    framework: Literal["jax", "torch"] = "jax"
    """Framework that draws; both draw the same pictures."""
    precision: Precision = "float32"
    """dtype of the network's activations. With float64, everything is computed in float64. tf32: float32, but products
    in TF32 on GPUs and in three bfloat16 passes on TPUs."""
    image_size: ImageSize | None = None
    """Height and width of the images, or one number if they are square, for model files that do not say."""
    rescale: Literal["none", "per-image"] = "none"
    """per-image: map each picture's own range of values to black and white, for samples that leave [-1, 1]."""
    hosts: Annotated[HostFlags, tyro.conf.arg(name="")] = field(default_factory=HostFlags)
    imports: ImportFlag = ()
    label: LabelFlags = field(default_factory=LabelFlags)
    editing: EditingFlags = field(default_factory=EditingFlags)
    sampling: GuidanceFlags = field(default_factory=GuidanceFlags)
    loading: LoadingFlags = field(default_factory=LoadingFlags)
    check: CheckFlags = field(default_factory=CheckFlags)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(SampleFlags, arguments, prog, EXAMPLES)
    refuse_together(
        flags.hosts, {"--framework torch": flags.framework == "torch", "A .gif": flags.out.suffix == ".gif"}
    )
    from jax_ddpm import report  # imported here so that --help and flag errors appear at once

    with together("sample", flags, arguments) as hosts:
        if hosts is None or hosts.index == 0:
            report.check_images_path(flags.out, flags.overwrite)
        check_together(flags)
        model, package, settings, described = with_jax(flags) if flags.framework == "jax" else with_torch(flags)
        compare_weights(hosts, model)
        print(described)
        say_check(flags, flags.model, model)
        print(f"Saved {draw(flags, model, package, settings)}")


def with_jax(flags: SampleFlags):
    import jax
    import jax.numpy as jnp

    import jax_ddpm

    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    settings = {**flags.loading.arguments, **asdict(flags.diffusion)}
    model = jax_ddpm.load_model(flags.model, flags.image_size, flags.precision, **settings)
    guide = flags.label.guide and jax_ddpm.load_model(flags.label.guide, flags.image_size, flags.precision)
    dtype = jnp.float64 if flags.precision == "float64" else jnp.float32
    described = describe(model.info, model.num_parameters)
    return model, jax_ddpm, {"guide": guide, "dtype": dtype, **classifier_settings(flags, jax_ddpm)}, described


def with_torch(flags: SampleFlags):
    try:
        import torch
    except ImportError:
        raise UserError("--framework torch needs PyTorch: pip install 'jax-ddpm[torch]'.") from None

    import torch_ref
    from torch_ref.weights import num_parameters

    settings = {**flags.loading.arguments, **asdict(flags.diffusion)}
    model = torch_ref.load_model(flags.model, flags.image_size, flags.precision, **settings)
    guide = flags.label.guide and torch_ref.load_model(flags.label.guide, flags.image_size, flags.precision)
    dtype = torch.float64 if flags.precision == "float64" else torch.float32
    described = describe(model.info, num_parameters(model))
    return model, torch_ref, {"guide": guide, "dtype": dtype, **classifier_settings(flags, torch_ref)}, described


def classifier_settings(flags: SampleFlags, package: ModuleType) -> dict:
    """The arguments `classifier` and `classifier_scale` of the package's `sample`, if there is a classifier."""
    if flags.label.classifier is None:
        return {}
    settings = dict(read_setting(text, "classifier-setting") for text in flags.label.classifier_setting)
    classifier = package.load_noisy_classifier(flags.label.classifier, flags.precision, network_settings=settings)
    return {"classifier": classifier, "classifier_scale": flags.label.classifier_scale}
