"""What the doctor's stages hand to each other: calls, pairs of calls, findings and causes.

All arrays are NumPy arrays, and floats are float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SMALL_VARIANCE, LARGE_MEAN = "small variance", "large mean"
"""Kinds of inputs that are tried besides the network's own."""


@dataclass
class Call:
    """One call of one module in a forward pass, as its framework saw it."""

    path: str
    """Attributes that lead to the module, such as "down.0.conv1". "" is the whole network."""
    kind: str
    """Name of the module's class."""
    module: Any
    inputs: tuple
    """Positional arguments. Arrays are in the framework's own layout; what is no array is as it was."""
    keywords: dict[str, Any]
    output: Any = None
    """An array, or a tuple, list or dict that holds arrays."""
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Parameters and buffers that the module owns itself, by attribute name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain attributes, such as stride, padding, eps, groups. Functions are given by their names."""
    is_leaf: bool = True
    """Whether no call of another module was recorded inside."""
    parent: int | None = None
    """Number of the call around this one."""
    number: int = 0
    """Position in the order in which calls begin."""
    occurrence: int = 0
    """How often the same module was called before."""

    @property
    def arrays(self) -> list[np.ndarray]:
        """Array arguments, positional ones first."""
        return arrays_in([self.inputs, self.keywords])

    @property
    def outputs(self) -> list[np.ndarray]:
        return arrays_in(self.output)

    @property
    def name(self) -> str:
        """Path and class for sentences."""
        return f"{self.path or 'the network'} ({self.kind})"


@dataclass(frozen=True)
class Axes:
    """How the axes of an array of theirs become ours: transposed, then reshaped."""

    permutation: tuple[int, ...]
    their_shape: tuple[int, ...]
    our_shape: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        moved = np.transpose(array, self.permutation) if array.ndim == len(self.permutation) else array
        return moved.reshape(self.our_shape) if moved.size == math.prod(self.our_shape) else moved

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        if array.size == math.prod(self.our_shape):
            array = array.reshape([self.their_shape[axis] for axis in self.permutation])
        return np.transpose(array, np.argsort(self.permutation)) if array.ndim == len(self.permutation) else array


@dataclass
class Pair:
    """A call of theirs and the call of ours that should compute the same."""

    theirs: Call
    ours: Call
    input_axes: list[Axes | None] = field(default_factory=list)
    """One for each of `theirs.arrays`, where it has a counterpart."""
    output_axes: list[Axes | None] = field(default_factory=list)
    """One for each of `theirs.outputs`."""
    order: list[int | None] = field(default_factory=list)
    """For each of `theirs.arrays` the position of its counterpart in `ours.arrays`."""

    def axes(self, array_ndim: int, of_ours: bool = False) -> Axes | None:
        """The axes of the first array with so many dimensions."""
        for axes in [*self.output_axes, *self.input_axes]:
            if axes is not None and array_ndim == len(axes.our_shape if of_ours else axes.their_shape):
                return axes
        return None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """An array in their layout, in ours."""
        axes = self.axes(array.ndim)
        return array if axes is None else axes.to_ours(array)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """An array in our layout, in theirs."""
        axes = self.axes(array.ndim, of_ours=True)
        return array if axes is None else axes.to_theirs(array)


@dataclass
class Cause:
    """Why two calls differ."""

    name: str
    """A short stable identifier, such as "epsilon" or "padding"."""
    sentence: str
    """Names the layer on both sides, and both values."""
    mend: str
    """The line to change."""
    residual: float
    """The relative difference that remains under this hypothesis."""


@dataclass
class Finding:
    """The first place where the two networks differ. Arrays are in their layout."""

    place: str
    """ "layer": same input, another output. "glue": what is computed between modules. "gradient"."""
    pair: Pair
    """For "glue": the call whose input differs, or, with `target` "output", the call whose own glue makes its output
    from the outputs of the modules inside."""
    error: float
    """Largest difference divided by the largest value of theirs."""
    their_inputs: tuple[np.ndarray, ...]
    our_inputs: tuple[np.ndarray, ...]
    """What our layer would have got. For "layer" equal to `their_inputs`."""
    their_output: np.ndarray | None
    our_output: np.ndarray | None
    """For "layer": what our layer makes of `their_inputs`."""
    run_theirs: Callable[..., np.ndarray]
    """Call the layer alone in float64: arrays in their layout -> first output array in their layout."""
    run_ours: Callable[..., np.ndarray]
    before: Sequence[Pair] = ()
    """The paired calls that ended before, in order; of modules around others those whose output agrees."""
    parent: Pair | None = None
    """The innermost paired call around `pair` whose input agrees."""
    target: str = "input"
    """For "glue": whether the input of `pair` or its output differs."""
    argument: int = 0
    """The number of the input that differs."""
    their_calls: Sequence[Call] = ()
    """All calls of their network, those without a partner too."""
    our_calls: Sequence[Call] = ()
    tolerance: float = 1e-9
    """The relative difference that rounding explains here."""
    probe: str = ""
    """SMALL_VARIANCE or LARGE_MEAN: the kind of input that shows it, if it is not the network's own. For LARGE_MEAN,
    `their_output` is what theirs computes without the mean, which does not change it."""
    rerun: Callable[..., np.ndarray] | None = None
    """Array arguments of their whole network -> the array of theirs at this place."""
    parameter: str = ""
    """For "gradient": the parameter whose gradient differs."""
    cause: Cause | None = None
    searched: bool = False
    """Whether a cause was searched."""

    @property
    def their_input(self) -> np.ndarray:
        """The input that differs, or the first."""
        return self.their_inputs[self.argument]

    @property
    def our_input(self) -> np.ndarray:
        return self.our_inputs[self.argument]

    @property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The two arrays that should be equal: theirs and ours."""
        if self.place == "glue" and self.target == "input":
            return self.their_input, self.our_input
        return self.their_output, self.our_output


def arrays_in(tree: Any) -> list[np.ndarray]:
    """All arrays in nested tuples, lists and dicts."""
    if isinstance(tree, np.ndarray):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [array for part in tree for array in arrays_in(part)] if isinstance(tree, list | tuple) else []


def map_arrays(tree: Any, change: Callable[[Any], Any], is_array: Callable[[Any], bool]) -> Any:
    """The same nest with `change` applied to its arrays."""
    if is_array(tree):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_arrays(part, change, is_array) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_arrays(part, change, is_array) for part in tree])
    if isinstance(tree, list | tuple):
        return type(tree)(map_arrays(part, change, is_array) for part in tree)
    return tree


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference divided by the largest absolute value of theirs; infinite for different shapes."""
    if ours.shape != theirs.shape:
        return math.inf
    if not theirs.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    difference = np.where((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0, difference)
    if np.isnan(difference).any():
        return math.inf
    return float(difference.max() / max(np.abs(theirs[np.isfinite(theirs)]).max(initial=0), 1e-12))
