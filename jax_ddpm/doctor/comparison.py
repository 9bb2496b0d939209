"""Compares a torch module with a Flax module, layer by layer."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_ddpm.doctor.flax_side import flax_network
from jax_ddpm.doctor.forced import TOLERANCE as OUTPUT_TOLERANCE
from jax_ddpm.doctor.forced import Forced, finding, findings, inherited_errors
from jax_ddpm.doctor.open_attention import open_attention
from jax_ddpm.doctor.our_arrays import network_table
from jax_ddpm.doctor.pairing import pair_calls
from jax_ddpm.doctor.parameters import ParameterPairing, pair_parameters, tied_names
from jax_ddpm.doctor.probes import innermost, probe, probed
from jax_ddpm.doctor.records import LARGE_MEAN, Call, Cause, Finding
from jax_ddpm.doctor.result import Result
from jax_ddpm.doctor.running import (
    as_arguments,
    as_keywords,
    first_line,
    possible_arguments,
    recorded_again,
    recorded_ours,
    recorded_theirs,
    run_forced,
    with_variables,
)
from jax_ddpm.doctor.setup import hidden_differences, setup_differences
from jax_ddpm.doctor.torch_side import TorchNetwork
from jax_ddpm.doctor.transfer import needs_transfer, transfer, unfilled, vary_constants
from jax_ddpm.spec.errors import UserError

EXPLAIN_SECONDS = 60.0  # no further cause is searched after this time


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
    progress: Callable[[str], None] = lambda stage: None,
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
        progress: is called with the name of each stage when it begins.

    Returns:
        A `Result`: print it, or show it in a notebook.

    Raises:
        UserError: a module fails on the input, or the two have nothing in common.
    """
    check_module(torch_module)
    progress("Both networks are run")
    arguments = as_arguments(inputs)
    their_keywords, our_keywords = as_keywords(their_keywords), as_keywords(our_keywords)
    their = TorchNetwork(torch_module)
    their_calls = recorded_theirs(their, arguments, their_keywords)
    choices = possible_arguments(arguments, our_inputs)
    flax_module, was_empty = with_variables(flax_module, choices, our_keywords)
    our = flax_network(flax_module)
    our_arguments, our_calls = recorded_ours(our, choices, our_keywords, their_calls)
    notes = []
    if our.unseen:
        notes.append(
            f"{our.unseen} calls of ours are inside jax.jit, jax.checkpoint or another transformation: "
            "their layers cannot be seen."
        )
    setup = setup_differences(torch_module, float_parameters(flax_module), their_calls, our_calls)
    table = network_table(our) if table is None else table
    pairing = pair_parameters(their.parameters(), our, their_calls, our_calls, table)
    without_buffers(pairing, torch_module)
    pairing.tied = tied_names(torch_module)
    check_common(pairing, torch_module, flax_module)
    if transfer_weights is None:
        transfer_weights = was_empty or needs_transfer(pairing)
        if transfer_weights and not was_empty:
            why = "are not filled" if unfilled(pairing) else "are not theirs"
            notes.append(
                f"A copy of ours with their weights is compared, because the weights of ours {why}. This is no fault."
            )
    pairing.transferred = transfer_weights
    weights = None
    if transfer_weights:
        transfer(pairing, their.parameters(), our)
        weights = our.stored()
    varied = vary_constants(pairing, their, our)
    if varied:
        notes.append(
            f"Constant arrays, such as biases of zero, have random values on both sides here ({varied} of them): "
            "constants would hide mistakes."
        )
        their_calls = recorded_theirs(their, arguments, their_keywords)
    if varied or transfer_weights:
        our_calls = recorded_again(our, our_arguments, our_keywords)
    pairs = pair_calls(their_calls, our_calls, pairing, {**table, **pairing.table})
    if open_attention(their, their_calls, pairs):
        their_calls = recorded_theirs(their, arguments, their_keywords)
        pairs = pair_calls(their_calls, our_calls, pairing, {**table, **pairing.table})
    setup += hidden_differences(pairs)
    progress("The layers are compared")
    watcher = run_forced(pairs, our, our_arguments, our_keywords, our_calls)
    inherited_errors(watcher, our_calls)
    found = findings(watcher, their, our, their_calls, our_calls)
    if probes:
        progress("The layers are tried on other inputs")
        found += probe_layers(watcher, their, our, their_calls, our_calls)
    found, warnings = without_warnings(found)
    found.sort(key=lambda finding: bool(finding.probe))
    progress("The causes are searched")
    explain_all(found, causes)
    if gradients and not found:
        progress("The gradients are compared")
        found += compared_gradients(their, our, pairing, watcher, their_calls, our_calls, notes)
    return Result(
        type(torch_module).__name__,
        type(flax_module[0] if isinstance(flax_module, tuple) else flax_module).__name__,
        setup,
        pairing,
        watcher.checks,
        found,
        warnings,
        their_calls,
        our_calls,
        notes,
        weights,
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


def compared_gradients(their, our, pairing, watcher: Forced, their_calls, our_calls, notes) -> list[Finding]:
    """The finding of `gradients.gradient_findings`. A network that cannot be differentiated gets a note."""
    from jax_ddpm.doctor.gradients import FLOAT32_TOLERANCE, TOLERANCE, gradient_findings  # here: they import torch

    narrow = any(check.tolerance > OUTPUT_TOLERANCE for check in watcher.checks)
    tolerance = FLOAT32_TOLERANCE if narrow else TOLERANCE
    pairs = sorted((check.pair for check in watcher.checks), key=lambda pair: pair.ours.number)
    try:
        return gradient_findings(their, our, pairing, pairs, their_calls, our_calls, tolerance)
    except Exception as error:
        notes.append(f"The gradients were not compared: {first_line(error)}")
        return []


def without_warnings(found: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """The differences, and apart from them the warnings.

    A warning is a layer of ours that computes the variance in one pass, where only a large mean shows it. Flax's norms
    do so unless they are told otherwise.
    """
    differences, warnings = [], []
    for one in found:
        if one.probe == LARGE_MEAN:
            one.cause, one.searched = explain(one), True
        is_warning = one.probe == LARGE_MEAN and one.cause is not None and one.cause.name == "one_pass_variance"
        (warnings if is_warning else differences).append(one)
    return differences, warnings


def explain_all(found: Sequence[Finding], places: int) -> None:
    """Search the causes of the findings at the first `places` places; layers of one kind are one place."""
    searched = set()
    start = time.perf_counter()
    for number, one in enumerate(found):
        is_layer = one.place == "layer"
        searched.add((one.probe, one.pair.theirs.kind, one.pair.ours.kind) if is_layer else number)
        if len(searched) > places or time.perf_counter() - start > EXPLAIN_SECONDS:
            return
        if not one.searched:
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


def float_parameters(flax_module) -> list[jax.Array]:
    """The parameters of our module that are floats."""
    if isinstance(flax_module, nnx.Module):
        leaves = jax.tree.leaves(nnx.state(flax_module, nnx.Param))
    else:
        leaves = jax.tree.leaves(flax_module[1] if isinstance(flax_module, tuple) else flax_module.variables)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and "float" in leaf.dtype.name]


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


def probe_layers(watcher: Forced, their, our, their_calls: Sequence[Call], our_calls: Sequence[Call]) -> list[Finding]:
    """Findings of layers that agree on the network's own input, but not on a probe."""
    found = []
    for check in innermost(watcher.checks):
        try:
            result = probe(check, their, our)
        except Exception:  # a module that cannot be called alone with other values
            continue
        if result is not None:
            place = "output", check, result[4], check.tolerance, []
            found.append(probed(finding(*place, watcher, their, our, their_calls, our_calls), result))
    return found
