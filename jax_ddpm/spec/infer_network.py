"""Recognise the network of a checkpoint without metadata by the names and shapes of its arrays."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.stored_array import Array

MAX_SETTING = 2**20  # largest number accepted in a file's network settings
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Recognised:
    """A network, and those of its settings that names and shapes show."""

    kind: type[NetworkConfig]
    image_channels: int
    settings: dict[str, Any]
    label_rows: int | None = None
    """Rows of the label embedding, of which shapes do not show whether the last is the null label; None without one."""

    def completed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that shapes show, over those in `settings`, and the number of classes that follows from both."""
        completed = {**settings, **self.settings}
        if self.label_rows is not None and hasattr(self.kind, "num_classes"):
            completed["num_classes"] = self.label_rows - bool(completed.get("null_label", self.kind.null_label))
        return completed

    @property
    def config(self) -> NetworkConfig:
        """The network with its default for each setting that is not shown."""
        return self.kind(**self.completed({}))

    def with_settings(self, settings: Mapping[str, Any]) -> NetworkConfig:
        """The network with further settings, of which those that shapes show are ignored.

        Raises UserError for an unknown or mistyped setting, and for one that the network cannot have.
        """
        text = json.dumps(self.completed(settings), default=str)
        config = from_json(self.kind, text, "The network")
        config.check()
        check_size(config)
        return config

    @property
    def not_shown(self) -> list[str]:
        """Names of the settings that shapes do not show and that change what the network computes.

        Without class_embed_type: a network without a label embedding is taken to be one without labels.
        """
        known = ("name", "dropout", "num_classes", "class_embed_type", *self.settings)
        names = [field.name for field in fields(self.kind) if field.name not in known]
        return [name for name in names if name != "null_label" or self.label_rows is not None]


def check_size(network: NetworkConfig) -> None:
    """Raise UserError for settings so large that the network could fill the memory."""
    for name, value in network.arguments.items():
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        require(all(n <= MAX_SETTING for n in numbers), name, value, f"expected at most {MAX_SETTING}")


def shape_of(values: Arrays, name: str, ndim: int) -> tuple[int, ...] | None:
    """Shape of the array `name`, or None if there is none with `ndim` axes and at least one element."""
    value = values.get(name)
    return None if value is None or value.ndim != ndim or 0 in value.shape else value.shape


def count_numbered(values: Arrays, name: str, ndim: int) -> int:
    """Number of arrays called `name` with {} = 0, 1, 2, ... in a row."""
    number = 0
    while shape_of(values, name.format(number), ndim) is not None:
        number += 1
    return number


def label_rows(values: Arrays) -> int | None:
    """Rows of the label embedding; None if there is none."""
    table = shape_of(values, "class_embedding.weight", 2)
    return None if table is None else table[0]


def with_labels(kind: type[NetworkConfig], image_channels: int, settings: dict[str, Any], values: Arrays) -> Recognised:
    """A network whose settings have num_classes, which is 0 if there is no label embedding."""
    rows = label_rows(values)
    return Recognised(kind, image_channels, {**settings, "num_classes": 0} if rows is None else settings, rows)


def recognise_conv_block(values: Arrays) -> Recognised | None:
    first, time = shape_of(values, "enc_convs.0.seq1.0.weight", 4), shape_of(values, "time_emb.1.weight", 2)
    if first is None or time is None:
        return None
    levels = count_numbered(values, "enc_convs.{}.seq1.0.weight", 4)
    widths = tuple(values[f"enc_convs.{level}.seq1.0.weight"].shape[0] for level in range(levels))
    return with_labels(ConvBlockConfig, first[1], {"widths": widths, "time_width": time[0]}, values)


def recognise_strided(values: Arrays) -> Recognised | None:
    first, time = shape_of(values, "down1.conv.0.weight", 4), shape_of(values, "time_embed.embed.0.weight", 2)
    return None if first is None or time is None else with_labels(StridedConfig, first[1], {}, values)


