"""Runs both networks: which arguments ours takes, and what a failure says."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen

from jax_ddpm.doctor.flax_side import FlaxNetwork, exact
from jax_ddpm.doctor.forced import Forced, forced_run
from jax_ddpm.doctor.layouts import LayoutVotes, activation_axes
from jax_ddpm.doctor.records import Call, map_arrays
from jax_ddpm.doctor.torch_side import TorchNetwork
from jax_ddpm.spec.errors import UserError

CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def as_arguments(inputs) -> tuple:
    """Inputs as a tuple of NumPy arrays (floats are float64) and other values."""
    inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return map_arrays(tuple(inputs), as_array, is_array)


def as_keywords(keywords: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same for keyword arguments."""
    return map_arrays(dict(keywords or {}), as_array, is_array)


def is_array(value) -> bool:
    return hasattr(value, "__array__")


def as_array(value) -> np.ndarray:
    """An array or tensor on any device as NumPy array, floats as float64."""
    if hasattr(value, "detach"):  # a tensor; NumPy has no bfloat16
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def recorded_theirs(their: TorchNetwork, arguments: tuple, keywords: Mapping) -> list[Call]:
    """The calls of their network. UserError where it fails."""
    try:
        return their.record(arguments, keywords)
    except Exception as error:
        text = f"Their network fails on {shapes_text(arguments)}: {first_line(error)}"
        raise UserError(f"{text}\n{hint(their, arguments, keywords, error)}".strip()) from error


def hint(their: TorchNetwork, arguments: tuple, keywords: Mapping, error: Exception) -> str:
    """What to give in place of inputs on which their network fails, or an empty text."""
    missing = isinstance(error, TypeError) and "required positional argument" in str(error)
    if missing and arguments and isinstance(arguments[0], np.ndarray):
        return f"Give one more input, such as --input {flag(arguments)} {len(arguments[0])} (in Python: inputs=(x, t))."
    first = channels_first(arguments)
    if any(a.shape != b.shape for a, b in zip(arguments, first, strict=True) if isinstance(a, np.ndarray)):
        try:
            their.record(first, keywords)
        except Exception:
            return ""
        return (
            f"Shapes are in PyTorch's layout, channels first: --input {flag(first)} (in Python: x of {first[0].shape})."
        )
    return ""


def flag(arguments: tuple) -> str:
    """Shapes of arrays as --input takes them."""
    return " ".join(",".join(map(str, a.shape)) for a in arguments if isinstance(a, np.ndarray))


def channels_first(arguments: tuple) -> tuple:
    def change(array):
        return np.moveaxis(array, -1, 1) if array.ndim in CHANNELS_LAST else array

    return map_arrays(arguments, change, lambda value: isinstance(value, np.ndarray))


def possible_arguments(arguments: tuple, our_inputs) -> list[tuple]:
    """The arguments that ours may take, the likeliest first: `our_inputs`, else theirs, with channels last or not."""
    return [channels_last(arguments), arguments] if our_inputs is None else [as_arguments(our_inputs)]


def channels_last(arguments: tuple) -> tuple:
    def change(array):
        return array.transpose(CHANNELS_LAST[array.ndim]) if array.ndim in CHANNELS_LAST else array

    return map_arrays(arguments, change, lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "f")


def with_variables(flax_module, choices: list[tuple], keywords: Mapping) -> tuple[Any, bool]:
    """A Linen module without variables gets some, which are to be filled; whether it did."""
    if not isinstance(flax_module, linen.Module) or flax_module.scope is not None:
        return flax_module, False
    errors = []
    for arguments in choices:
        try:
            shapes = variable_shapes(flax_module, arguments, keywords)
            return (flax_module, jax.tree_util.tree_map_with_path(empty_variable, shapes)), True
        except Exception as error:
            errors.append(error)
    raise UserError(f"Our network fails on {shapes_text(choices[0])}: {first_line(errors[0])}")


def variable_shapes(module: linen.Module, arguments: tuple, keywords: Mapping):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with exact():
        return jax.eval_shape(lambda *inputs: module.init(keys, *inputs, **keywords), *arguments)


def empty_variable(path, shape) -> np.ndarray:
    """Ones for scales and variances, else zeros."""
    fill = np.ones if getattr(path[-1], "key", "") in ("scale", "var") else np.zeros
    return fill(shape.shape, shape.dtype)


def recorded_ours(our: FlaxNetwork, choices: list[tuple], keywords, their_calls) -> tuple[tuple, list[Call]]:
    """The arguments that our network takes, and its calls.

    With several possible arguments, those count with which it runs and makes an output of the right shape.
    """
    results, errors = [], []
    for arguments in choices:
        try:
            results.append((arguments, our.record(arguments, keywords)))
        except Exception as error:
            errors.append((arguments, error))
            continue
        if matches(their_calls[0], results[-1][1][0]):
            break
    if not results:
        arguments, error = errors[0]
        raise UserError(
            f"Our network fails on {shapes_text(arguments)}, in {where(our)}: {first_line(error)}"
        ) from error
    return results[-1] if matches(their_calls[0], results[-1][1][0]) else results[0]


def matches(theirs: Call, ours: Call) -> bool:
    return bool(theirs.outputs and ours.outputs and activation_axes(theirs.outputs[0].shape, ours.outputs[0].shape))


def recorded_again(our: FlaxNetwork, arguments: tuple, keywords: Mapping) -> list[Call]:
    """The calls of our network with arguments that it takes."""
    try:
        return our.record(arguments, keywords)
    except Exception as error:
        raise UserError(f"Our network fails in {where(our)}: {first_line(error)}") from error


def run_forced(pairs, our: FlaxNetwork, arguments: tuple, keywords: Mapping, our_calls) -> Forced:
    """`forced_run`. UserError where it fails."""
    try:
        return forced_run(pairs, our, arguments, keywords, LayoutVotes(), our_calls)
    except Exception as error:
        raise UserError(
            f"Our network fails in {where(our)} when its layers get their inputs: {first_line(error)}"
        ) from error


def where(our: FlaxNetwork) -> str:
    """The innermost module that was running."""
    calls = our.recording.calls
    return calls[-1].name if calls else "the network"


def shapes_text(arguments: tuple) -> str:
    texts = [f"{a.shape} {a.dtype.name}" if isinstance(a, np.ndarray) else repr(a)[:40] for a in arguments]
    return "inputs of " + ", ".join(texts) if len(texts) > 1 else "an input of " + "".join(texts)


def first_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
