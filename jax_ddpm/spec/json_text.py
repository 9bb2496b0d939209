"""Settings as JSON text and back, checked by pydantic."""

import dataclasses
import json

from jax_ddpm.spec.errors import UserError

STRICT = {"extra": "forbid"}
"""Pydantic's setting of every dataclass here: an unknown field in a JSON file is an error."""


def to_json(config) -> str:
    """A config dataclass as JSON text; `from_json` gives the equal object back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type, text: str, source: str):
    """An object of a config dataclass from JSON text; `source` is named in errors.

    Raises UserError that names the missing, unknown or mistyped fields.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{source} is not a valid {cls.__name__}: {'; '.join(faults[:5])}.") from None
