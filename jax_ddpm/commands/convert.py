"""`jax-ddpm convert`: convert a model file between JAX, PyTorch and diffusers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, ImportFlag, LoadingFlags, parse
from jax_ddpm.commands.noise_checking import CheckFlags, say_check
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.layout import Layout
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.types import StateDict

EXAMPLES = ("somebodys.pt model.safetensors", "runs/cifar10-ddpm diffusers_model --format diffusers")


@dataclass(frozen=True)
class ConvertFlags:
    """Convert a model file to another format. Checks that no parameter is missing or left over."""

    input: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUT")]
    """Run folder, one of its checkpoints, diffusers folder, or a file of safetensors or PyTorch, whatever its name."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    """A .safetensors (which also stores the settings), a .pt, .pth, .bin or .ckpt, or a folder for load_model."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace OUTPUT even if it holds the weights of a run, or a file that this command did not write."""
    format: Literal["diffusers"] | None = None
    """Write a model folder of the diffusers package; only for the network `ddpm`."""
    layout: str | None = None
    """For a .pt and the like: write keys and names as this checkpoint has them, or `plain` ones. Default: as the
    checkpoint from which INPUT was converted, if it was."""
    image_size: ImageSize | None = None
    """Height and width of the images, or one number if they are square, for model files that do not say."""
    imports: ImportFlag = ()
    loading: LoadingFlags = field(default_factory=LoadingFlags)
    check: CheckFlags = field(default_factory=CheckFlags)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ConvertFlags, arguments, prog, EXAMPLES)
    from jax_ddpm import weights
    from jax_ddpm.spec.write_model import check_output, save_model
    from jax_ddpm.weights.model import load_model

    as_diffusers = flags.format == "diffusers"
    check_output(flags.output, as_diffusers, flags.overwrite)
    model = load_model(flags.input, flags.image_size, **flags.loading.arguments, **asdict(flags.diffusion))
    print(f"Read {flags.input}: {describe(model.info, model.num_parameters)}")
    say_check(flags, flags.input, model)
    values = weights.state_dict(model.network)
    layout = choose_layout(flags, values, model.info)
    path = save_model(flags.output, values, model.info, as_diffusers, layout)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB{'' if layout is None else f', {layout.describe()}'}")


def choose_layout(flags: ConvertFlags, values: StateDict, info: ModelInfo) -> Layout | None:
    """The layout of somebody's checkpoint for the output, or None. Raises UserError for an unfit --layout."""
    from jax_ddpm.spec.model_files import MODEL_FILE
    from jax_ddpm.spec.write_model import TORCH_ENDINGS, is_converted

    if flags.format is not None or flags.output.suffix not in TORCH_ENDINGS:
        require(flags.layout is None, "layout", flags.layout, f"only for a {', '.join(TORCH_ENDINGS)} file")
        return None
    if flags.layout is None:
        file = flags.input / MODEL_FILE if flags.input.is_dir() else flags.input
        return info.layout if info.layout is not None and is_converted(file) else None
    return None if flags.layout == "plain" else layout_of(Path(flags.layout), values, info)


def layout_of(path: Path, values: StateDict, model: ModelInfo) -> Layout:
    """The layout of the checkpoint at `path`, which must have arrays of the same names and shapes as the model."""
    from jax_ddpm import weights
    from jax_ddpm.spec.model_files import read_model

    network = None if model.network.name in BUILT_IN else model.network
    theirs, info = read_model(path, network=network, shapes_of=weights.array_shapes, log=lambda line: None)
    if info.layout is None:
        raise UserError(
            f"--layout {path}: expected somebody's checkpoint. For the names of this package: --layout plain"
        )
    if {name: value.shape for name, value in theirs.items()} != {name: value.shape for name, value in values.items()}:
        raise UserError(f"--layout {path}: its network has other arrays than the one that is converted.")
    return info.layout
