"""Theirs pads inside a layer what ours pads before it, and not in the same way."""

from collections.abc import Iterator

import numpy as np

from jax_ddpm.doctor.causes import resampling
from jax_ddpm.doctor.causes.hypothesis import Hypothesis, pair_of
from jax_ddpm.doctor.records import Finding, relative_error

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's names of the modes of padding, and NumPy's."""


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """For an input that is larger than theirs, of a layer of theirs that pads."""
    theirs, ours = finding.values
    settings = finding.pair.theirs.settings
    mode, padding = MODES.get(settings.get("padding_mode", "zeros")), settings.get("padding")
    if finding.target != "input" or theirs.ndim != 4 or ours.ndim != 4 or padding is None or isinstance(padding, str):
        return
    rows, columns = (pair_of(padding) * 2)[:2]
    right = np.pad(theirs, ((0, 0), (0, 0), (rows, rows), (columns, columns)), mode=mode)
    for _, text, function in resampling.padded(theirs.shape[2:], ours.shape[2:]):
        value = function(theirs)
        if value.shape != ours.shape or relative_error(value, ours) > 1e-6:
            continue
        wanted = f'padded by {((rows, rows), (columns, columns))}, mode "{mode}"'
        name = "padding_mode" if value.shape == right.shape else "padding"
        says = f"ours is {text} before it; theirs is {wanted} inside"
        yield Hypothesis(name, says, f'Write jnp.pad(..., mode="{mode}") with the same widths.', lambda *_: ours)
        return
