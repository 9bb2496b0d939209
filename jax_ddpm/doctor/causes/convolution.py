"""Convolutions: kernel, padding, stride, dilation, groups and bias."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, constructor, kinds, pair_of
from jax_ddpm.doctor.records import Call, Finding

KERNEL_CHANGES = {
    "kernel_flipped": "the kernel is flipped in height and width",
    "kernel_flipped_height": "the kernel is flipped in height",
    "kernel_flipped_width": "the kernel is flipped in width",
    "kernel_transposed": "height and width of the kernel are swapped",
    "kernel_in_out_swapped": "input and output channels of the kernel are swapped",
}
KERNEL_MENDS = {
    "kernel_flipped": "Convert the kernel without [::-1, ::-1]",
    "kernel_flipped_height": "Convert the kernel without [::-1]",
    "kernel_flipped_width": "Convert the kernel without [:, ::-1]",
}
LAYOUT = "weight.transpose(2, 3, 1, 0)"
PADDING_MODES = {"zeros": "zeros", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's names and NumPy's."""


@dataclass(frozen=True)
class Convolution:
    """A convolution in PyTorch's layout. Pads are (before, after) for each axis of space."""

    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"
    bias_factor: int = 1

    def __call__(self, x: np.ndarray, *_: Any) -> np.ndarray:
        """x (B, C, ...) in float64."""
        import torch
        from torch.nn import functional as F

        space = self.weight.ndim - 2
        negative = [(min(low, 0), min(high, 0)) for low, high in self.pads]
        around = [(0, 0)] * (x.ndim - space) + [(max(low, 0), max(high, 0)) for low, high in self.pads]
        settings = {"mode": "constant"} if self.mode == "zeros" else {"mode": PADDING_MODES[self.mode]}
        x = np.pad(x, around, **settings)
        x = x[(..., *(slice(-low, x.shape[axis - space] + high) for axis, (low, high) in enumerate(negative)))]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[space - 1]
        x, weight = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(self.weight))
        y = convolve(x, weight, stride=self.stride, dilation=self.dilation, groups=self.groups).numpy()
        return y if self.bias is None else y + self.bias_factor * self.bias.reshape(-1, *[1] * space)

    def preview(self, x: np.ndarray, *_: Any) -> np.ndarray:
        """The first channels of the first image."""
        if self.groups > 1:
            return self(x[:1])
        bias = None if self.bias is None else self.bias[:4]
        return replace(self, weight=self.weight[:4], bias=bias)(x[:1])


def read(call: Call) -> Convolution | None:
    """Their convolution, or None if the call is none."""
    weight = call.parameters.get("weight")
    if not kinds(call) & {"Conv1d", "Conv2d", "Conv3d"} or weight is None:
        return None
    space = weight.ndim - 2
    stride, dilation = each_axis(call, "stride", space), each_axis(call, "dilation", space)
    padding = call.settings.get("padding", 0)
    if padding == "same":
        pads = tuple(same_pads(None, k, 1, d) for k, d in zip(weight.shape[2:], dilation, strict=True))
    else:
        padding = 0 if padding == "valid" else padding
        pads = tuple((p, p) for p in (pair_of(padding) * space)[:space])
    bias, groups, mode = call.parameters.get("bias"), call.settings.get("groups", 1), call.settings.get("padding_mode")
    return Convolution(weight, bias, stride, pads, dilation, groups, mode or "zeros")


def each_axis(call: Call, name: str, space: int) -> tuple[int, ...]:
    """A setting that is one number or one for each axis."""
    return (pair_of(call.settings.get(name, 1)) * space)[:space]


