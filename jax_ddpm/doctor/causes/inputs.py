"""Ours does what theirs does with changed inputs: height and width swapped, another range. Ours is run to prove it."""

from collections.abc import Callable, Iterator

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis
from jax_ddpm.doctor.records import Finding, relative_error

CHANGES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("height_width_swapped", "height and width are swapped", lambda x: x.mT),
    ("image_flipped", "images are flipped from left to right", lambda x: x[..., ::-1]),
    ("image_flipped", "images are flipped from top to bottom", lambda x: x[..., ::-1, :]),
    ("input_range", "theirs computes 2 x - 1 first", lambda x: 2 * x - 1),
    ("input_range", "theirs computes (x + 1) / 2 first", lambda x: (x + 1) / 2),
    ("input_range", "theirs computes x / 255 first", lambda x: x / 255),
]


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """For images: ours gives their output if its input, and perhaps its output, is changed."""
    x, *rest = finding.their_inputs
    if x.ndim != 4 or x.dtype.kind != "f":
        return
    for name, says, change in CHANGES:
        if name == "height_width_swapped" and x.shape[2] != x.shape[3]:
            continue
        y = finding.run_ours(np.ascontiguousarray(change(x)), *rest)
        both = y.ndim == 4 and relative_error(change(y), finding.their_output) < 1e-6
        if both or relative_error(y, finding.their_output) < 1e-6:
            where = "before and after it" if both else "before it"
            text = f"{says} in one of the two, {where}" if "theirs" not in says else says
            yield Hypothesis(name, text, "Change the input of ours alike.", lambda *_: finding.our_output)
            return
