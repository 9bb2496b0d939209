"""Ours does what theirs does with changed inputs: height and width swapped, another range, another t.

A network is run with them to prove it.
"""

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
            yield Hypothesis(name, text, "Give ours the same input as theirs.", lambda *_: finding.our_output)
            return


TIMES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("time_offset", "t + 1", lambda t: t + 1),
    ("time_offset", "t - 1", lambda t: t - 1),
    ("time_scale", "t / 1000", lambda t: t / 1000),
    ("time_scale", "t / 999", lambda t: t / 999),
    ("time_scale", "1000 t", lambda t: 1000 * t),
    ("time_reversed", "999 - t", lambda t: 999 - t),
    ("time_reversed", "1000 - t", lambda t: 1000 - t),
    ("time_reversed", "1 - t", lambda t: 1 - t),
]
IMAGES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("channels_permuted", "x with its channels in reverse order", lambda x: x[:, ::-1]),
    ("input_range", "2 x - 1", lambda x: 2 * x - 1),
    ("input_range", "(x + 1) / 2", lambda x: (x + 1) / 2),
    ("input_range", "x / 255", lambda x: x / 255),
    ("height_width_swapped", "x with height and width swapped", lambda x: x.mT),
    ("image_flipped", "x flipped from left to right", lambda x: x[..., ::-1]),
    ("image_flipped", "x flipped from top to bottom", lambda x: x[..., ::-1, :]),
]


def of_network(finding: Finding) -> Iterator[Hypothesis]:
    """What stands between modules is as theirs if one argument of their whole network is changed."""
    arrays = finding.their_calls[0].arrays if finding.their_calls else []
    if finding.rerun is None:
        return
    for number, array in enumerate(arrays):
        changes = TIMES if array.ndim == 1 else IMAGES if array.ndim == 4 and array.dtype.kind == "f" else []
        for name, text, change in changes:
            changed = [*arrays[:number], np.ascontiguousarray(change(array)), *arrays[number + 1 :]]
            try:
                value = finding.rerun(*changed)
            except Exception:  # their network does not take this
                continue
            says = f"ours has {text} where theirs has argument {number} of the network"
            yield Hypothesis(name, says, "Use the argument as theirs does.", lambda *_, value=value: value)
    same = [k for k, array in enumerate(arrays) if array.shape == arrays[0].shape and array.dtype == arrays[0].dtype]
    if len(same) == 2:
        swapped = [arrays[dict(zip(same, same[::-1], strict=True)).get(k, k)] for k in range(len(arrays))]
        says = f"arguments {same[0]} and {same[1]} of the network are swapped in ours"
        yield Hypothesis("arguments_swapped", says, "Swap them.", lambda *_: finding.rerun(*swapped))