def same_pads(size: int | None, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding of "SAME". With stride 1 it does not depend on the size."""
    reach = dilation * (kernel - 1) + 1
    total = reach - 1 if stride == 1 else max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def changed_kernel(weight: np.ndarray, change: str) -> np.ndarray | None:
    """The kernel after one of KERNEL_CHANGES, or None if its shape does not allow it or nothing changes."""
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3]
    space = tuple(range(2, weight.ndim))
    changed = {
        "kernel_flipped": lambda: np.flip(weight, space),
        "kernel_flipped_height": lambda: np.flip(weight, 2) if weight.ndim == 4 else None,
        "kernel_flipped_width": lambda: np.flip(weight, 3) if weight.ndim == 4 else None,
        "kernel_transposed": lambda: weight.swapaxes(2, 3) if square else None,
        "kernel_in_out_swapped": lambda: weight.swapaxes(0, 1) if weight.shape[0] == weight.shape[1] else None,
    }[change]()
    return None if changed is None or np.array_equal(changed, weight) else changed


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    theirs = read(finding.pair.theirs)
    if theirs is None:
        return
    x, ours = finding.their_input, finding.our_output
    space = theirs.weight.ndim - 2
    if x.ndim != space + 2 or ours.ndim != space + 2:
        return
    layer, size, target = constructor(finding.pair.ours), x.shape[2:], ours.shape[2:]
    yield from bias_changes(theirs, layer)
    yield from padding_changes(theirs, size, target, layer)
    yield from kernel_changes(theirs)
    yield from channel_orders(theirs)
    yield from stride_and_dilation(theirs, size, target, layer)
    for first, second in itertools.combinations(KERNEL_CHANGES, 2):
        once = changed_kernel(theirs.weight, first)
        twice = None if once is None else changed_kernel(once, second)
        if twice is not None:
            says = f"{KERNEL_CHANGES[first]}, and {KERNEL_CHANGES[second]} in ours"
            yield kernel_hypothesis(first, says, replace(theirs, weight=twice))
    for kernel in kernel_changes(theirs):
        weight = changed_kernel(theirs.weight, kernel.name)
        for padding in padding_changes(replace(theirs, weight=weight), size, target, layer):
            padding.says += f"; besides, {KERNEL_CHANGES[kernel.name]}"
            yield padding
    for padding in padding_changes(theirs, size, target, layer):
        for bias in bias_changes(padding.compute, layer):
            bias.says += f"; besides, {padding.says}"
            bias.mend += f" {padding.mend}"
            yield bias


def bias_changes(operation: Any, layer: str) -> Iterator[Hypothesis]:
    """Of a Convolution, or a `transposed.Transposed`."""
    if operation.bias is None or not operation.bias.any():
        return
    yield Hypothesis(
        "bias_missing",
        "ours adds no bias, theirs does",
        f"Write {layer}(..., use_bias=True) and load the bias.",
        replace(operation, bias=None),
    )
    yield Hypothesis(
        "bias_doubled", "ours adds the bias twice", "Add the bias once.", replace(operation, bias_factor=2)
    )


def kernel_changes(theirs: Convolution) -> Iterator[Hypothesis]:
    for change, says in KERNEL_CHANGES.items():
        weight = changed_kernel(theirs.weight, change)
        if weight is not None:
            yield kernel_hypothesis(change, f"{says} in ours", replace(theirs, weight=weight))


def kernel_hypothesis(name: str, says: str, operation: Convolution) -> Hypothesis:
    mend = f"{KERNEL_MENDS.get(name, 'Convert the kernel')} by kernel = {LAYOUT}."
    return Hypothesis(name, says, mend, operation)


def padding_changes(theirs: Convolution, size, target, layer: str) -> Iterator[Hypothesis]:
    """All pads that give the size of our output, near ones first, and other modes."""
    options = []
    for axis, (k, s, d) in enumerate(zip(theirs.weight.shape[2:], theirs.stride, theirs.dilation, strict=True)):
        reach = d * (k - 1) + 1
        totals = range((target[axis] - 1) * s + reach - size[axis], target[axis] * s + reach - size[axis])
        totals = [total for total in totals if -s < total <= 2 * reach]
        options.append({(low, total - low) for total in totals for low in range(min(total, 0), max(total, 0) + 1)})
    together = [tuple([pads] * len(size)) for pads in sorted(set.intersection(*options))] if options else []
    apart = [pads for pads in itertools.product(*map(sorted, options)) if len(set(pads)) > 1]
    same = tuple(
        same_pads(n, k, s, d)
        for n, k, s, d in zip(size, theirs.weight.shape[2:], theirs.stride, theirs.dilation, strict=True)
    )
    for pads in [same, *together, *apart[:64]]:
        if pads != theirs.pads:
            name = f'{written(pads)} ("SAME")' if pads == same else written(pads)
            yield Hypothesis(
                "padding",
                f"padding is {name} in ours and {written(theirs.pads)} in theirs{sides(pads, theirs.pads)}",
                f"Write {layer}(..., padding={written(theirs.pads)}).",
                replace(theirs, pads=pads),
            )
    for mode in PADDING_MODES:
        if mode != theirs.mode:
            yield Hypothesis(
                "padding_mode",
                f"ours pads with {mode}, theirs with {theirs.mode}",
                f'Write jnp.pad(x, ..., mode="{PADDING_MODES[theirs.mode]}") and a convolution without padding.'
                if theirs.mode != "zeros"
                else f"Write {layer}(..., padding={written(theirs.pads)}).",
                replace(theirs, mode=mode),
            )


def written(pads: tuple[tuple[int, int], ...]) -> str:
    """Pads as Flax writes them: "((1, 1), (1, 1))"."""
    return str(tuple(pads)) if len(pads) > 1 else f"({pads[0]},)"


def sides(ours, theirs) -> str:
    """Where an even total of ours lies on other sides, in words."""
    if len(ours) != 2 or [sum(p) for p in ours] == [sum(p) for p in theirs] == [0, 0]:
        return ""
    if all(low == 0 < high for low, high in ours) and any(low for low, _ in theirs):
        return ": ours pads the bottom and the right only"
    if all(high == 0 < low for low, high in ours) and any(high for _, high in theirs):
        return ": ours pads the top and the left only"
    return ""


def channel_orders(theirs: Convolution) -> Iterator[Hypothesis]:
    """Channels of groups interleaved, on the way in, on the way out, or both; one group for several."""
    g = theirs.groups
    if g < 2:
        return
    outputs, inputs = theirs.weight.shape[0], theirs.weight.shape[1] * g

    def interleaved(count: int) -> np.ndarray:
        return np.arange(count).reshape(g, -1).T.ravel()

    orders = {
        "input": (interleaved(inputs), slice(None)),
        "output": (slice(None), interleaved(outputs)),
        "input and output": (interleaved(inputs), interleaved(outputs)),
        "input (the other way)": (np.argsort(interleaved(inputs)), slice(None)),
        "output (the other way)": (slice(None), np.argsort(interleaved(outputs))),
    }
    for where, (into, out) in orders.items():
        yield Hypothesis(
            "group_channels",
            f"ours interleaves the channels of the {g} groups at its {where}; in theirs a group is a block of "
            "neighbouring channels",
            "Split channels by reshape(..., groups, channels // groups), not (..., channels // groups, groups).",
            lambda x, *_, into=into, out=out: theirs(x[:, into])[:, out],
        )


def stride_and_dilation(theirs: Convolution, size, target, layer: str) -> Iterator[Hypothesis]:
    """Another stride, dilation, or both swapped between the axes, with every padding that gives our size."""
    ones = range(1, 5)
    space = len(size)
    for stride in sorted({(s,) * space for s in ones} | {theirs.stride[::-1]}):
        if stride != theirs.stride:
            yield from with_paddings("stride", "strides", stride, theirs, size, target, layer)
    for dilation in sorted({(d,) * space for d in ones} | {theirs.dilation[::-1]}):
        if dilation != theirs.dilation:
            yield from with_paddings("dilation", "kernel_dilation", dilation, theirs, size, target, layer)


def with_paddings(name, argument, value, theirs: Convolution, size, target, layer: str) -> Iterator[Hypothesis]:
    old = getattr(theirs, name)
    changed = replace(theirs, **{name: value})
    paddings = [changed, *(h.compute for h in padding_changes(changed, size, target, layer))]
    for operation in paddings:
        besides = (
            ""
            if operation.pads == theirs.pads
            else f", and padding is {written(operation.pads)} in ours, {written(theirs.pads)} in theirs"
        )
        yield Hypothesis(
            name,
            f"{name} is {value} in ours and {old} in theirs{besides}",
            f"Write {layer}(..., {argument}={old}, padding={written(theirs.pads)}).",
            operation,
        )
