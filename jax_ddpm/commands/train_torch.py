"""`jax-ddpm train-torch`: train the PyTorch reference on the images, noise and initial weights of `train`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from jax_ddpm.commands.train import parse_run
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_config import RunConfig, slug
from jax_ddpm.training.run_folder import check_folder

EXAMPLES = ("", "--dataset fashion_mnist --preset tiny --steps 100")


def default_out(config: RunConfig) -> Path:
    return Path("runs") / f"{slug(config.data.dataset)}-{config.preset}-torch"


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse_run(arguments, prog, default_out, EXAMPLES)
    if flags.resume or flags.replay_step is not None:
        raise UserError("The PyTorch reference cannot resume or replay a run. Start a new run with another --out.")
    if flags.hosts.resolved({}).distributed:
        raise UserError("The PyTorch reference trains in one process: omit --distributed.")
    if flags.config.training.fsdp:
        raise UserError("The PyTorch reference trains on one device: omit --fsdp.")
    if flags.sweep:
        raise UserError("The PyTorch reference has no sweeps: leave out --sweep.")
    if flags.config.output.evaluate_every:
        raise UserError("The PyTorch reference does not evaluate its samples: leave out --evaluate-every, or give 0.")
    if importlib.util.find_spec("torch") is None:
        raise UserError("This command needs PyTorch: pip install 'jax-ddpm[torch]'.")
    folder = flags.out or default_out(flags.config)
    check_folder(folder, flags.config, resume=False)
    from jax_ddpm.commands.torch_trainer import train  # imported here so that --help and flag errors appear at once

    train(flags.config, folder)
