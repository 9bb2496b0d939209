"""`jax-ddpm COMMAND ...`: choose the command, run it, and report mistakes without a traceback."""

import importlib
import os
import re
import sys
import traceback

from jax_ddpm.commands.interrupts import ended_by_ctrl_c

COMMANDS = {
    "train": "Train a model in JAX.",
    "sample": "Draw pictures from a trained model, or edit images with it.",
    "evaluate": "Measure how close a model's images come to real ones.",
    "convert": "Convert a model file between JAX, PyTorch and diffusers.",
    "export": "Write a sampler as a file that runs without this package.",
    "report": "Write an HTML report of a training run.",
    "compare": "Compare several runs: settings, losses, scores and pictures.",
    "doctor": "Compare a PyTorch module with its port to Flax, and name the first wrong layer.",
    "benchmark": "Compare the speed of jax_ddpm with PyTorch.",
    "plan": "Compile a run for GPUs or TPUs that are not here: memory, work, what bounds it.",
    "push": "Publish a run on the Hugging Face Hub.",
    "train-torch": "Train the PyTorch reference; takes the flags of train.",
}
CRASHED = {"doctor": 70}  # exit codes after a mistake in the program, where 1 has a meaning
SCRIPTS = {"train": "train_jax"}  # scripts whose names differ from the command's


def main() -> None:
    """The installed command `jax-ddpm`."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        run(arguments[0], arguments[1:], f"jax-ddpm {arguments[0]}")
    elif arguments in (["--version"], ["-V"]):
        import jax_ddpm

        print(f"jax-ddpm {jax_ddpm.__version__}")
    elif arguments in ([], ["--help"], ["-h"]):
        print(overview())
    else:
        print(f"Unknown command '{arguments[0]}': expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """What `jax-ddpm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    example = "Example:\n  jax-ddpm train --dataset digits --out runs/digits"
    return "\n".join(
        ["usage: jax-ddpm COMMAND [flags]", "", *lines, "", "jax-ddpm COMMAND --help shows its flags.", "", example]
    )


def run_script(command: str) -> None:
    """Entry point of the files in `scripts/`: the same as `jax-ddpm COMMAND`, with the script's flags."""
    run(command, sys.argv[1:], f"python scripts/{SCRIPTS.get(command, command).replace('-', '_')}.py")


def run(command: str, arguments: list[str], prog: str) -> None:
    """Run a command, and end the process with 0, or with 128 + the number of the signal that stopped it.

    What the user can mend (flags, files, memory, disk, packages, devices) becomes one or two lines on stderr and exit
    code 2. Only a mistake in the program shows a traceback.

    prog: how the user called it, for --help.
    """
    from jax_ddpm.spec.errors import messages_of_commands  # here: imports fail with a sentence, too

    with ended_by_ctrl_c(), messages_of_commands():
        try:
            prepare_and_run(command, [expand_home(argument) for argument in arguments], prog)
        except KeyboardInterrupt as error:  # the message of `Interrupted`, from a training run, says how to resume
            print(error if str(error) else "Interrupted.", file=sys.stderr)
            sys.exit(128 + getattr(error, "number", 2))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CRASHED.get(command, 1))
        except Exception as error:
            message = explanation(error, command)
            if message is None and command in CRASHED:
                traceback.print_exc()
                sys.exit(CRASHED[command])
            if message is None:
                raise
            print(message, file=sys.stderr)
            sys.exit(2)


def prepare_and_run(command: str, arguments: list[str], prog: str) -> None:
    from jax_ddpm.process import prepare_process, use_compilation_cache  # here: imports fail with a sentence, too

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # what a terminal or a Windows pipe cannot encode becomes a question mark
    use_compilation_cache()
    prepare_process()
    if any(argument.partition("=")[0] == "--import" for argument in arguments):
        from jax_ddpm.commands.own_code import import_given

        import_given(arguments)
    importlib.import_module(f"jax_ddpm.commands.{command.replace('-', '_')}").main(arguments, prog)


def explanation(error: Exception, command: str) -> str | None:
    """One or two lines for the user, or None for a mistake in the program."""
    from jax_ddpm.commands.failures import explain
    from jax_ddpm.spec.errors import UserError

    return str(error) if isinstance(error, UserError) else explain(error, command)


def expand_home(argument: str) -> str:
    """`--out=~/x` and `~/x` with the home folder in place of the ~, which shells leave after a =."""
    option, path = re.fullmatch(r"(--[\w-]+=)?(.*)", argument, re.DOTALL).groups(default="")
    return option + os.path.expanduser(path)
