"""A UNet2DModel of the diffusers package as the network `ddpm`: its config.json, read and written."""

import json
from pathlib import Path

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import shortest
from jax_ddpm.spec.json_text import from_json, read_object, require_supported
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig

# Fields with the same name in UNet2DModel and DDPMConfig, with the defaults of diffusers.
SHARED_FIELDS = {
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "dropout": 0.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "add_attention": True,
    "attn_norm_num_groups": None,
    "num_class_embeds": None,
    "class_embed_type": None,
}
# Other fields of UNet2DModel that are converted, with the defaults of diffusers.
CONVERTED_FIELDS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# Fields of UNet2DModel of which `ddpm` supports these values. The first one is the default of diffusers.
SUPPORTED_VALUES = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D", None),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish", "gelu", "mish", "relu"),
    "class_embed_type": (None, "timestep", "identity"),
}
# num_train_timesteps matters only for a learned time embedding. The other fields are saved by EMAModel of diffusers.
IGNORED_FIELDS = (
    *("num_train_timesteps", "decay", "min_decay", "optimization_step", "update_after_step"),
    *("use_ema_warmup", "inv_gamma", "power"),
)


# Fields that `write_network` adds. diffusers ignores fields whose names begin with an underscore.
NULL_LABEL, CLASS_NAMES = "_null_label", "_class_names"


def read_network(path: Path) -> tuple[DDPMConfig, int, tuple[int, int] | None, tuple[str, ...] | None]:
    """Network, image channels, image size and names of classes (None: unknown) of a UNet2DModel's config.json."""
    given = read_object(path)
    require_supported(path, {"_class_name": ("UNet2DModel",)}, {"_class_name": None, **given})
    config = {
        **SHARED_FIELDS,
        **CONVERTED_FIELDS,
        **{name: values[0] for name, values in SUPPORTED_VALUES.items()},
        **given,
    }
    known = {*SHARED_FIELDS, *CONVERTED_FIELDS, *SUPPORTED_VALUES, *IGNORED_FIELDS}
    unknown = {name: (None,) for name in given if name not in known and not name.startswith("_")}
    levels = {direction: block_flags(config, direction) for direction in ("Down", "Up")}
    blocks = {
        f"{direction.lower()}_block_types": (f"[{' or '.join(block_types(direction))}, ...]",)
        for direction, flags in levels.items()
        if flags is None
    }
    require_supported(path, {**SUPPORTED_VALUES, **unknown, **blocks}, config)
    inputs, outputs, size = (config[name] for name in ("in_channels", "out_channels", "sample_size"))
    if type(inputs) is not int or inputs < 1:
        raise UserError(f"{path}: in_channels = {inputs!r}; expected the number of image channels.")
    require_supported(path, {"out_channels": (inputs, 2 * inputs)}, config)
    sizes = [size, size] if type(size) is int else size
    if sizes is not None and not (isinstance(sizes, list) and [type(s) for s in sizes] == [int, int]):
        raise UserError(f"{path}: sample_size = {size!r}; expected an integer, or a list of height and width.")
    converted = {
        **{name: config[name] for name in SHARED_FIELDS},
        "widths": config["block_out_channels"],
        "down_attention": levels["Down"][0],
        "up_attention": levels["Up"][0],
        "resnet_downsample": levels["Down"][1],
        "resnet_upsample": levels["Up"][1],
        "learned_variance": outputs == 2 * inputs,
        "mid_block": config["mid_block_type"] is not None,
        "act_fn": "silu" if config["act_fn"] == "swish" else config["act_fn"],
        "null_label": given.get(NULL_LABEL, False),
    }
    if config["class_embed_type"] == "identity":
        converted["num_class_embeds"] = None  # diffusers does not use it
    network = from_json(DDPMConfig, json.dumps(without_repeated_defaults(converted)), str(path))
    network.check()
    names = given.get(CLASS_NAMES)
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (is_list and len(names) == network.label_count):
        raise UserError(f"{path}: {CLASS_NAMES} is not a list of {network.label_count} names, one for each class.")
    return network, inputs, None if sizes is None else (sizes[0], sizes[1]), names and tuple(names)


