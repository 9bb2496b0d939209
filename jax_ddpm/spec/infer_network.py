"""Infer the network of a checkpoint without metadata from the names and shapes of its arrays."""

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import (
    NETWORKS,
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.types import StateDict


def infer_network(values: StateDict, source: str) -> tuple[NetworkConfig, int]:
    """The network's settings and its number of image channels. Raises UserError if no network fits.

    source: where the arrays come from, for the message.
    """
    for infer in INFERENCES:
        inferred = infer(values)
        if inferred is not None:
            return inferred
    names = ", ".join(list(values)[:3]) or "none"
    raise UserError(f"{source} has none of the known networks ({', '.join(NETWORKS)}). Its first arrays: {names}.")


def shape_of(values: StateDict, name: str, ndim: int) -> tuple[int, ...] | None:
    """Shape of the array `name`, or None if there is none with `ndim` axes."""
    value = values.get(name)
    return None if value is None or value.ndim != ndim else value.shape


def count_numbered(values: StateDict, name: str, ndim: int) -> int:
    """Number of arrays called `name` with {} = 0, 1, 2, ... in a row."""
    number = 0
    while shape_of(values, name.format(number), ndim) is not None:
        number += 1
    return number


def infer_conv_block(values: StateDict) -> tuple[NetworkConfig, int] | None:
    first, time = shape_of(values, "enc_convs.0.seq1.0.weight", 4), shape_of(values, "time_emb.1.weight", 2)
    if first is None or time is None:
        return None
    levels = count_numbered(values, "enc_convs.{}.seq1.0.weight", 4)
    widths = tuple(len(values[f"enc_convs.{level}.seq1.0.weight"]) for level in range(levels))
    return ConvBlockConfig(widths=widths, time_width=time[0]), first[1]


def infer_strided(values: StateDict) -> tuple[NetworkConfig, int] | None:
    first, time = shape_of(values, "down1.conv.0.weight", 4), shape_of(values, "time_embed.embed.0.weight", 2)
    return None if first is None or time is None else (StridedConfig(), first[1])


def infer_attention(values: StateDict) -> tuple[NetworkConfig, int] | None:
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
    config = AttentionConfig(channels=first[0], multipliers=multipliers, attention=has_attention, blocks=blocks[0])
    return config, first[1]


def infer_layer_norm(values: StateDict) -> tuple[NetworkConfig, int] | None:
    table, first = shape_of(values, "time_embed.weight", 2), shape_of(values, "b1.0.conv1.weight", 4)
    return None if table is None or first is None else (LayerNormConfig(table_rows=table[0]), first[1])


def infer_ddpm(values: StateDict) -> tuple[NetworkConfig, int] | None:
    """Shapes do not show heads, groups, epsilon, padding and the order of sin and cos: the DDPM paper's are used."""
    first, last = shape_of(values, "conv_in.weight", 4), shape_of(values, "conv_out.weight", 4)
    levels = count_numbered(values, "down_blocks.{}.resnets.0.conv1.weight", 4)
    if first is None or last is None or levels == 0:
        return None
    down, up = (
        tuple(f"{direction}_blocks.{level}.attentions.0.group_norm.weight" in values for level in range(levels))
        for direction in ("down", "up")
    )
    config = DDPMConfig(
        widths=tuple(len(values[f"down_blocks.{level}.resnets.0.conv1.weight"]) for level in range(levels)),
        layers_per_block=count_numbered(values, "down_blocks.0.resnets.{}.conv1.weight", 4),
        down_attention=down,
        up_attention=up,
        learned_variance=last[0] == 2 * first[1],
    )
    return config, first[1]


INFERENCES = (infer_conv_block, infer_strided, infer_attention, infer_layer_norm, infer_ddpm)
