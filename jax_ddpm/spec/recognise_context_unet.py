"""Recognise `context_unet` by the names and shapes of its arrays."""

from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.recognised import Arrays, Recognised, shape_of


def recognise_context_unet(values: Arrays) -> Recognised | None:
    """Shapes do not show whether labels were dropped in training. They are taken to have been, as in the original."""
    first, context = (
        shape_of(values, "init_conv.conv1.0.weight", 4),
        shape_of(values, "contextembed1.model.0.weight", 2),
    )
    up = shape_of(values, "up0.0.weight", 4)
    if first is None or context is None or up is None:
        return None
    settings = {"channels": first[0], "pool": up[2], "num_classes": context[1]}
    return Recognised(ContextUNetConfig, first[1], settings)
