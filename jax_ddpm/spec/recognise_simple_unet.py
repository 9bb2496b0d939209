"""Recognise `simple_unet` by the names and shapes of its arrays."""

from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig


def recognise_simple_unet(values: Arrays) -> Recognised | None:
    first, time = shape_of(values, "conv0.weight", 4), shape_of(values, "time_mlp.1.weight", 2)
    levels = count_numbered(values, "downs.{}.bnorm1.running_mean", 1)
    if first is None or time is None or levels == 0:
        return None
    widths = (first[0], *(values[f"downs.{level}.bnorm1.running_mean"].shape[0] for level in range(levels)))
    settings = {"widths": widths, "time_width": time[0]}
    labels = shape_of(values, "class_embedding.weight", 2)
    if labels is None:
        settings["num_classes"] = 0
    return Recognised(SimpleUNetConfig, first[1], settings, None if labels is None else labels[0])
