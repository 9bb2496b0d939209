"""`jax-ddpm convert`: convert a model file between JAX, PyTorch and diffusers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, parse


@dataclass(frozen=True)
class ConvertFlags:
    """Read a model of either framework, check that it is whole, and write it in the format of the output's path."""

    input: tyro.conf.Positional[Path]
    """Run folder, diffusers folder, .safetensors, .pt, .pth or .bin."""
    output: tyro.conf.Positional[Path]
    """A .safetensors (with all settings as metadata), a .pt or .pth, or a folder that load_model takes."""
    format: Literal["diffusers"] | None = None
    """diffusers: write that package's model folder (the network `ddpm` only). Default: as the output's path says."""
    image_size: int | None = None
    """Height and width, for files that cannot tell."""
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ConvertFlags, arguments, prog)
    from jax_ddpm import weights
    from jax_ddpm.spec.model_info import describe
    from jax_ddpm.spec.write_model import check_output, convert_to
    from jax_ddpm.weights.model import load_model

    as_diffusers = flags.format == "diffusers"
    check_output(flags.output, as_diffusers)
    model = load_model(flags.input, flags.image_size, **asdict(flags.diffusion))
    print(f"Read {flags.input}: {describe(model.info, model.num_parameters)}")
    path = convert_to(flags.output, weights.state_dict(model.network), model.info, as_diffusers)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
