"""Recognise `lucidrains`, the UNet of denoising_diffusion_pytorch, and its version, by names and shapes of arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of

HEAD_WIDTH = 32  # the package's default


@dataclass(frozen=True)
class RecognisedByVersion(Recognised):
    """A network of which shapes leave several versions possible."""

    likely: dict[str, Any] = field(default_factory=dict)
    """Settings that are assumed unless they are given."""

    def completed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().completed({**self.likely, **settings})


def recognise_lucidrains(values: Arrays) -> Recognised | None:
    """Versions from 1.8. Shapes do not show theta; before 2.0 the groups, and before 1.9 the heads."""
    if shape_of(values, "mid_attn.norm.g", 4) is None:
        return None
    if "downs.0.0.block1.norm.g" in values:
        return recognise(values, "", {"package_version": "2.0", "resnet_block_groups": 8}, {})
    return recognise(values, "", {"package_version": "1.9" if "mid_attn.mem_kv" in values else "1.8"}, {})


def recognise_wrapped_lucidrains(values: Arrays) -> Recognised | None:
    """Versions from 0.27.12 to 1.7. Shapes do not show which one, and as in `recognise_lucidrains`.

    If 4x4 convolutions halve the size, 0.28 is assumed (or 0.27.12), else 0.32 (or 1.7.0, 1.7.2, 1.7.4).
    """
    if shape_of(values, "mid_attn.fn.norm.g", 4) is None:
        return None
    first = shape_of(values, "downs.0.3.weight", 4)
    is_strided = first is not None and first[2] == 4
    shown = {"full_attn": (), "sinusoidal_pos_emb_theta": 10000}
    return recognise(values, "fn.fn.", shown, {"package_version": "0.28" if is_strided else "0.32"})


def recognise(values: Arrays, inner: str, shown: dict[str, Any], likely: dict[str, Any]) -> Recognised | None:
    """The network. inner: the names between those of an attention layer and its arrays."""
    first, last = shape_of(values, "init_conv.weight", 4), shape_of(values, "final_conv.weight", 4)
    time, waves = shape_of(values, "time_mlp.3.weight", 2), shape_of(values, "time_mlp.0.weights", 1)
    levels = count_numbered(values, "downs.{}.0.block1.proj.weight", 4)
    names = [
        f"downs.{level}.3.{'1.' if f'downs.{level}.3.1.weight' in values else ''}weight" for level in range(levels)
    ]
    outputs = [shape_of(values, name, 4) for name in names]
    layers = [f"{name}.{inner}" for name in (*(f"downs.{level}.2" for level in range(levels)), "mid_attn")]
    inputs = [shape_of(values, f"{layer}to_qkv.weight", 4) for layer in layers]
    if first is None or last is None or time is None or levels == 0 or None in (*outputs, *inputs):
        return None
    self_condition = first[1] == 2 * last[0]
    dim = time[0] // 4
    widths = [out[0] for out in outputs]
    if dim == 0 or any(width % dim for width in widths):
        return None
    is_full = tuple(f"{layer}to_out.weight" in values for layer in layers[:-1])
    usual = (False,) * (levels - 1) + (True,)
    settings = {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "init_dim": None if first[0] == dim else first[0],
        "learned_variance": last[0] == 2 * first[1],
        "self_condition": self_condition,
        "full_attn": () if is_full == usual else is_full,
        "num_mem_kv": 0,
        **(heads_of(values, layers, is_full) or heads_of_width([shape[0] // 3 for shape in inputs])),
        **({"learned_sinusoidal_cond": False, "random_fourier_features": False} if waves is None else {}),
        "learned_sinusoidal_dim": 16 if waves is None else 2 * waves[0],
        **({} if waves is None else {"sinusoidal_pos_emb_theta": 10000}),
        **shown,
    }
    if waves is not None:
        likely = {"learned_sinusoidal_cond": True, **likely}
    channels = last[0] if self_condition else first[1]
    return RecognisedByVersion(LucidrainsConfig, channels, settings, likely=likely)


def heads_of(values: Arrays, layers: list[str], is_full: tuple[bool, ...]) -> dict[str, Any] | None:
    """The settings of heads and memory from the memories' shapes; None if a layer has none."""
    shapes = [shape_of(values, f"{layer}mem_kv", 4) for layer in layers]
    if None in shapes:
        return None
    widths = [shape[3 if full else 2] for shape, full in zip(shapes, is_full, strict=False)]
    memory = shapes[-1][2]  # of the middle
    return {
        "attn_heads": per_level([s[1] for s in shapes[:-1]]),
        "attn_dim_head": per_level(widths),
        "num_mem_kv": memory,
    }


def heads_of_width(widths: list[int]) -> dict[str, Any]:
    """The setting of heads that do not have the usual total width, for heads of 32 channels; nothing for usual ones."""
    if all(width == 4 * HEAD_WIDTH or width % HEAD_WIDTH for width in widths):
        return {}
    return {"attn_heads": per_level([max(width // HEAD_WIDTH, 1) for width in widths[:-1]])}


def per_level(numbers: list[int]) -> tuple[int, ...]:
    """The numbers of the levels, or a single one if they are equal."""
    return (numbers[0],) if len(set(numbers)) == 1 else tuple(numbers)
