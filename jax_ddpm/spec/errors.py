"""The exception for wrong input, and checks that raise it."""

from typing import get_args

MAX_CHARACTERS = 1000


class UserError(ValueError):
    """Wrong input from the user: a flag, file, shape or data set that cannot be used.

    The message has one or two lines: what is wrong, what was expected, what to do. For refused weights it may have
    ten (`max_lines`). It has at most 1,000 characters. Commands print it and exit with code 2.
    """

    def __init__(self, message: str, max_lines: int = 2):
        lines = message.splitlines()  # names read from files may contain newlines and control characters
        text = "\n".join(lines) if len(lines) <= max_lines else " ".join(lines)
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
        super().__init__(text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "...")


def require(condition: bool, name: str, value, expected: str) -> None:
    """Raise UserError "name = value: expected." unless the condition holds."""
    if not condition:
        raise UserError(f"{name} = {value}: {expected}.")


def require_one_of(name: str, value, choices) -> None:
    """Raise UserError unless the value is among the choices, a `typing.Literal`."""
    require(value in get_args(choices), name, value, f"expected one of {', '.join(get_args(choices))}")
