"""Recognise `ddpm_conditional` by the names and shapes of its arrays."""

from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.recognised import Arrays, Recognised, shape_of


def recognise_ddpm_conditional(values: Arrays) -> Recognised | None:
    """Shapes do not show the number of heads, and whether labels were dropped in training."""
    first, time = shape_of(values, "inc.double_conv.0.weight", 4), shape_of(values, "down1.emb_layer.1.weight", 2)
    if first is None or time is None:
        return None
    labels = shape_of(values, "label_emb.weight", 2)
    settings = {
        "channels": first[0],
        "time_width": time[1],
        "remove_deep_conv": not any(name.startswith("bot2.") for name in values),
        "num_classes": 0 if labels is None else labels[0],
    }
    return Recognised(DDPMConditionalConfig, first[1], settings)
