"""`jax-ddpm convert`: convert a model file between JAX, PyTorch and diffusers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, parse
from jax_ddpm.spec.image_size import ImageSize

EXAMPLES = ("somebodys.pt model.safetensors", "runs/cifar10-ddpm diffusers_model --format diffusers")


@dataclass(frozen=True)
class ConvertFlags:
    """Convert a model file to another format. Checks that no parameter is missing or left over."""

    input: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUT")]
    """Run folder, diffusers folder, .safetensors, .pt, .pth or .bin."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    """A .safetensors (which also stores the settings), a .pt, a .pth, or a folder for load_model."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace OUTPUT even if it holds the weights of a run, or a file that this command did not write."""
    format: Literal["diffusers"] | None = None
    """Write a model folder of the diffusers package; only for the network `ddpm`."""
    image_size: ImageSize | None = None
    """Height and width of the images, or one number if they are square, for model files that do not say."""
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ConvertFlags, arguments, prog, EXAMPLES)
    from jax_ddpm import weights
    from jax_ddpm.spec.model_info import describe
    from jax_ddpm.spec.write_model import check_output, save_model
    from jax_ddpm.weights.model import load_model

    as_diffusers = flags.format == "diffusers"
    check_output(flags.output, as_diffusers, flags.overwrite)
    model = load_model(flags.input, flags.image_size, **asdict(flags.diffusion))
    print(f"Read {flags.input}: {describe(model.info, model.num_parameters)}")
    path = save_model(flags.output, weights.state_dict(model.network), model.info, as_diffusers)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
