"""`jax-ddpm doctor`: compare a PyTorch module with a Flax module, layer by layer, and name why they differ."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, ImportFlag, parse
from jax_ddpm.spec.errors import UserError

EXAMPLES = (
    "unet.py:UNet port.py:UNet --input 2,3,32,32 2",
    "unet.py:UNet port.py:UNet --torch-args width=32 --our-args width=32 --weights unet.pt --input 2,3,32,32 2",
    "runs/digits-digits/model.safetensors",
)


@dataclass(frozen=True)
class DoctorFlags:
    """Compare a PyTorch module with its port to Flax, layer by layer in float64, and name the first layer that is
    wrong and why. Exit code 0: equal; 1: a difference was found; 2: wrong input; 70: a mistake in the doctor.

    With one argument, a model file of a known network: jax_ddpm against torch_ref on this machine.
    """

    theirs: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="THEIRS")] = None
    """FILE.py:CLASS or package.module:FUNCTION that makes a torch.nn.Module. Its code is run. Or a model file."""
    ours: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="OURS")] = None
    """The same for the port: an nnx.Module, a linen.Module, or a function that returns one, or (module, variables)."""
    torch_args: tuple[str, ...] = ()
    """Arguments of THEIRS: NAME=VALUE ..., or a JSON object."""
    our_args: tuple[str, ...] = ()
    """Arguments of OURS: NAME=VALUE ..., or a JSON object."""
    weights: Path | None = None
    """Weights of THEIRS, a file of safetensors or PyTorch. No code in it is run."""
    input: tuple[str, ...] = ()
    """Shapes of the inputs in PyTorch's layout, such as 2,3,32,32 for x and 2 for t; or FILE.py:FUNCTION, which returns
    a tuple of arrays. Numbers are normal; for a shape of one number, and with :int or :int10, they are integers."""
    torch_call: tuple[str, ...] = ()
    """Keyword arguments of the call of THEIRS: NAME=VALUE ..., or a JSON object."""
    our_call: tuple[str, ...] = ()
    """Keyword arguments of the call of OURS, such as train=false."""
    torch_names: str | None = None
    """FILE.py:NAME of a dict {PyTorch name: path in OURS} for names that differ. Default: the class's TORCH_NAMES."""
    transfer: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compare with the weights of THEIRS in a copy of OURS. Default: only if none of OURS are theirs."""
    transfer_to: Path | None = None
    """Do --transfer, and write OURS with these weights to this .safetensors file. `jax_ddpm.doctor.load_transferred`
    loads it into a module."""
    train: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compare in the mode in which the modules are made. Default: both are put into evaluation mode."""
    betas: str | None = None
    """FILE.py:NAME of their noise schedule, betas or a function that makes them: compared with the one that the other
    flags describe."""
    step: str | None = None
    """FILE.py:NAME of their function for one step of the sampler: compared with ours."""
    optimizer: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="THEIRS OURS")] = None
    """FILE.py:NAME of their function of a list of parameters that makes a torch.optim.Optimizer, and of our optax
    transformation, or of a function that makes it: three steps of both are compared."""
    clip_gradients: str | None = None
    """For --optimizer: FILE.py:NAME of what theirs does to the gradients before a step, a function of the list of
    parameters. Ours clips in its transformation."""
    ema: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="THEIRS OURS")] = None
    """FILE.py:NAME of their and of our function (average, parameters, step) -> new average: compared at many steps."""
    ema_decay: float | None = None
    """For --ema: what the functions get for a parameter `decay`."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the result as JSON."""
    html: Path | None = None
    """Write the result to this file, a page that loads nothing else."""
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)
    imports: ImportFlag = ()


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(DoctorFlags, arguments, prog, EXAMPLES)
    check(flags)
    require_torch()
    result = compare_modules(flags) if flags.theirs is not None else None
    others = [*compare_diffusion(flags), *compare_training(flags)]
    if flags.html is not None:
        write_page(flags, result)
    if flags.json:
        data = {} if result is None else result.to_dict()
        print(json.dumps(data | {other.subject: comparison_data(other) for other in others}, indent=2))
    else:
        print("\n\n".join(str(part) for part in [*([] if result is None else [result]), *others]))
    equal = (result is None or result.equal) and all(other.agrees for other in others)
    sys.exit(0 if equal else 1)


