"""Multi-head attention as one module: torch.nn.MultiheadAttention and modules with its parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jax_ddpm.doctor.causes import attention
from jax_ddpm.doctor.causes.attention import Form
from jax_ddpm.doctor.causes.hypothesis import Hypothesis
from jax_ddpm.doctor.causes.search import as_tokens
from jax_ddpm.doctor.records import Call, Finding, relative_error


@dataclass(frozen=True)
class MultiHead:
    """Projections of PyTorch's layout around attention. x: tokens (B, N, C)."""

    weight: np.ndarray
    bias: np.ndarray
    out_weight: np.ndarray
    out_bias: np.ndarray
    form: Form

    def packed(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        weights, biases = np.split(self.weight, 3), np.split(self.bias, 3)
        return np.concatenate([x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True)], -1)

    def apply(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        return self.form.apply(self.packed(query, key, value)) @ self.out_weight.T + self.out_bias


def read(call: Call) -> MultiHead | None:
    """Their attention, or None if the call is none with one width for query, key and value."""
    p = call.parameters
    weight, out = p.get("in_proj_weight"), p.get("out_proj.weight")
    if weight is None or out is None or weight.shape[0] != 3 * weight.shape[1]:
        return None
    c = weight.shape[1]
    bias, out_bias = p.get("in_proj_bias", np.zeros(3 * c)), p.get("out_proj.bias", np.zeros(c))
    return MultiHead(weight, bias, out, out_bias, Form(heads=call.settings.get("num_heads", 1)))


def layouts(finding: Finding) -> Iterator[tuple[Callable, Callable]]:
    """Ways from their arrays to tokens (B, N, C), and back."""
    x = finding.their_input
    if x.ndim == 4:
        _, _, _, into, back = as_tokens(x.shape)
        yield into, back
        return
    if finding.pair.theirs.settings.get("batch_first", True):
        yield (lambda v: v), (lambda v: v)
    yield (lambda v: v.swapaxes(0, 1)), (lambda v: v.swapaxes(0, 1))


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    theirs = read(finding.pair.theirs)
    if theirs is None or finding.their_output.shape != finding.our_output.shape:
        return
    inputs = [x for x in finding.their_inputs if x.ndim in (3, 4)][:3]
    inputs = inputs if len(inputs) == 3 else inputs[:1] * 3
    for into, back in layouts(finding):
        tokens = [into(x) for x in inputs]
        if relative_error(back(theirs.apply(*tokens)), finding.their_output) < 1e-8:
            yield from changed(finding, theirs, tokens, back)
            yield from other_form(finding, theirs, tokens, into, back)
            return


def changed(finding: Finding, theirs: MultiHead, tokens: list, back: Callable) -> Iterator[Hypothesis]:
    """Biases and weights."""
    zero, out_zero = np.zeros_like(theirs.bias), np.zeros_like(theirs.out_bias)
    thirds = np.split(theirs.weight, 3)
    options = [
        ("bias_missing", "the projections to query, key and value have no bias in ours", {"bias": zero}),
        ("bias_missing", "the output projection has no bias in ours", {"out_bias": out_zero}),
        ("bias_missing", "no projection has a bias in ours", {"bias": zero, "out_bias": out_zero}),
        ("bias_doubled", "the output projection's bias is added twice in ours", {"out_bias": 2 * theirs.out_bias}),
        (
            "weight_transposed",
            "the output projection's weight is transposed in ours",
            {"out_weight": theirs.out_weight.T},
        ),
        (
            "weight_transposed",
            "the weights of query, key and value are transposed in ours",
            {"weight": np.concatenate([w.T for w in thirds])},
        ),
        (
            "weight_transposed",
            "all projections are transposed in ours",
            {"weight": np.concatenate([w.T for w in thirds]), "out_weight": theirs.out_weight.T},
        ),
    ]
    for index, letter in enumerate(("query", "key", "value")):
        bias = theirs.bias.copy()
        bias[index * len(thirds[0]) : (index + 1) * len(thirds[0])] = 0
        options.append(("bias_missing", f"the projection to the {letter} has no bias in ours", {"bias": bias}))
    heads, c = theirs.form.heads, len(theirs.out_weight)
    rows = np.concatenate([w.reshape(heads, c // heads, c).swapaxes(0, 1).reshape(c, c) for w in thirds])
    split = "the weights of query, key and value are split as (d, heads) in ours and as (heads, d) in theirs"
    options.append(("qkv_packing", split, {"weight": rows}))
    for name, says, arrays in options:
        operation = replace(theirs, **arrays)
        mend = "Load the biases, use_bias=True." if "bias" in name else "Convert weights by kernel = weight.T"
        mend += "." if name != "qkv_packing" else f".reshape(C, {heads}, {c // heads})."
        yield Hypothesis(name, says, mend, lambda *_, o=operation: back(o.apply(*tokens)))
    yield Hypothesis(
        "residual_extra",
        "ours adds the input, theirs does not",
        "Return the output alone.",
        lambda *_: back(tokens[0] + theirs.apply(*tokens)),
    )


def other_form(finding: Finding, theirs: MultiHead, tokens, into, back) -> Iterator[Hypothesis]:
    """Heads, scale, softmax, order and split, seen through the inverse of the output projection."""
    try:
        inner = np.linalg.solve(theirs.out_weight, (into(finding.our_output) - theirs.out_bias).mT).mT
    except np.linalg.LinAlgError:
        return
    form = attention.read_off(theirs.packed(*tokens), inner, theirs.form, True, 1e-7)
    if form is None or form == theirs.form:
        return
    name, says, mend = attention.difference(theirs.form, form, len(theirs.out_weight))
    operation = replace(theirs, form=form)
    yield Hypothesis(name, says, mend, lambda *_: back(operation.apply(*tokens)))
