"""Recognise `annotated` by the names and shapes of its arrays."""

from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of


def recognise_annotated(values: Arrays) -> Recognised | None:
    """Shapes do not show the heads, the groups, and whether kernels are multiplied or divided.

    Raises UserError for a network with self-conditioning.
    """
    first, last = shape_of(values, "init_conv.weight", 4), shape_of(values, "final_conv.weight", 4)
    time, qkv = shape_of(values, "time_mlp.3.weight", 2), shape_of(values, "mid_attn.fn.fn.to_qkv.weight", 4)
    levels = count_numbered(values, "downs.{}.0.block1.proj.weight", 4)
    names = [
        f"downs.{level}.3.{'1.' if f'downs.{level}.3.1.weight' in values else ''}weight" for level in range(levels)
    ]
    outputs = [shape_of(values, name, 4) for name in names]
    if first is None or last is None or time is None or qkv is None or levels == 0 or None in outputs:
        return None
    if first[1] == 2 * last[0]:
        raise UserError(
            "init_conv.weight takes twice the output's channels: this network was trained with self_condition=True, "
            "and\nits input has a second image beside x_t. The samplers here do not feed it. Give a model without it."
        )
    dim = time[0] // 4
    if dim == 0 or first[0] != dim or last[0] != first[1] or any(out[0] % dim for out in outputs):
        return None
    settings = {
        "dim": dim,
        "dim_mults": tuple(out[0] // dim for out in outputs),
        "init_kernel": first[2],
        "attn_width": qkv[0] // 3,
    }
    return Recognised(AnnotatedConfig, first[1], settings)