def check(flags: DoctorFlags) -> None:
    """Raise UserError for flags that miss another one."""
    if not any((flags.theirs, flags.betas, flags.step, flags.optimizer, flags.ema)):
        raise UserError(
            "Nothing to compare: give THEIRS and OURS, a model file, --betas, --step, --optimizer or --ema. See --help."
        )
    needed = (
        ("--clip-gradients", flags.clip_gradients, "--optimizer", flags.optimizer),
        ("--ema-decay", flags.ema_decay, "--ema", flags.ema),
        ("--transfer-to", flags.transfer_to, "THEIRS and OURS", flags.ours),
        ("--html", flags.html, "THEIRS and OURS", flags.theirs),
    )
    for name, given, other, value in needed:
        if given is not None and value is None:
            raise UserError(f"{name} needs {other}. See --help.")


def require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("The doctor runs PyTorch modules: install it with pip install torch.") from None


def compare_modules(flags: DoctorFlags):
    import torch

    from jax_ddpm import doctor
    from jax_ddpm.doctor import load
    from jax_ddpm.doctor.progress import Progress
    from jax_ddpm.doctor.transferred_file import check_transfer_file

    if flags.ours is None:
        if ".py:" in flags.theirs or (not Path(flags.theirs).exists() and ":" in flags.theirs):
            raise UserError(f"{flags.theirs} is one of two: give the port to Flax, too, or a model file alone.")
        from jax_ddpm.doctor.installation import compare_installation

        return compare_installation(flags.theirs, flags.diffusion)
    torch.manual_seed(0)
    theirs = load.build(flags.theirs, flags.torch_args, "torch-args")
    ours = load.build(flags.ours, flags.our_args, "our-args")
    inputs = load.read_inputs(flags.input)
    keywords = {
        "their_keywords": load.read_arguments(flags.torch_call, "torch-call"),
        "our_keywords": load.read_arguments(flags.our_call, "our-call"),
    }
    for name, given in keywords.items():
        inputs[name] = {**inputs.get(name, {}), **given}
    table = None if flags.torch_names is None else load.load_object(flags.torch_names)
    doctor.check_module(theirs)
    transfer = True if flags.transfer or flags.transfer_to else None
    if flags.transfer_to is not None:
        check_transfer_file(flags.transfer_to)
    if flags.weights is not None:
        load.load_weights(theirs, flags.weights)
    if not flags.train:
        doctor.evaluation_mode(theirs, ours)
    with Progress(lambda line: print(line, file=sys.stderr, flush=True)) as progress:
        result = doctor.compare(theirs, ours, **inputs, table=table, transfer_weights=transfer, progress=progress)
    if flags.transfer_to is not None:
        result.notes.append(doctor.save_transferred(result, ours, flags.transfer_to))
    return result


def compare_diffusion(flags: DoctorFlags) -> list:
    if flags.betas is None and flags.step is None:
        return []
    from jax_ddpm.doctor.diffusion import compare_betas, compare_step
    from jax_ddpm.doctor.load import load_object
    from jax_ddpm.spec.diffusion_config import DiffusionConfig

    given = {name: value for name, value in asdict(flags.diffusion).items() if value is not None}
    config = DiffusionConfig(**given)
    found = []
    betas = None if flags.betas is None else load_object(flags.betas)
    if betas is not None:
        found.append(compare_betas(betas, config))
    if flags.step is not None:
        found.append(compare_step(load_object(flags.step), config, betas=betas))
    return found


def compare_training(flags: DoctorFlags) -> list:
    from jax_ddpm.doctor.load import load_object
    from jax_ddpm.doctor.optimiser import compare_ema, compare_optimizer

    found = []
    if flags.optimizer is not None:
        theirs, ours = map(load_object, flags.optimizer)
        clip = None if flags.clip_gradients is None else load_object(flags.clip_gradients)
        found.append(compare_optimizer(theirs, ours, clip=clip))
    if flags.ema is not None:
        theirs, ours = map(load_object, flags.ema)
        found.append(compare_ema(theirs, ours, decay=flags.ema_decay))
    return found


def comparison_data(comparison) -> dict:
    """A comparison as data that JSON can hold."""
    from jax_ddpm.doctor.result import finite

    causes = [{name: finite(value) for name, value in asdict(cause).items()} for cause in comparison.causes]
    return {
        "equal": comparison.agrees,
        "sentence": comparison.sentence,
        "error": finite(comparison.error),
        "causes": causes,
        "details": list(comparison.details),
    }


def write_page(flags: DoctorFlags, result) -> None:
    from jax_ddpm.doctor.page import page

    shapes = [str(array.shape) for array in result.their_calls[0].arrays]
    try:
        flags.html.write_text(page(result, flags.theirs, flags.ours or "", shapes), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flags.html} cannot be written ({error.strerror}).") from None
    print(f"The page is written to {flags.html}.", file=sys.stderr)
