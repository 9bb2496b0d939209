"""Settings by their flat names, as on the command line: `num_steps=50` instead of `SamplerConfig(num_steps=50)`."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypedDict

import numpy as np

from jax_ddpm.spec.check_types import check_types
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, default_sampler
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.types import Clip, Spacing, Variance


class SamplingSettings(TypedDict, total=False):
    """Settings of `sample` and the editing functions: fields of `SamplerConfig`, and the fields of `DiffusionConfig`
    that concern sampling alone."""

    num_steps: int | None
    spacing: Spacing
    eta: float
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[int, int] | None
    variance: Variance
    clip: Clip
    clip_percentile: float
    clip_range: float
    clip_max: float | None
    sigma_min: float
    sigma_max: float
    rho: float


def sampling_settings(
    sampler: SamplerConfig | str | None, config: DiffusionConfig | None, settings: Mapping[str, Any]
) -> tuple[SamplerConfig, DiffusionConfig]:
    """The sampler and the diffusion settings, with single settings replaced.

    Args:
        sampler: a `SamplerConfig`, or a name such as "ddim". None: the `default_sampler` of the model.
        config: the diffusion settings of the model.
        settings: `SamplingSettings`.

    Raises:
        UserError: an unknown sampler or setting, a wrong type, or no `config`.
    """
    sampler = SamplerConfig(sampler) if isinstance(sampler, str) else sampler
    if not isinstance(sampler, SamplerConfig | None):
        raise UserError(f"sampler = {sampler!r}: expected a name, such as 'ddim', or a SamplerConfig.")
    if not isinstance(config, DiffusionConfig):
        raise UserError(
            f"config = {config!r}: expected a DiffusionConfig.\n"
            "A network alone does not have one: give config=DiffusionConfig(...) and image_shape=(H, W, C)."
        )
    sampler = default_sampler(config) if sampler is None else sampler
    check_names(settings, SamplingSettings.__annotations__)
    given = {name: plain_value(value) for name, value in settings.items()}
    of_sampler = {name: value for name, value in given.items() if name in names_of(sampler)}
    of_diffusion = {name: value for name, value in given.items() if name not in of_sampler}
    sampler, config = replace(sampler, **of_sampler), replace(config, **of_diffusion)
    for part in (sampler, config):
        check_types(part)
    return sampler, config


def with_settings(config, settings: Mapping[str, Any]):
    """A config dataclass made of parts, such as `RunConfig`, with fields of its parts replaced by their names.

    A name that is a part's, such as `training`, replaces the whole part. Raises UserError for an unknown name, or a
    value of another type.
    """
    parts = {name: getattr(config, name) for name in names_of(config)}
    whole = {name: value for name, value in settings.items() if name in parts}
    for name, value in whole.items():
        kind = NetworkConfig if name == "network" else type(parts[name])
        require(isinstance(value, kind), name, repr(value), f"expected a {kind.__name__}")
    parts |= whole
    single = {name: plain_value(value) for name, value in settings.items() if name not in whole}
    owners = parts_by_field(replace(config, **parts))
    check_names(single, owners)
    for part in set(map(owners.get, single)):
        parts[part] = replace(parts[part], **{name: value for name, value in single.items() if owners[name] == part})
        check_types(parts[part])
    return replace(config, **parts)


def parts_by_field(config) -> dict[str, str]:
    """For each field of the parts of a config dataclass, the name of its part. A network's name is left out."""
    parts = {name: part for name in names_of(config) if is_dataclass(part := getattr(config, name))}
    return {name: part for part in reversed(parts) for name in names_of(parts[part]) if name != "name"}


def names_of(config) -> list[str]:
    return [field.name for field in fields(config)]


def check_names(given: Iterable[str], known: Iterable[str], other_names: Mapping[str, str] | None = None) -> None:
    """Raise UserError that names a setting that is not known, and the known one that is most like it.

    other_names: what other programs call a setting, and what to give here.
    """
    for name in given:
        if name not in known:
            near = (other_names or {}).get(name) or similar(name, known)
            raise UserError(
                f"There is no setting {name}: "
                + (f"did you mean {near}?" if near else f"expected one of {', '.join(known)}.")
            )


def similar(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or has it as its initials, as learning_rate has lr."""
    initials = [each for each in known if "".join(word[0] for word in each.split("_")) == name]
    return next(iter(initials or difflib.get_close_matches(name, known, n=1)), None)


def plain_value(value):
    """A value as the settings hold it: tuples for lists, Python's numbers for NumPy's, texts for paths."""
    if isinstance(value, list | tuple):
        return tuple(map(plain_value, value))
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
