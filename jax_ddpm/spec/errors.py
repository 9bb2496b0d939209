"""The exception for wrong input, and checks that raise it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import get_args

MAX_CHARACTERS = 1000
PROGRAMS = ("jax-ddpm ", "python ", "pip ", "hf ")  # a line with one of these is a command, and keeps its flags
BRACKETED = r"[^()]*(?:\([^()]*\)[^()]*)*"  # text with balanced brackets, one level deep
_in_command = False


class UserError(ValueError):
    """Wrong input from the user: a flag, file, shape or data set that cannot be used.

    The message has one or two lines: what is wrong, what was expected, what to do. For refused weights it may have
    ten (`max_lines`). It has at most 1,000 characters. Commands print it and exit with code 2.

    Messages are written in a command's words, such as "omit --steps". Outside of commands the flags become arguments:
    "omit steps". Where that is not enough, a message says both: "--clip-norm 1 (in Python: clip_norm=1)".
    """

    def __init__(self, message: str, max_lines: int = 2):
        lines = users_words(message).splitlines()  # names read from files may contain newlines and control characters
        text = "\n".join(lines) if len(lines) <= max_lines else " ".join(lines)
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
        super().__init__(text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "...")


@contextmanager
def messages_of_commands() -> Iterator[None]:
    """Within this context, messages name flags. Outside of it, they name arguments of Python."""
    global _in_command
    before, _in_command = _in_command, True
    try:
        yield
    finally:
        _in_command = before


def users_words(message: str) -> str:
    """The message in the words of whoever reads it: of a command's user, or of Python's."""
    if _in_command:
        return re.sub(rf" \(in Python: {BRACKETED}\)", "", message)
    lines = message.split("\n")
    return "\n".join(line if any(name in line for name in PROGRAMS) else arguments_for_flags(line) for line in lines)


def settings_text(values: Mapping[str, object]) -> str:
    """Settings in the words of whoever reads them: "--eta 1 --num-steps 50", or "eta=1, num_steps=50"."""
    if _in_command:
        words = {
            name: " ".join(f"{each:g}" for each in value) for name, value in values.items() if type(value) is tuple
        }
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in {**values, **words}.items())
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def arguments_for_flags(line: str) -> str:
    """A line with arguments of Python in place of flags."""
    line = re.sub(rf"--[a-z](?:(?!--)[^()])* \(in Python: ({BRACKETED})\)", r"\1", line)
    line = re.sub(r"\(--([a-z][\w-]*) ([\w.-]+)\)", lambda m: f"({argument(m[1])}={literal(m[2])})", line)
    line = re.sub(r"\b([Aa]dd) --([a-z][\w-]*)(?=[.,;]| to |$)", lambda m: f"{m[1]} {argument(m[2])}=True", line)
    return re.sub(r"(?<![\w=-])--([a-z][\w-]*\w)", lambda m: argument(m[1]), line)


def argument(flag: str) -> str:
    return flag.replace("-", "_")


def literal(word: str) -> str:
    is_value = word in ("True", "False", "None") or re.fullmatch(r"-?[\d.]+(e-?\d+)?", word)
    return word if is_value else repr(word)


def require(condition: bool, name: str, value, expected: str) -> None:
    """Raise UserError "name = value: expected." unless the condition holds."""
    if not condition:
        raise UserError(f"{name} = {value}: {expected}.")


def require_one_of(name: str, value, choices) -> None:
    """Raise UserError unless the value is among the choices, a `typing.Literal`."""
    require(value in get_args(choices), name, value, f"expected one of {', '.join(get_args(choices))}")
