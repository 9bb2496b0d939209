"""`jax-ddpm push`: publish a run on the Hugging Face Hub."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import ImportFlag, parse
from jax_ddpm.spec.hub import check_name, upload

EXAMPLES = ("runs/digits-digits me/digits-ddpm", "runs/digits-digits me/digits-ddpm --folder digits-ddpm")


@dataclass(frozen=True)
class PushFlags:
    """Publish a run on the Hugging Face Hub: weights, settings, pictures, and a model card. Then it
    is loaded by its name: --model OWNER/NAME."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")]
    """Name on the Hub. OWNER is you or an organisation of yours."""
    private: tyro.conf.FlagCreatePairsOff[bool] = False
    """Make a new model private. Otherwise everyone can see it, as is usual there."""
    folder: Path | None = None
    """Write the files into this new folder, to look at them, and upload nothing."""
    imports: ImportFlag = ()


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(PushFlags, arguments, prog, EXAMPLES)
    check_name(flags.name)
    from jax_ddpm.training.hub_folder import write_hub_folder  # imported here so that flag errors appear at once

    if flags.folder is not None:
        write_hub_folder(flags.run, flags.folder, flags.name)
        print(f"Wrote {flags.folder}. Nothing was uploaded. The card is {flags.folder / 'README.md'}.")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_hub_folder(flags.run, Path(folder), flags.name)
        upload(Path(folder), flags.name, flags.private, print)
