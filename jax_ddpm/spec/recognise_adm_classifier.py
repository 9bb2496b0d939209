"""Recognise `adm_classifier`, the classifier of noisy images of guided-diffusion, by names and shapes of its arrays."""

import math
import re

from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.published import MULTIPLIERS
from jax_ddpm.spec.recognised import Arrays, Recognised, shape_of

POOLS = {  # by the name and the number of axes of an array that only this pooling has
    ("out.2.positional_embedding", 2): "attention",
    ("out.3.weight", 4): "adaptive",
    ("out.0.weight", 2): "spatial",
}
Entry = tuple[int, int, bool] | None
"""Of an entry of input_blocks: its channels before and after, and whether it has attention; None: no residual block."""


def pool_of(values: Arrays) -> str | None:
    """The pooling of a classifier; None for other networks."""
    if "input_blocks.0.0.weight" not in values or any(name.startswith("output_blocks.") for name in values):
        return None
    return next((pool for (name, ndim), pool in POOLS.items() if shape_of(values, name, ndim) is not None), None)


def recognise_adm_classifier(values: Arrays) -> Recognised | None:
    """Shapes do not show the channels of a head, the order of the channels in attention, and the factor on t.

    Raises UserError for the poolings "spatial" and "spatial_v2", and where shapes do not show the levels.
    """
    pool = pool_of(values)
    first, time = shape_of(values, "input_blocks.0.0.weight", 4), shape_of(values, "time_embed.0.weight", 2)
    projection = shape_of(values, "middle_block.0.emb_layers.1.weight", 2)
    if pool == "spatial":
        raise UserError(
            "This classifier has the pooling spatial or spatial_v2.\n"
            "Expected one with the pooling attention, which the published classifiers have, or adaptive."
        )
    positions, last = (shape_of(values, *array) for array in list(POOLS)[:2])
    output = last if positions is None else shape_of(values, "out.2.c_proj.weight", 3)
    if pool is None or first is None or time is None or projection is None or output is None:
        return None
    map_size = None if positions is None else math.isqrt(max(1, positions[1] - 1))
    entries = entries_of(values)
    candidates = levels_by_blocks(entries, first[0]) if None not in entries else [levels_between(entries, first[0])]
    usual = [levels for levels in candidates if levels and is_usual(levels, time[1], map_size)]
    candidates = usual or [levels for levels in candidates if levels]
    if len(candidates) > 1:
        depths = " or ".join(f"{len(each)} levels of {each[0][2]} blocks" for each in candidates)
        raise UserError(f"This looks like a classifier, but shapes do not show whether it has {depths}.")
    if not candidates:
        return None
    widths, attention, blocks = zip(*candidates[0], strict=True)
    by_convolution = any(name.endswith(".op.weight") for name in values)
    settings = {
        "widths": widths,
        "model_channels": None if time[1] == widths[0] else time[1],
        "num_res_blocks": blocks[0],
        "attention": attention,
        "use_scale_shift_norm": projection[0] == 2 * widths[-1],
        "resblock_updown": None not in entries and len(widths) > 1,
        "conv_resample": by_convolution or None not in entries,
        "pool": pool,
        "map_size": map_size,
        "num_classes": output[0],
    }
    return Recognised(ADMClassifierConfig, first[1], settings)


def entries_of(values: Arrays) -> list[Entry]:
    """The entries of input_blocks after the first."""
    name = re.compile(r"input_blocks\.(\d{1,4})\.0\.in_layers\.2\.weight")
    numbers = {int(match[1]) for each in values if (match := name.fullmatch(each))}
    entries: list[Entry] = []
    for number in range(1, max(numbers, default=0) + 1):
        kernel = shape_of(values, f"input_blocks.{number}.0.in_layers.2.weight", 4)
        has_attention = f"input_blocks.{number}.1.qkv.weight" in values
        entries.append(None if kernel is None else (kernel[1], kernel[0], has_attention))
    return entries


def level(entries: list[Entry], width: int) -> tuple[int, bool, int] | None:
    """Width, attention and number of blocks of a level, from the width before it; None if they are not one level."""
    if not entries or None in entries or entries[0][0] != width:
        return None
    out, has_attention = entries[0][1:]
    same = all(entry == (out, out, has_attention) for entry in entries[1:])
    return (out, has_attention, len(entries)) if same else None


def levels_between(entries: list[Entry], width: int) -> list[tuple[int, bool, int]] | None:
    """The levels, with something that is no block between them."""
    groups: list[list[Entry]] = [[]]
    for entry in entries:
        if entry is None:
            groups.append([])
        else:
            groups[-1].append(entry)
    levels = []
    for group in groups:
        levels.append(level(group, levels[-1][0] if levels else width))
        if levels[-1] is None or levels[-1][2] != levels[0][2]:
            return None
    return levels


def levels_by_blocks(entries: list[Entry], width: int) -> list[list[tuple[int, bool, int]] | None]:
    """The levels for each number of blocks that fits, where blocks without attention halve the size between them."""
    found = []
    for blocks in range(1, len(entries) + 1):
        if (len(entries) + 1) % (blocks + 1) == 0:
            between = range(blocks, len(entries), blocks + 1)
            halving = all(entries[n] == (entries[n][0], entries[n][0], False) for n in between)
            gaps = [None if n in between else entry for n, entry in enumerate(entries)]
            found.append(levels_between(gaps, width) if halving else None)
    return found


def is_usual(levels: list[tuple[int, bool, int]], base: int, map_size: int | None) -> bool:
    """Whether guided-diffusion chooses these widths, for some image size, or for that of the map."""
    multipliers = tuple(width / base for width, *_ in levels)
    size = None if map_size is None else map_size * 2 ** (len(levels) - 1)
    return any(multipliers == usual and size in (None, known) for known, usual in MULTIPLIERS.items())
