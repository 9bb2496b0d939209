"""What the commands share: parsing dataclasses as flags, and flags that several commands have."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from jax_ddpm.spec.diffusion_config import (
    DiffusionConfig,
    SamplerConfig,
    about_sampler,
    check_sampler,
    default_sampler,
)
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import ImageSize, shortest
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.registered import ObjectiveName, SamplerName, ScheduleName
from jax_ddpm.spec.types import Clip, TimeInput, Variance, Weights


def parse(kind, arguments: Sequence[str], prog: str, examples: Sequence[str], default=None, config: tuple = ()):
    """An object of the dataclass `kind` from flags; ends the process at --help and at flags that do not parse.

    Args:
        prog: the command as the user called it.
        examples: flags of the examples in --help, which shows them after the command.
        default: an object whose values the flags replace.
        config: more of tyro's markers.
    """
    shown = "\n".join(f"  {prog} {flags}".rstrip() for flags in examples)
    return tyro.cli(
        kind,
        args=arguments,
        prog=prog,
        description=f"{inspect.cleandoc(kind.__doc__)}\n\nExamples:\n{shown}",
        config=(tyro.conf.OmitArgPrefixes, *config),
        registry=flag_rules(),
        **({} if default is None else {"default": default}),
    )


def flag_rules() -> ConstructorRegistry:
    """How dataclasses become flags, where that differs from tyro's rules.

    A flag of type `X | None` is shown as one of type X, and the word None unsets it. An image size is one or two
    numbers. A default of None or of no values is not shown. A network's name is no flag: the preset chooses it.
    """
    registry = ConstructorRegistry()
    in_tyros_rule = False

    @registry.struct_rule
    def fields_of_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal in_tyros_rule
        if in_tyros_rule or not is_dataclass(info.type):
            return None
        in_tyros_rule = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            in_tyros_rule = False
        return replace(spec, fields=tuple(as_flag(info.type, field) for field in spec.fields))

    @registry.primitive_rule
    def value_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
        kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
        if get_origin(info.type) not in (Union, UnionType) or len(kinds) != 1:
            return None
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        if isinstance(spec, UnsupportedTypeAnnotationError):
            return spec
        return replace(
            spec,
            instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
            is_instance=lambda value: value is None or spec.is_instance(value),
            str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
            choices=spec.choices and (*spec.choices, "None"),
        )

    @registry.primitive_rule
    def name_of_part(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kinds = set(get_args(info.type)) - {NoneType}
        literals = [kind for kind in kinds if get_origin(kind) is Literal]
        if len(kinds) != 2 or str not in kinds or not literals:
            return None
        may_be_none = NoneType in get_args(info.type)
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(get_args(literals[0]))}}}|NAME",
            instance_from_str=lambda words: None if words == ["None"] and may_be_none else words[0],
            is_instance=lambda value: isinstance(value, str) or (value is None and may_be_none),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def image_size(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kinds = set(get_args(info.type))
        if kinds - {NoneType} != set(get_args(ImageSize)):
            return None
        return PrimitiveConstructorSpec(
            nargs=(1, 2),
            metavar="HEIGHT [WIDTH]",
            instance_from_str=lambda words: None if words == ["None"] and NoneType in kinds else read_size(words),
            is_instance=lambda value: isinstance(value, int | tuple) or (value is None and NoneType in kinds),
            str_from_instance=lambda value: list(map(str, value if isinstance(value, tuple) else (value,))),
        )

    return registry


def as_flag(kind: type, field: StructFieldSpec) -> StructFieldSpec:
    """A field of the dataclass `kind`, with the tyro markers that the rules of `flag_rules` need."""
    if issubclass(kind, NetworkConfig) and field.name == "name":
        return replace(field, type=tyro.conf.Suppress[field.type])
    if field.default is None or field.default == ():
        return replace(field, type=Annotated[field.type, tyro.conf.arg(help_behavior_hint="")])
    return field


ImportFlag = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        name="import",
        metavar="FILE.py",
        help="Run this file, or the module of this name, which registers a network, schedule, objective or sampler "
        "of your own. May be given several times. A run only records it: its code is executed if this flag names it.",
        help_behavior_hint="",
    ),
]
"""A field of every command; `own_code` reads it before the other flags."""


@dataclass(frozen=True)
class LoadingFlags:
    """What to load, where a model has several weights, and what its file does not say."""

    weights: Weights | None = None
    """EMA or raw weights. Default: EMA weights where there are some. A run has raw ones in its checkpoints."""
    step: int | None = None
    """For a run: the step of the checkpoint to load. RUN/checkpoints/STEP names it, too."""
    ema_width: float | None = None
    """For a run with --power-ema: load the average of this width, such as 0.05, made of the snapshots up to --step, or
    of all."""
    network_setting: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: a setting of the network that shapes do not show, such as heads=4. May be given several times."""

    @property
    def arguments(self) -> dict:
        """As keyword arguments of `load_model`."""
        return {
            "weights": self.weights,
            "step": self.step,
            "ema_width": self.ema_width,
            "network_settings": dict(map(read_setting, self.network_setting)),
        }