def recognise_attention(values: Arrays) -> Recognised | None:
    """Shapes do not show the number of heads."""
    first, frequencies = shape_of(values, "image_proj.weight", 4), shape_of(values, "time_emb.freqs", 1)
    if first is None or frequencies is None:
        return None
    number, width, levels = 0, first[0], []  # of each level: [multiplier, has attention, number of blocks]
    while True:
        block = shape_of(values, f"down.{number}.res.conv1.weight", 4)
        if block is not None and (number == 0 or shape_of(values, f"down.{number - 1}.conv.weight", 4) is not None):
            levels.append([block[0] // width, f"down.{number}.attn.in_proj_weight" in values, 1])
            width = block[0]
        elif block is not None:
            levels[-1][2] += 1
        elif shape_of(values, f"down.{number}.conv.weight", 4) is None:
            break
        number += 1
    if not levels:
        return None
    multipliers, has_attention, blocks = zip(*levels, strict=True)
    settings = {"channels": first[0], "multipliers": multipliers, "attention": has_attention, "blocks": blocks[0]}
    return with_labels(AttentionConfig, first[1], settings, values)


def recognise_layer_norm(values: Arrays) -> Recognised | None:
    table, first = shape_of(values, "time_embed.weight", 2), shape_of(values, "b1.0.conv1.weight", 4)
    if table is None or first is None:
        return None
    return with_labels(LayerNormConfig, first[1], {"table_rows": table[0]}, values)


def recognise_ddpm(values: Arrays) -> Recognised | None:
    """Shapes do not show heads, groups, epsilon, padding, activation, order of sines and cosines, and null labels."""
    first, last = shape_of(values, "conv_in.weight", 4), shape_of(values, "conv_out.weight", 4)
    time = shape_of(values, "time_embedding.linear_1.weight", 2)
    block = "down_blocks.0.resnets.0"
    projection = shape_of(values, f"{block}.time_emb_proj.weight", 2)
    levels = count_numbered(values, "down_blocks.{}.resnets.0.conv1.weight", 4)
    if first is None or last is None or time is None or projection is None or levels == 0:
        return None

    def per_level(name: str) -> tuple[bool, ...]:
        return tuple(name.format(level) in values for level in range(levels))

    widths = tuple(values[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels))
    has_scale = projection[0] == 2 * widths[0]
    has_middle = "mid_block.resnets.0.conv1.weight" in values
    resnets = {
        f"resnet_{direction}sample": per_level(f"{direction}_blocks.{{}}.{direction}samplers.0.conv1.weight")
        for direction in ("down", "up")
    }
    settings = {
        "widths": widths,
        "layers_per_block": count_numbered(values, "down_blocks.0.resnets.{}.conv1.weight", 4),
        "down_attention": per_level("down_blocks.{}.attentions.0.to_q.weight"),
        "up_attention": per_level("up_blocks.{}.attentions.0.to_q.weight"),
        "learned_variance": last[0] == 2 * first[1],
        "resnet_time_scale_shift": "scale_shift" if has_scale else "default",
        "time_embedding_dim": None if time[0] == 4 * first[0] else time[0],
        "mid_block": has_middle,
        "add_attention": "mid_block.attentions.0.to_q.weight" in values or not has_middle,
        **{name: flags if any(flags) else () for name, flags in resnets.items()},
    }
    if has_scale and "mid_block.attentions.0.group_norm.weight" not in values:
        settings["attn_norm_num_groups"] = None
    rows = label_rows(values)
    if rows is not None:
        settings |= {"num_class_embeds": rows, "class_embed_type": None}
    elif "class_embedding.linear_1.weight" in values:
        settings |= {"class_embed_type": "timestep", "null_label": False}
    else:
        settings |= {"num_class_embeds": None, "null_label": False}
    return Recognised(DDPMConfig, first[1], settings, rows)


RECOGNISERS: dict[str, Callable[[Arrays], Recognised | None]] = {
    "enc_convs.0.seq1.0.weight": recognise_conv_block,
    "down1.conv.0.weight": recognise_strided,
    "image_proj.weight": recognise_attention,
    "b1.0.conv1.weight": recognise_layer_norm,
    "conv_in.weight": recognise_ddpm,
}
"""By the name of an array that the network has."""
