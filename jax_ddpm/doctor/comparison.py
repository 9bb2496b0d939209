"""Compares a torch module with a Flax module, layer by layer."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from jax_ddpm.doctor.flax_side import FlaxNetwork, exact, flax_network
from jax_ddpm.doctor.forced import TOLERANCE as OUTPUT_TOLERANCE
from jax_ddpm.doctor.forced import Forced, finding, findings, forced_run, inherited_errors
from jax_ddpm.doctor.layouts import LayoutVotes, activation_axes
from jax_ddpm.doctor.open_attention import open_attention
from jax_ddpm.doctor.pairing import pair_calls
from jax_ddpm.doctor.parameters import (
    ParameterPairing,
    is_constant,
    network_table,
    pair_parameters,
    tied_names,
    transfer,
)
from jax_ddpm.doctor.probes import innermost, probe, probed
from jax_ddpm.doctor.records import Call, Cause, Finding, map_arrays
from jax_ddpm.doctor.result import Result
from jax_ddpm.doctor.setup import hidden_differences, setup_differences
from jax_ddpm.doctor.torch_side import TorchNetwork
from jax_ddpm.spec.errors import UserError

EXPLAIN_SECONDS = 60.0  # no further cause is searched after this time
CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def compare(
    torch_module,
    flax_module,
    inputs,
    *,
    our_inputs=None,
    their_keywords: Mapping[str, Any] | None = None,
    our_keywords: Mapping[str, Any] | None = None,
    table: Mapping[str, str] | None = None,
    transfer_weights: bool | None = None,
    probes: bool = True,
    gradients: bool = True,
    causes: int = 3,
) -> Result:
    """Compare a torch module with a Flax module: each layer by itself, on the same input, in float64.

    Neither module is changed: copies are compared, on the CPU. They are compared in the mode in which they are
    (training or evaluation).

    Args:
        torch_module: theirs, a torch.nn.Module.
        flax_module: ours: an nnx.Module, a bound linen.Module, a tuple (linen.Module, variables), or a linen.Module
            without variables, which gets theirs.
        inputs: the positional arguments of their module: one array or a tuple of NumPy arrays, tensors or other values,
            in their layout (NCHW). Floats become float64.
        our_inputs: the arguments of ours. Default: theirs, channels last if ours takes them like that.
        their_keywords: keyword arguments of their module.
        our_keywords: keyword arguments of ours, such as {"train": False}.
        table: {PyTorch name: path in ours} for names of modules or arrays that differ, with {} for numbers that are the
            same on both sides. Default: the TORCH_NAMES of our class. Modules that no name joins are paired by their
            parameters' values, and by order and shape.
        transfer_weights: whether to compare with their weights in a copy of ours. Default: if none of our weights are
            theirs, or ours are not filled.
        probes: whether to try each layer with inputs of small variance and of large mean besides.
        gradients: whether to compare the gradients of all parameters, if no output differs.
        causes: for how many of the places that differ the cause is searched. Layers of one kind count as one place.

    Returns:
        A `Result`: print it, or show it in a notebook.

    Raises:
        UserError: a module fails on the input, or the two have nothing in common.
    """
    arguments, their_keywords = as_arguments(inputs), dict(their_keywords or {})
    their = their_network(torch_module)
    their_calls = recorded_theirs(their, arguments, their_keywords)
    ours_arguments, ours_keywords = our_arguments(arguments, their_keywords, our_inputs, our_keywords)
    flax_module, was_empty = with_variables(flax_module, ours_arguments, ours_keywords)
    our = flax_network(flax_module)
    dtypes = parameter_dtypes(flax_module)
    ours_arguments, our_calls = recorded_ours(our, ours_arguments, ours_keywords, their_calls)
    notes = []
    if getattr(our, "unseen", 0):
        notes.append(
            f"{our.unseen} calls of ours are inside jax.jit, jax.checkpoint or another transformation: "
            "their layers cannot be seen."
        )
    setup = setup_differences(torch_module, dtypes, their_calls, our_calls)
    table = network_table(our) if table is None else table
    pairing = pair_parameters(their.parameters(), our, their_calls, our_calls, table)
    without_buffers(pairing, torch_module)
    pairing.tied = tied_names(torch_module)
    check_common(pairing, torch_module, flax_module)
    if transfer_weights is None:
        transfer_weights = was_empty or needs_transfer(pairing)
        if transfer_weights and not was_empty:
            why = "are not filled" if unfilled(pairing) else "are not theirs"
            notes.append(f"The weights of ours {why}, so a copy of ours with their weights is compared.")
    pairing.transferred = transfer_weights
    if transfer_weights:
        transfer(pairing, their.parameters(), our)
    varied = vary_constants(pairing, their, our)
    if varied:
        notes.append(
            f"Constant arrays, such as biases of zero, have random values on both sides here ({varied} of them): "
            "constants would hide mistakes."
        )
        their_calls = recorded_theirs(their, arguments, their_keywords)
    if varied or transfer_weights:
        our_calls = run_or_explain(our, ours_arguments, ours_keywords)
    pairs = pair_calls(their_calls, our_calls, pairing, {**table, **pairing.table})
    if open_attention(their, their_calls, pairs):
        their_calls = recorded_theirs(their, arguments, their_keywords)
        pairs = pair_calls(their_calls, our_calls, pairing, {**table, **pairing.table})
    setup += hidden_differences(pairs)
    watcher = run_forced(pairs, our, ours_arguments, ours_keywords, our_calls)
    inherited_errors(watcher, our_calls)
    found = findings(watcher, their, our, their_calls, our_calls)
    if probes:
        found += probe_layers(watcher, their, our, their_calls, our_calls)
    found.sort(key=lambda finding: bool(finding.probe))
    explain_all(found, causes)
    if gradients and not found:
        found += compared_gradients(their, our, pairing, watcher, their_calls, notes)
    return Result(
        type(torch_module).__name__,
        type(flax_module[0] if isinstance(flax_module, tuple) else flax_module).__name__,
        setup,
        pairing,
        watcher.checks,
        found,
        their_calls,
        our_calls,
        notes,
    )


def assert_parity(torch_module, flax_module, inputs, **options) -> Result:
    """Raise AssertionError with the first difference and its cause, for tests. Arguments are those of `compare`."""
    result = compare(torch_module, flax_module, inputs, **options)
    if not result.equal:
        raise AssertionError(str(result))
    return result


def check_module(torch_module) -> None:
    """Raise UserError for what is no torch.nn.Module."""
    import torch

    if not isinstance(torch_module, torch.nn.Module):
        raise UserError(f"THEIRS is a {type(torch_module).__name__}: expected a torch.nn.Module.")


def evaluation_mode(torch_module, flax_module) -> None:
    """Put both modules into evaluation mode, in place. Linen modules have their mode in their arguments."""
    torch_module.eval()
    if isinstance(flax_module, nnx.Module):
        flax_module.eval()


def compared_gradients(their, our, pairing, watcher: Forced, their_calls, notes: list[str]) -> list[Finding]:
    """The finding of `gradients.gradient_findings`. A network that cannot be differentiated gets a note."""
    from jax_ddpm.doctor.gradients import FLOAT32_TOLERANCE, TOLERANCE, gradient_findings  # here: they import torch

    narrow = any(check.tolerance > OUTPUT_TOLERANCE for check in watcher.checks)
    tolerance = FLOAT32_TOLERANCE if narrow else TOLERANCE
    pairs = sorted((check.pair for check in watcher.checks), key=lambda pair: pair.ours.number)
    try:
        return gradient_findings(their, our, pairing, pairs, their_calls, tolerance)
    except Exception as error:
        notes.append(f"The gradients were not compared: {first_line(error)}")
        return []


def explain_all(found: Sequence[Finding], places: int) -> None:
    """Search the causes of the findings at the first `places` places; layers of one kind are one place."""
    searched = set()
    start = time.perf_counter()
    for number, one in enumerate(found):
        is_layer = one.place == "layer"
        searched.add((one.probe, one.pair.theirs.kind, one.pair.ours.kind) if is_layer else number)
        if len(searched) > places or time.perf_counter() - start > EXPLAIN_SECONDS:
            return
        twin = next((other for other in found[:number] if is_same_mistake(other, one)), None)
        one.cause, one.searched = explain(one) if twin is None else twin.cause, True


def is_same_mistake(a: Finding, b: Finding) -> bool:
    """Whether code between modules hands on the same right and the same wrong array at both places."""
    if a.cause is None or a.place != "glue" or b.place != "glue" or a.target != b.target:
        return False
    pairs = zip(a.values, b.values, strict=True)
    return all(x is not None and y is not None and np.array_equal(x, y) for x, y in pairs)


def explain(finding: Finding) -> Cause | None:
    """The cause of a finding, or None."""
    from jax_ddpm.doctor import causes  # here: it imports torch

    return causes.explain(finding)


def as_arguments(inputs) -> tuple:
    """Inputs as a tuple of NumPy arrays (floats are float64) and other values."""
    inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return map_arrays(tuple(inputs), as_array, lambda value: hasattr(value, "__array__"))


def as_array(value) -> np.ndarray:
    array = np.asarray(value.detach().cpu().float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value)
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def their_network(torch_module) -> TorchNetwork:
    check_module(torch_module)
    return TorchNetwork(torch_module)


def recorded_theirs(their: TorchNetwork, arguments: tuple, keywords: Mapping) -> list[Call]:
    try:
        return their.record(arguments, keywords)
    except Exception as error:
        raise UserError(f"Their network fails on {shapes_text(arguments)}: {first_line(error)}") from error


def our_arguments(arguments, their_keywords, our_inputs, our_keywords) -> tuple[list[tuple], dict]:
    """The possible arguments of ours, the likeliest first, and the keywords."""
    choices = [channels_last(arguments), arguments] if our_inputs is None else [as_arguments(our_inputs)]
    keywords = dict(our_keywords or {})
    return choices, map_arrays(keywords, as_array, lambda value: hasattr(value, "__array__"))


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


def run_or_explain(our: FlaxNetwork, arguments: tuple, keywords: Mapping) -> list[Call]:
    try:
        return our.record(arguments, keywords)
    except Exception as error:
        raise UserError(f"Our network fails in {where(our)}: {first_line(error)}") from error


def run_forced(pairs, our: FlaxNetwork, arguments: tuple, keywords: Mapping, our_calls) -> Forced:
    try:
        return forced_run(pairs, our, arguments, keywords, LayoutVotes(), our_calls)
    except Exception as error:
        raise UserError(
            f"Our network fails in {where(our)} when its layers get their inputs: {first_line(error)}"
        ) from error


def where(our: FlaxNetwork) -> str:
    """The innermost module that was running."""
    return our.calls[-1].name if getattr(our, "calls", None) else "the network"


def shapes_text(arguments: tuple) -> str:
    texts = [f"{a.shape} {a.dtype.name}" if isinstance(a, np.ndarray) else repr(a)[:40] for a in arguments]
    return "inputs of " + ", ".join(texts) if len(texts) > 1 else "an input of " + "".join(texts)


def first_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def parameter_dtypes(flax_module) -> set[str]:
    """Names of the dtypes of our float parameters."""
    if isinstance(flax_module, nnx.Module):
        leaves = jax.tree.leaves(nnx.state(flax_module, nnx.Param))
    else:
        leaves = jax.tree.leaves(flax_module[1] if isinstance(flax_module, tuple) else flax_module.variables)
    return {leaf.dtype.name for leaf in leaves if hasattr(leaf, "dtype") and "float" in leaf.dtype.name}


def without_buffers(pairing: ParameterPairing, torch_module) -> None:
    """Buffers of theirs that have no partner are listed apart: constants that ours computes."""
    buffers = {name for name, _ in torch_module.named_buffers()}
    pairing.their_buffers = [name for name in pairing.unpaired_theirs if name in buffers]
    pairing.unpaired_theirs = [name for name in pairing.unpaired_theirs if name not in buffers]


def check_common(pairing: ParameterPairing, torch_module, flax_module) -> None:
    total = len(pairing.pairs) + len(pairing.unpaired_theirs)
    if total and not pairing.pairs:
        name = type(flax_module[0] if isinstance(flax_module, tuple) else flax_module).__name__
        raise UserError(
            f"{type(torch_module).__name__} and {name} have nothing in common: no name, value or shape of "
            f"{total} parameters fits. Are these two the same network, with the same arguments?"
        )


def unfilled(pairing: ParameterPairing) -> bool:
    return any(pair.remark == "not filled: NaN" for pair in pairing.pairs)


def needs_transfer(pairing: ParameterPairing) -> bool:
    """Whether our weights are not filled, or none is theirs."""
    if unfilled(pairing):
        return True
    telling = [pair for pair in pairing.pairs if not pair.constant]
    return bool(telling) and not any(pair.error <= 1e-3 or pair.remark for pair in telling)


def vary_constants(pairing: ParameterPairing, their: TorchNetwork, our: FlaxNetwork) -> int:
    """Give constant parameters, equal on both sides, random values on both. How many arrays were changed."""
    rng = np.random.default_rng(0)
    theirs = their.parameters()
    trained = {name for name, _ in their.module.named_parameters()}
    changed = set()
    equal = {pair.theirs for pair in pairing.pairs if pair.error <= 1e-6 and not pair.ambiguous}
    for name, array in theirs.items():
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
        if array.dtype != np.float64 or not array.size or not is_constant(array) or not (name in trained or statistic):
            continue
        if name in equal or name in pairing.unpaired_theirs:
            spread = 0.2 if array.ndim < 2 else 1 / math.sqrt(math.prod(array.shape[1:]))
            noise = rng.standard_normal(array.shape) * spread
            array[...] = array * np.exp(noise) if name.endswith("running_var") else array + noise
            changed.add(name)
    some = [pair for pair in pairing.pairs if pair.theirs in changed]
    if some:
        transfer(ParameterPairing(some), theirs, our)
    return len(changed)


def probe_layers(watcher: Forced, their, our, their_calls: Sequence[Call], our_calls: Sequence[Call]) -> list[Finding]:
    """Findings of layers that agree on the network's own input, but not on a probe."""
    found = []
    for check in innermost(watcher.checks):
        try:
            result = probe(check, their, our)
        except Exception:  # a module that cannot be called alone with other values
            continue
        if result is not None:
            check.probe, check.alone = result[0], result[4]
            place = "output", check, check.alone, check.tolerance, []
            found.append(probed(finding(*place, watcher, their, our, their_calls, our_calls), result))
    return found
