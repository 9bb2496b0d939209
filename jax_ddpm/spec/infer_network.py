"""Recognise the network of a checkpoint without metadata by the names and shapes of its arrays."""

from collections.abc import Callable
from typing import Any

from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.recognise_adm import recognise_adm
from jax_ddpm.spec.recognise_annotated import recognise_annotated
from jax_ddpm.spec.recognise_annotated_convnext import recognise_annotated_convnext
from jax_ddpm.spec.recognise_context_unet import recognise_context_unet
from jax_ddpm.spec.recognise_ddpm_conditional import recognise_ddpm_conditional
from jax_ddpm.spec.recognise_lucidrains import recognise_lucidrains, recognise_wrapped_lucidrains
from jax_ddpm.spec.recognise_simple_unet import recognise_simple_unet
from jax_ddpm.spec.recognise_superminddpm import recognise_superminddpm
from jax_ddpm.spec.recognised import Arrays, Recognised, check_size, count_numbered, shape_of

__all__ = ["RECOGNISERS", "Recognised", "check_size"]


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
    "input_blocks.0.0.weight": recognise_adm,
    "mid_attn.norm.g": recognise_lucidrains,
    "mid_attn.fn.norm.g": recognise_wrapped_lucidrains,
    "downs.0.bnorm1.running_mean": recognise_simple_unet,
    "contextembed1.model.0.weight": recognise_context_unet,
    "conv.0.1.running_mean": recognise_superminddpm,
    "mid_attn.fn.norm.weight": recognise_annotated,
    "mid_block1.ds_conv.weight": recognise_annotated_convnext,
    "sa1.mha.in_proj_weight": recognise_ddpm_conditional,
}
"""By the name of an array that the network has."""
