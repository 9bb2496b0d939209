"""Names of modules and arrays in both frameworks: what is called the same, and tables of what is not."""

import re
from collections.abc import Mapping

ROLES = {
    **dict.fromkeys(("kernel", "scale", "embedding", "in_proj_weight", "w", "gamma"), "weight"),
    **dict.fromkeys(("in_proj_bias", "b", "beta"), "bias"),
    **{"mean": "running_mean", "var": "running_var"},
}
"""What other names of a layer's own arrays are called in PyTorch."""


def owner(name: str) -> str:
    return name.rpartition(".")[0]


def last(name: str) -> str:
    return name.rpartition(".")[2]


def translated(table: Mapping[str, str], name: str) -> str:
    """Their name with the beginning that a line of the table names replaced by ours; the longest line counts."""
    best, result = -1, name
    for theirs, ours in table.items():
        match = re.fullmatch(re.escape(theirs).replace(r"\{\}", r"(\d+)") + r"(\..+)?", name)
        if match and len(theirs) > best:
            *numbers, rest = match.groups()
            best, result = len(theirs), f"{ours.format(*numbers)}{rest or ''}".lstrip(".")
    return result


def plain_name(name: str) -> str:
    """A name without what frameworks write differently: case, dots or underscores, the words for a layer's arrays."""
    *module, array = name.split(".")
    array = ROLES.get(array, array)
    return ".".join(part for part in re.split(r"[._]", ".".join([*module, array]).lower()) if part)


def general_table(lines: Mapping[str, str]) -> dict[str, str]:
    """A table {their name: ours} in which {} stands for numbers that are the same on both sides. Equal names are left
    out."""
    number = r"(?<![^.])\d+(?![^.])"
    general: dict[str, str] = {}
    for theirs, ours in lines.items():
        numbers = re.findall(number, theirs)
        same = numbers and numbers == re.findall(number, ours)
        key, value = (re.sub(number, "{}", theirs), re.sub(number, "{}", ours)) if same else (theirs, ours)
        if general.setdefault(key, value) != value:
            general[theirs] = ours
    return {theirs: ours for theirs, ours in general.items() if theirs != ours}
