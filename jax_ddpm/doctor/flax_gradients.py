"""Gradients of a Flax module: of its arguments, its parameters and the outputs of the modules inside."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm.doctor.flax_side import FlaxNetwork, NnxNetwork, exact, subtree, to_jax_tree
from jax_ddpm.doctor.gradient_rows import INPUT
from jax_ddpm.doctor.records import Call, map_arrays


def our_gradients(
    our: FlaxNetwork, call: Call, weights: np.ndarray, outputs: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Gradients of sum(first output * weights), in our layout.

    Args:
        weights: numbers of the shape of the first output.
        outputs: shapes of the outputs of modules inside whose gradients are wanted, by `output_name`.

    Returns:
        Gradients by "input 0" (of the array arguments, not of integers), by path of a parameter, and by `output_name`.
    """
    is_float = [array.dtype.kind == "f" for array in call.arrays]
    prefix = f"{call.path}." if call.path else ""
    with exact():
        floats = [jnp.asarray(array) for array, used in zip(call.arrays, is_float, strict=True) if used]
        offsets = {name: jnp.zeros(shape) for name, shape in (outputs or {}).items()}
        run, parameters = as_function(our, call)

        def loss(parameters, floats, offsets):
            rest = iter(floats)
            chosen = iter([next(rest) if used else array for array, used in zip(call.arrays, is_float, strict=True)])
            arguments = map_arrays((call.inputs, call.keywords), lambda _: next(chosen), is_array)
            return jnp.sum(first_output(run(parameters, offsets, *to_jax_tree(arguments))) * weights)

        by_parameters, by_floats, by_offsets = jax.grad(loss, argnums=(0, 1, 2))(parameters, floats, offsets)
    numbers = [number for number, used in enumerate(is_float) if used]
    found = {f"{INPUT}{number}": np.asarray(value) for number, value in zip(numbers, by_floats, strict=True)}
    for keys, value in jax.tree_util.tree_leaves_with_path(by_parameters):
        found[prefix + path_text(keys)] = np.asarray(value)
    return found | {name: np.asarray(value) for name, value in by_offsets.items()}


def as_function(our: FlaxNetwork, call: Call) -> tuple[Callable, Any]:
    """A module as a pure function (parameters, offsets, arguments, keywords) -> output, and its parameters.

    The offsets are added to the outputs of modules inside.
    """
    if isinstance(our, NnxNetwork):
        graph, parameters, rest = nnx.split(call.module, nnx.Param, ...)

        def run(parameters, offsets, arguments, keywords):
            module = nnx.merge(graph, parameters, rest)
            with our.adding(offsets, call, module):
                return module(*arguments, **keywords)

        return run, parameters
    path = call.path.split(".") if call.path else []
    inner = {name: subtree(tree, path) for name, tree in our.values.items()}
    inner = {name: tree for name, tree in inner.items() if tree is not None}

    def run(parameters, offsets, arguments, keywords):
        with our.adding(offsets, call, call.module):
            return our.apply(call.module, {**inner, "params": parameters}, arguments, keywords)

    return run, inner.get("params", {})


def path_text(keys) -> str:
    """The path of a parameter in a state or a dict: "conv1.kernel"."""
    found = (getattr(key, "key", getattr(key, "idx", None)) for key in keys)  # None for the Variable around the array
    return ".".join(str(name) for name in found if name is not None)


def first_output(output):
    found = []
    map_arrays(output, lambda value: found.append(value), lambda value: isinstance(value, jax.Array))
    return found[0]


def is_array(value) -> bool:
    return isinstance(value, np.ndarray)