def read_setting(text: str, flag: str = "network-setting") -> tuple[str, Any]:
    """Name and value in NAME=VALUE. Values are read as JSON where they are JSON, as True, False or None, or as text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{flag} = {text}: expected NAME=VALUE, such as heads=4.")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except (ValueError, RecursionError):
        return name, value


@dataclass(frozen=True)
class SamplerFlags(SamplerConfig):
    """Settings of the sampler."""

    sampler: SamplerName | None = None
    """ddpm (ancestral), ddim (Song et al. 2021), dpmpp (DPM-Solver++ 2M; Lu et al. 2022), heun or euler (EDM). Models
    with the objective edm or flow have heun, euler and midpoint. Default: ddpm; for edm and flow, heun."""

    def fitting(self, diffusion: DiffusionConfig, log: Callable[[str], None] = print) -> SamplerConfig:
        """The sampler for a model, which is said if the user named none and it is not ddpm.

        Raises UserError for settings that do not fit.
        """
        chosen = SamplerConfig(**{**asdict(self), "sampler": self.sampler or default_sampler(diffusion).sampler})
        check_sampler(chosen, diffusion)
        if self.sampler is None and diffusion.is_continuous:
            log(about_sampler(chosen, diffusion))
        return chosen


@dataclass(frozen=True)
class DiffusionFlags:
    """Settings of the diffusion. Default: what the model file says, else the preset of its network."""

    timesteps: int | None = None
    """T, the number of timesteps."""
    schedule: ScheduleName | None = None
    """Noise schedule."""
    beta_start: float | None = None
    """beta_1 of linear and scaled_linear; the lower limit of sigmoid_betas."""
    beta_end: float | None = None
    """beta_T of linear and scaled_linear; the upper limit of sigmoid_betas."""
    objective: ObjectiveName | None = None
    """What the network predicts: the noise (eps), the clean image (x0), v, or what edm and flow do."""
    variance: Variance | None = None
    """Variance of a reverse step: beta_t, that of the posterior, or a learned one between them."""
    clip: Clip | None = None
    """While sampling: clip the predicted x_0 (x0), threshold it (dynamic), clamp every x_t (state), or do neither."""
    clip_percentile: float | None = None
    """Share of an image's pixels that dynamic thresholding does not clip."""
    trained_betas: tuple[float, ...] | None = None
    """The T betas of the schedule trained."""
    zero_terminal_snr: bool | None = None
    """Whether the schedule was rescaled so that x_T is pure noise (Lin et al. 2023)."""
    clip_range: float | None = None
    """For clip x0: clip to [-clip_range, clip_range]."""
    clip_max: float | None = None
    """For dynamic thresholding: the largest threshold."""
    sigma_min: float | None = None
    """For edm: the smallest noise level of sampling above 0."""
    sigma_max: float | None = None
    """For edm: the noise level at which sampling starts."""
    sigma_data: float | None = None
    """For edm: standard deviation of the data, for the scales of the network's input and output."""
    rho: float | None = None
    """For edm: exponent of the grid of noise levels."""
    data_range: tuple[float, float] | None = None
    """The values of black and white in the images that the network was trained on, such as 0 1."""
    t_input: TimeInput | None = None
    """What the network receives for timestep t of 0 to T - 1: t (index), t + 1 (from_one), t / T (fraction) or
    (t + 1) / T (fraction_from_one)."""


def read_size(words: list[str]) -> ImageSize:
    """The image size in the words of a flag, one or two integers. ValueError for anything else."""
    if len(words) not in (1, 2) or not all(word.isdecimal() for word in words):
        raise ValueError(f"expected one or two numbers, such as 32 or 32 48, not {' '.join(words) or 'none'}")
    return shortest(tuple(map(int, 2 * words if len(words) == 1 else words)))


def integers(text: str) -> list[int]:
    """The integers in a text such as 3,7,11. UserError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"seeds = {text}: expected integers separated by commas, such as 3,7,11.") from None
