"""Settings as JSON, checked by pydantic."""

import dataclasses
import json

from jax_ddpm.spec.errors import UserError

STRICT = {"extra": "forbid"}
"""Pydantic setting of the config dataclasses: an unknown field in a JSON file is an error."""


def to_json(config) -> str:
    """A config dataclass as JSON text. `from_json` reads it back to an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type, text: str, source: str):
    """An object of the config dataclass `cls` from JSON text.

    source: where the text comes from, for messages. Raises UserError that names missing, unknown and mistyped fields.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        errors = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{source} is not a valid {cls.__name__}: {'; '.join(errors[:5])}.") from None
