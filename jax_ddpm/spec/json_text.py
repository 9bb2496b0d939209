"""Settings as JSON, checked by pydantic."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from jax_ddpm.spec.errors import UserError

STRICT = {"extra": "forbid"}
"""Pydantic setting of the config dataclasses: an unknown field in a JSON file is an error."""


def to_json(config) -> str:
    """A config dataclass as JSON text. `from_json` reads it back to an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type, text: str, source: str, imports: Collection[str] = ()):
    """An object of the config dataclass `cls` from JSON text.

    source: where the text comes from, for messages. imports: what registers its network, for the message. Raises
    UserError that names missing, unknown and mistyped fields, or a network that is not registered.
    """
    import pydantic

    from jax_ddpm.spec.own_networks import not_registered  # here: it reads settings of networks, with this function

    try:
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        for e in error.errors():
            if e["type"] == "union_tag_invalid" and e["ctx"]["discriminator"] == "'name'":
                raise not_registered(e["ctx"]["tag"], source, imports) from None
        errors = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{source} is not a valid {cls.__name__}: {'; '.join(errors[:5])}.") from None


def read_object(path: Path) -> dict:
    """The object in a settings file of the diffusers package, a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: expected a settings file of diffusers.")
    return value


def shortened(value) -> str:
    """repr(value), cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require_supported(path: Path, supported: dict[str, tuple], config: dict) -> None:
    """Raise UserError that names the fields whose value is not among the supported ones."""
    wrong = [
        f"{name} = {shortened(config[name])} (expected {' or '.join(map(str, values))})"
        for name, values in supported.items()
        if config[name] not in values
    ]
    if wrong:
        raise UserError(f"{path} is not supported: {', '.join(wrong)}.")
