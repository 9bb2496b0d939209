"""`check_types`: the types of a settings object's fields, checked by pydantic."""

import dataclasses
import json
from functools import cache

import numpy as np

from jax_ddpm.spec.errors import UserError


def check_types(config) -> None:
    """Raise UserError that names the first field of a config dataclass with a value of another type.

    A text that is not among a field's choices, and a field that can be of several types, such as an image size, are
    left to the dataclass's own check. NumPy's numbers count as numbers, and lists as tuples.
    """
    import pydantic

    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    try:
        text = json.dumps(values, default=plain)
    except TypeError as error:
        raise UserError(f"{type(config).__name__}: {error}. Expected numbers, texts, or None.") from None
    try:
        adapter(type(config)).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        for e in error.errors():
            is_other_text = e["type"] == "literal_error" and isinstance(e["input"], str)
            is_of_several_types = any(isinstance(place, str) for place in e["loc"][1:])
            if not (is_other_text or is_of_several_types):
                name = e["loc"][0] if e["loc"] else type(config).__name__
                expected = e["msg"].replace("Input should be", "expected")
                raise UserError(f"{name} = {values.get(name)!r}: {expected}.") from None


@cache
def adapter(kind: type):
    import pydantic

    return pydantic.TypeAdapter(kind)


def plain(value):
    """A value that JSON does not know, as one that it knows."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")
