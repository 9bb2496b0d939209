"""Make text from elsewhere fit for a one-line message."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """The text with non-printable characters, including line breaks, replaced by question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def one_line(error: BaseException, width: int = 160) -> str:
    """The first line of an exception's message, or its class if it has none. At most `width` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = printable(lines[0]).rstrip(".:")
    return line if len(line) <= width else line[: width - 3] + "..."


def some(items: Sequence[str], count: int = 3, width: int = 60) -> str:
    """The first `count` of the items, each cut to `width` characters, and how many more there are."""
    shown = [item if len(item) <= width else item[: width - 3] + "..." for item in items[:count]]
    more = [f"{len(items) - count:,} more"] if len(items) > count else []
    return " and ".join([", ".join(shown), *more])
