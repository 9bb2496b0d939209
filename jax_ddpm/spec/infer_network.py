"""Which network a stranger's arrays belong to, from names and shapes alone."""

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
    """The network's settings and its image channels. UserError for anything else."""
    for network in INFERENCES:
        found = network(values)
        if found is not None:
            return found
    some = ", ".join(list(values)[:3]) or "no arrays"
    raise UserError(f"{source} holds no network that is known here ({', '.join(NETWORKS)}); its first names: {some}.")


def shape(values: StateDict, name: str, ndim: int) -> tuple[int, ...] | None:
    """Of the array `name`, if it is there with so many axes."""
    value = values.get(name)
    return None if value is None or value.ndim != ndim else value.shape


def count(values: StateDict, name: str, ndim: int) -> int:
    """How many arrays there are of the names `name` with {} = 0, 1, 2, ..."""
    number = 0
    while shape(values, name.format(number), ndim) is not None:
        number += 1
    return number


def conv_block(values: StateDict) -> tuple[NetworkConfig, int] | None:
    first, time = shape(values, "enc_convs.0.seq1.0.weight", 4), shape(values, "time_emb.1.weight", 2)
    if first is None or time is None:
        return None
    levels = count(values, "enc_convs.{}.seq1.0.weight", 4)
    widths = tuple(len(values[f"enc_convs.{level}.seq1.0.weight"]) for level in range(levels))
    return ConvBlockConfig(widths=widths, time_width=time[0]), first[1]


def strided(values: StateDict) -> tuple[NetworkConfig, int] | None:
    first, time = shape(values, "down1.conv.0.weight", 4), shape(values, "time_embed.embed.0.weight", 2)
    return None if first is None or time is None else (StridedConfig(), first[1])


def attention(values: StateDict) -> tuple[NetworkConfig, int] | None:
    first, frequencies = shape(values, "image_proj.weight", 4), shape(values, "time_emb.freqs", 1)
    if first is None or frequencies is None:
        return None
    number, width, levels = 0, first[0], []  # of each level: its multiplier, whether it has attention, its blocks
    while True:
        block = shape(values, f"down.{number}.res.conv1.weight", 4)
        if block is not None and (number == 0 or shape(values, f"down.{number - 1}.conv.weight", 4) is not None):
            levels.append([block[0] // width, f"down.{number}.attn.in_proj_weight" in values, 1])
            width = block[0]
        elif block is not None:
            levels[-1][2] += 1
        elif shape(values, f"down.{number}.conv.weight", 4) is None:
            break
        number += 1
    if not levels:
        return None
    multipliers, on, blocks = zip(*levels, strict=True)
    return AttentionConfig(channels=first[0], multipliers=multipliers, attention=on, blocks=blocks[0]), first[1]


def layer_norm(values: StateDict) -> tuple[NetworkConfig, int] | None:
    table, first = shape(values, "time_embed.weight", 2), shape(values, "b1.0.conv1.weight", 4)
    return None if table is None or first is None else (LayerNormConfig(table_rows=table[0]), first[1])


def ddpm(values: StateDict) -> tuple[NetworkConfig, int] | None:
    """What no shape tells (heads, groups, epsilon, padding, order of sines) is taken from the DDPM paper's models."""
    first, last = shape(values, "conv_in.weight", 4), shape(values, "conv_out.weight", 4)
    levels = count(values, "down_blocks.{}.resnets.0.conv1.weight", 4)
    if first is None or last is None or levels == 0:
        return None
    down, up = (
        tuple(f"{way}_blocks.{level}.attentions.0.group_norm.weight" in values for level in range(levels))
        for way in ("down", "up")
    )
    config = DDPMConfig(
        widths=tuple(len(values[f"down_blocks.{level}.resnets.0.conv1.weight"]) for level in range(levels)),
        layers_per_block=count(values, "down_blocks.0.resnets.{}.conv1.weight", 4),
        down_attention=down,
        up_attention=up,
        learned_variance=last[0] == 2 * first[1],
    )
    return config, first[1]


INFERENCES = (conv_block, strided, attention, layer_norm, ddpm)
