"""Gradients of both networks for the same loss: of every parameter, and where they first differ.

The loss is the sum of the first output times fixed random numbers, in float64. Where gradients differ although outputs
agree, each pair of modules is differentiated alone, on their input, from the whole network down to the innermost pair
that differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm.doctor.causes.gradient import cause_of
from jax_ddpm.doctor.flax_side import FlaxNetwork, NnxNetwork, exact, subtree, to_jax_tree
from jax_ddpm.doctor.parameters import ParameterPairing
from jax_ddpm.doctor.records import Call, Finding, Pair, map_arrays
from jax_ddpm.doctor.torch_gradients import TorchGradients, their_gradients
from jax_ddpm.doctor.torch_side import TorchNetwork

TOLERANCE = 1e-7
"""Relative difference of two gradients in float64 that rounding explains."""
FLOAT32_TOLERANCE = 1e-3
"""The same where a layer computes in float32."""
SMALLEST = 1e-6
"""Gradients are compared with at least this share of the largest of all."""


@dataclass
class GradientRow:
    """The gradient of one parameter or input, in their layout."""

    theirs: str
    """The parameter's name, or "input 0"."""
    ours: str
    their_gradient: np.ndarray
    our_gradient: np.ndarray
    error: float
    """Largest difference divided by the largest value of theirs."""


def gradient_rows(their: TorchNetwork, our: FlaxNetwork, pairing: ParameterPairing, pair: Pair) -> list[GradientRow]:
    """The gradients of one module's inputs and of all parameters inside, theirs and ours."""
    weights = loss_weights(pair)
    theirs = their_gradients(their, pair.theirs, weights)
    inputs, parameters = our_gradients(our, pair.ours, pair.output_axes[0].to_ours(weights))
    rows = []
    for number, (array, index, axes) in enumerate(zip(theirs.inputs, pair.order, pair.input_axes, strict=False)):
        if array is not None and index is not None and inputs[index] is not None:
            rows.append((f"input {number}", f"input {index}", array, axes.to_theirs(inputs[index])))
    for one in pairing.pairs:
        if one.theirs in theirs.parameters and all(path in parameters for path in one.ours):
            ours = one.layout.to_torch(*(parameters[path] for path in one.ours))
            rows.append((one.theirs, ", ".join(one.ours), theirs.parameters[one.theirs], ours))
    largest = max((np.abs(a).max(initial=0) for _, _, a, _ in rows), default=0.0)
    return [GradientRow(*row, error_of(row[2], row[3], SMALLEST * largest)) for row in rows]


def error_of(theirs: np.ndarray, ours: np.ndarray, floor: float) -> float:
    if theirs.shape != ours.shape or not np.isfinite(ours).all():
        return np.inf
    return float(np.abs(theirs - ours).max(initial=0) / max(np.abs(theirs).max(initial=0), floor, 1e-300))


def loss_weights(pair: Pair) -> np.ndarray:
    """The random numbers by which the first output of theirs is multiplied."""
    return np.random.default_rng(0).standard_normal(pair.theirs.outputs[0].shape)


def our_gradients(
    our: FlaxNetwork, call: Call, weights: np.ndarray
) -> tuple[list[np.ndarray | None], dict[str, np.ndarray]]:
    """Gradients of the array arguments of a call (None for integers), and of the parameters inside by path."""
    arrays = call.arrays
    is_float = [array.dtype.kind == "f" for array in arrays]
    prefix = f"{call.path}." if call.path else ""
    with exact():
        floats = [jnp.asarray(array) for array, used in zip(arrays, is_float, strict=True) if used]
        run, parameters = as_function(our, call)

        def loss(parameters, floats):
            rest = iter(floats)
            chosen = [next(rest) if used else array for array, used in zip(arrays, is_float, strict=True)]
            numbers = iter(chosen)
            arguments = map_arrays((call.inputs, call.keywords), lambda _: next(numbers), is_array)
            return jnp.sum(first_output(run(parameters, *to_jax_tree(arguments))) * weights)

        by_parameters, by_floats = jax.grad(loss, argnums=(0, 1))(parameters, floats)
    given = iter(by_floats)
    inputs = [np.asarray(next(given)) if used else None for used in is_float]
    flat = jax.tree_util.tree_leaves_with_path(by_parameters)
    return inputs, {prefix + path_text(keys): np.asarray(value) for keys, value in flat}


def as_function(our: FlaxNetwork, call: Call):
    """A module as a pure function (parameters, arguments, keywords) -> output, and its parameters."""
    if isinstance(our, NnxNetwork):
        graph, parameters, rest = nnx.split(call.module, nnx.Param, ...)

        def run(parameters, arguments, keywords):
            return nnx.merge(graph, parameters, rest)(*arguments, **keywords)

        return run, parameters
    path = call.path.split(".") if call.path else []
    inner = {name: subtree(tree, path) for name, tree in our.values.items()}
    inner = {name: tree for name, tree in inner.items() if tree is not None}

    def run(parameters, arguments, keywords):
        return our.apply(call.module, {**inner, "params": parameters}, arguments, keywords)

    return run, inner.get("params", {})


def path_text(keys) -> str:
    """The path of a parameter in a state or a dict: "conv1.kernel"."""
    names = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in keys)
    return ".".join(str(name) for name in names if name not in (None, "value", "raw_value"))


def first_output(output):
    found = []
    map_arrays(output, lambda value: found.append(value), lambda value: isinstance(value, jax.Array))
    return found[0]


def is_array(value) -> bool:
    return isinstance(value, np.ndarray)


def gradient_findings(
    their: TorchNetwork,
    our: FlaxNetwork,
    pairing: ParameterPairing,
    pairs: Sequence[Pair],
    their_calls: Sequence[Call],
    tolerance: float = TOLERANCE,
) -> list[Finding]:
    """The innermost pair whose gradients differ, with its cause; an empty list if all gradients agree.

    pairs: those of the forced run, the whole networks' first.
    """
    inside = pairs[0]
    rows = gradient_rows(their, our, pairing, inside)
    if all(row.error <= tolerance for row in rows):
        return []
    parameters = [row for row in rows if not row.theirs.startswith("input ")]
    named = next((row.theirs for row in parameters if row.error > tolerance), "")
    while True:
        for pair in children(inside, pairs, their_calls):
            alone = gradient_rows(their, our, pairing, pair)
            if any(row.error > tolerance for row in alone):
                inside, rows = pair, alone
                break
        else:
            break
    worst = max(rows, key=lambda row: row.error)
    finding = Finding(
        "gradient",
        inside,
        worst.error,
        tuple(inside.theirs.arrays),
        tuple(inside.theirs.arrays),
        worst.their_gradient,
        worst.our_gradient,
        lambda *arrays: their.run(inside.theirs, *arrays),
        lambda *arrays: our.run(inside.ours, *arrays),
        tolerance=tolerance,
        parameter=named or worst.theirs,
    )
    variants = TorchGradients(their, inside.theirs, loss_weights(inside))
    finding.cause = cause_of(inside, rows, variants, tolerance)
    return [finding]


def children(pair: Pair, pairs: Sequence[Pair], their_calls: Sequence[Call]) -> list[Pair]:
    """The pairs inside a pair with no other pair between, whose output is an array."""
    paired = {other.theirs.number for other in pairs}

    def around(call: Call) -> int | None:
        parent = call.parent
        while parent is not None and parent not in paired:
            parent = their_calls[parent].parent
        return parent

    inside = [other for other in pairs if other is not pair and around(other.theirs) == pair.theirs.number]
    return [other for other in inside if other.output_axes and isinstance(other.theirs.output, np.ndarray)]
