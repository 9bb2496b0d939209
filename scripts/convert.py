"""Convert a model: python scripts/convert.py somebodys.pt model.safetensors

INPUT and OUTPUT are run folders, .safetensors, .pt or .pth in any direction; the format follows from the path. INPUT
may also be a model folder of the diffusers package, and OUTPUT becomes one with --format diffusers.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from jax_ddpm.command_line import DiffusionFlags, run_command


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


def main():
    flags = tyro.cli(ConvertFlags, config=(tyro.conf.OmitArgPrefixes,))
    from jax_ddpm import model_files, weights

    as_diffusers = flags.format == "diffusers"
    model_files.check_output(flags.output, as_diffusers)
    model = model_files.load_model(flags.input, flags.image_size, **asdict(flags.diffusion))
    print(f"Read {flags.input}: {model_files.describe(model.info, model.num_parameters)}")
    path = model_files.convert_to(flags.output, weights.state_dict(model.network), model.info, as_diffusers)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