def block_types(direction: str) -> dict[str, tuple[bool, bool | None]]:
    """Block types of a direction, "Down" or "Up": whether it has attention, whether a residual block changes the size.

    The second is None where downsample_type or upsample_type decides.
    """
    return {
        f"{direction}Block2D": (False, False),
        f"Attn{direction}Block2D": (True, None),
        f"Resnet{direction}sampleBlock2D": (False, True),
    }


def block_flags(config: dict, direction: str) -> tuple[list[bool], list[bool]] | None:
    """Per level: whether it has attention, and whether a residual block changes the size (empty if none does).

    None if there is another block type.
    """
    given, known = config[f"{direction.lower()}_block_types"], block_types(direction)
    types = [str(name).removeprefix("UNetRes") for name in given] if isinstance(given, list) else [""]
    if not set(types) <= set(known):
        return None
    by_type = config[f"{direction.lower()}sample_type"] == "resnet"
    resampled = [by_type if known[name][1] is None else known[name][1] for name in types[:-1]] + [False]
    return [known[name][0] for name in types], resampled if any(resampled) else []


def without_repeated_defaults(converted: dict) -> dict:
    """The same settings, with the default where a value means the same. So a network has one way to be written."""
    widths, groups = converted["widths"], converted["norm_num_groups"]
    repeated = {
        "time_embedding_dim": 4 * widths[0] if isinstance(widths, list) and widths else None,
        "attn_norm_num_groups": groups if converted["resnet_time_scale_shift"] == "default" else None,
    }
    if not converted["mid_block"]:
        converted = {**converted, "add_attention": True}
    if not converted["mid_block"] or not converted["add_attention"]:
        converted = {**converted, "attn_norm_num_groups": None}
    return {**converted, **{name: None for name, value in repeated.items() if converted[name] == value}}


def write_network(info: ModelInfo) -> dict:
    """The config.json for a model of the network `ddpm`. Raises UserError for settings that diffusers does not have."""
    network = info.network
    height, width, channels = info.image_shape
    down_types, downsample = write_blocks(network.down_attention, network.resnet_downsample, "Down")
    up_types, upsample = write_blocks(network.up_attention, network.resnet_upsample, "Up")
    return {
        "_class_name": "UNet2DModel",
        "sample_size": shortest((height, width)),
        "in_channels": channels,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "block_out_channels": network.widths,
        "down_block_types": down_types,
        "up_block_types": up_types,
        "downsample_type": downsample,
        "upsample_type": upsample,
        "mid_block_type": "UNetMidBlock2D" if network.mid_block else None,
        "act_fn": network.act_fn,
        **{name: getattr(network, name) for name in SHARED_FIELDS},
        **({NULL_LABEL: True} if network.null_label else {}),
        **({CLASS_NAMES: info.class_names} if info.class_names else {}),
    }


def write_blocks(attention: tuple[bool, ...], resnet: tuple[bool, ...], direction: str) -> tuple[list[str], str]:
    """The block types of a direction, "Down" or "Up", and its downsample_type or upsample_type."""
    flags = resnet or (False,) * len(attention)
    with_attention = {by_block for has, by_block in zip(attention[:-1], flags, strict=False) if has}
    if len(with_attention) > 1:
        name = f"{direction.lower()}sample"
        raise UserError(
            f"resnet_{name} = {resnet}: in diffusers, one {name}_type counts for all levels with attention."
        )
    plain, attentive, by_resnet = block_types(direction)
    types = [attentive if has else by_resnet if flag else plain for has, flag in zip(attention, flags, strict=True)]
    return types, "resnet" if with_attention == {True} else "conv"
