"""The one exception for what a user got wrong; commands print its text and exit with code 2."""

from typing import get_args


class UserError(ValueError):
    """A flag, file, shape or data set that cannot be used.

    The message is one or two lines: what is wrong, what was expected, what to do.
    """

    def __init__(self, message: str):
        lines = message.splitlines()  # names out of files hold what they like
        text = "\n".join(lines) if len(lines) <= 2 else " ".join(lines)
        super().__init__("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def require(condition: bool, name: str, value, expected: str) -> None:
    """UserError "name = value: expected." unless the condition holds."""
    if not condition:
        raise UserError(f"{name} = {value}: {expected}.")


def require_one_of(name: str, value, choices) -> None:
    """UserError unless the value is one of a Literal's."""
    require(value in get_args(choices), name, value, f"expected one of {', '.join(get_args(choices))}")
