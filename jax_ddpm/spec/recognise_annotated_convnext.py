"""Recognise `annotated_convnext` by the names and shapes of its arrays."""

from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of


def recognise_annotated_convnext(values: Arrays) -> Recognised | None:
    """Shapes do not show the heads."""
    first, last = shape_of(values, "init_conv.weight", 4), shape_of(values, "final_conv.1.weight", 4)
    time, qkv = shape_of(values, "time_mlp.3.weight", 2), shape_of(values, "mid_attn.fn.fn.to_qkv.weight", 4)
    inner, levels = shape_of(values, "downs.0.0.net.1.weight", 4), count_numbered(values, "downs.{}.0.net.4.weight", 4)
    if None in (first, last, time, qkv, inner) or levels == 0 or last[0] != first[1]:
        return None
    dim, widths = time[0] // 4, [values[f"downs.{level}.0.net.4.weight"].shape[0] for level in range(levels)]
    if dim == 0 or any(width % dim for width in widths):
        return None
    settings = {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "init_dim": None if first[0] == dim // 3 * 2 else first[0],
        "convnext_mult": inner[0] // widths[0],
        "attn_width": qkv[0] // 3,
    }
    return Recognised(AnnotatedConvNextConfig, first[1], settings)
