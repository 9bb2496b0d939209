"""Transposed convolutions: crop, flip, swapped channels, bias, stride."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes.convolution import KERNEL_CHANGES, bias_changes, changed_kernel, each_axis
from jax_ddpm.doctor.causes.hypothesis import Hypothesis, constructor, kinds, pair_of
from jax_ddpm.doctor.records import Call, Finding

LAYOUT = "weight.transpose(2, 3, 0, 1)"


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution: the whole result without padding, of which each axis keeps `size` from `start`."""

    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias_factor: int = 1

    def __call__(self, x: np.ndarray, *_: Any) -> np.ndarray:
        """x (B, C, ...) in float64. Beyond the edges the result is 0, before the bias is added."""
        import torch
        from torch.nn import functional as F

        space = self.weight.ndim - 2
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[space - 1]
        settings = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        x, weight = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(self.weight))
        whole = convolve(x, weight, **settings).numpy()
        around, keep = [(0, 0), (0, 0)], [slice(None), slice(None)]
        for axis, (start, size) in enumerate(zip(self.start, self.size, strict=True)):
            before = max(-start, 0)
            around.append((before, max(start + size - whole.shape[axis + 2], 0)))
            keep.append(slice(start + before, start + before + size))
        y = np.pad(whole, around)[tuple(keep)]
        return y if self.bias is None else y + self.bias_factor * self.bias.reshape(-1, *[1] * space)


def read(call: Call, target: tuple[int, ...]) -> Transposed | None:
    """Their transposed convolution, or None. target: the size of the output in space."""
    weight = call.parameters.get("weight")
    if not kinds(call) & {"ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"} or weight is None:
        return None
    space = weight.ndim - 2
    start = (pair_of(call.settings.get("padding", 0)) * space)[:space]
    stride, dilation = each_axis(call, "stride", space), each_axis(call, "dilation", space)
    bias, groups = call.parameters.get("bias"), call.settings.get("groups", 1)
    return Transposed(weight, bias, stride, start, tuple(target), dilation, groups)


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    theirs = read(finding.pair.theirs, finding.their_output.shape[2:])
    if theirs is None or finding.our_output.ndim != finding.their_output.ndim:
        return
    layer = constructor(finding.pair.ours)
    theirs_in_our_size = replace(theirs, size=finding.our_output.shape[2:])
    yield from bias_changes(theirs, layer) if theirs.size == theirs_in_our_size.size else ()
    kernels = [("", "", theirs_in_our_size)]
    for change, says in KERNEL_CHANGES.items():
        weight = changed_kernel(theirs.weight, change)
        if weight is not None:
            kernels.append((change, says, replace(theirs_in_our_size, weight=weight)))
            second = None if change == "kernel_flipped" else changed_kernel(weight, "kernel_flipped")
            if second is not None:
                both = f"{says}, and it is flipped in height and width"
                kernels.append((change, both, replace(theirs_in_our_size, weight=second)))
    for name, says, operation in kernels:
        if name:
            yield Hypothesis(name, f"{says} in ours", kernel_mend(layer), operation)
    pads = written_pads(theirs, finding.their_input.shape[2:])
    for name, says, operation in kernels:
        yield from crops(theirs, operation, layer, name, says, pads)
    for stride in range(1, 5):
        if (stride,) * len(theirs.stride) != theirs.stride:
            changed = replace(theirs_in_our_size, stride=(stride,) * len(theirs.stride))
            says = f"stride is {changed.stride} in ours and {theirs.stride} in theirs"
            mend = f"Write {layer}(..., strides={theirs.stride})."
            yield Hypothesis("stride", says, mend, changed)
            for crop in crops(theirs, changed, layer, "", "", pads):
                yield Hypothesis("stride", f"{says}; {crop.says}", mend, crop.compute)


def kernel_mend(layer: str) -> str:
    if layer.startswith("nn"):
        return (
            f"Convert it by kernel = weight.transpose(2, 3, 0, 1)[::-1, ::-1] for {layer} with transpose_kernel=False, "
            "which does not flip the kernel as PyTorch does."
        )
    return f"Convert it by kernel = {LAYOUT}, and flip it in space once: PyTorch's transposed convolution does."


def written_pads(theirs: Transposed, size: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Their crop as Flax writes it: zeros around the input, whose pixels lie `stride` apart. size: the input's."""
    pads = []
    for axis, (k, d) in enumerate(zip(theirs.weight.shape[2:], theirs.dilation, strict=True)):
        before = d * (k - 1) - theirs.start[axis]
        whole = (size[axis] - 1) * theirs.stride[axis] + 1
        pads.append((before, theirs.size[axis] + d * (k - 1) - whole - before))
    return tuple(pads)


def crops(
    theirs: Transposed, changed: Transposed, layer: str, name: str, says: str, pads: tuple
) -> Iterator[Hypothesis]:
    """Another part of the whole result is kept, the same on all axes first. pads: what theirs is in Flax."""
    reach = [d * (k - 1) + 1 for k, d in zip(theirs.weight.shape[2:], theirs.dilation, strict=True)]
    starts = [(low,) * len(reach) for low in range(-max(reach), max(reach) + 1)]
    if len(reach) == 2:
        starts += [(a, b) for a in range(-1, reach[0]) for b in range(-1, reach[1]) if a != b]
    for start in starts:
        if start == theirs.start and changed.size == theirs.size:
            continue
        text = (
            f"ours keeps {shown(changed.size)} pixels from {shown(start)} of the whole result, theirs "
            f"{shown(theirs.size)} from {shown(theirs.start)} (padding={theirs.start[0]})"
        )
        yield Hypothesis(
            name or "transposed_crop",
            f"{says} in ours; besides, {text}" if says else text,
            f"{kernel_mend(layer)} Pad by {pads}." if says else f"Write {layer}(..., padding={pads}).",
            replace(changed, start=start),
        )


def shown(values: tuple[int, ...]) -> str:
    return " x ".join(map(str, values)) if len(set(values)) > 1 else str(values[0])
