"""Recognise `superminddpm` by the names and shapes of its arrays."""

from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig


def recognise_superminddpm(values: Arrays) -> Recognised | None:
    """Shapes show all settings. The last convolution has as many output channels as the first has input channels."""
    blocks = count_numbered(values, "conv.{}.0.weight", 4)
    first, last = shape_of(values, "conv.0.0.weight", 4), shape_of(values, f"conv.{blocks}.weight", 4)
    if first is None or last is None or last[0] != first[1]:
        return None
    widths = tuple(values[f"conv.{block}.0.weight"].shape[0] for block in range(blocks))
    return Recognised(SuperMinDDPMConfig, first[1], {"widths": widths, "kernel_size": first[2]})
