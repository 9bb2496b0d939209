"""How the arrays of a layer lie in PyTorch: one entry for each kind of layer, of `jax_ddpm.layers` and of Flax.

Flax's own layers have PyTorch's numbers after conversion if their other settings agree: the epsilon of norms (Flax's
default is 1e-6, PyTorch's 1e-5), the padding of convolutions (Flax's default is "SAME", PyTorch's 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

from jax_ddpm.layers import BatchNorm, Conv, ConvTranspose, ConvTranspose2x2, Embedding, GroupNorm, Linear
from jax_ddpm.unets.adm import Projection
from jax_ddpm.unets.attention import AttentionOutput, QueryKeyValue
from jax_ddpm.unets.layer_norm import LayerNorm
from jax_ddpm.unets.lucidrains import ChannelNorm, ConvWithoutBias


@dataclass(frozen=True)
class Axes:
    """PyTorch's array is transpose(ours, axes), with the axes in `flipped`, of PyTorch's array, reversed."""

    axes: tuple[int, ...]
    flipped: tuple[int, ...] = ()

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(shapes[0][axis] for axis in self.axes)

    def to_torch(self, value) -> np.ndarray:
        return np.asarray(np.flip(np.transpose(np.asarray(value), self.axes), self.flipped), order="C")

    def from_torch(self, value, shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray]:
        ours = np.transpose(np.flip(np.asarray(value), self.flipped), np.argsort(self.axes))
        return (np.asarray(ours, order="C"),)


@dataclass(frozen=True)
class Heads:
    """PyTorch's array is made of arrays with an axis of heads and one of their features, which it has as one axis.

    Several arrays, such as those of query, key and value, lie one after another on PyTorch's first axis.
    """

    kind: str
    """ "kernel": ours are (in, heads, features), PyTorch's (heads * features, in). "bias": (heads, features).
    "output": the kernel behind the heads, ours is (heads, features, out), PyTorch's (out, heads * features)."""

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return self.to_torch(*(np.broadcast_to(np.float32(0), shape) for shape in shapes)).shape

    def to_torch(self, *values) -> np.ndarray:
        parts = [np.asarray(value) for value in values]
        if self.kind == "kernel":
            parts = [part.reshape(part.shape[0], -1).T for part in parts]
        elif self.kind == "output":
            parts = [part.reshape(-1, part.shape[-1]).T for part in parts]
        else:
            parts = [part.reshape(-1) for part in parts]
        return np.ascontiguousarray(np.concatenate(parts))

    def from_torch(self, value, shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
        rows = [self.shape([shape])[0] for shape in shapes]
        parts = np.split(np.asarray(value), np.cumsum(rows)[:-1])
        turned = [part if self.kind == "bias" else part.T for part in parts]
        return tuple(np.ascontiguousarray(part).reshape(shape) for part, shape in zip(turned, shapes, strict=True))


VECTOR = Axes((0,))
NORM = (("weight", "scale", VECTOR), ("bias", "bias", VECTOR))

# The parameters of each of our layers: PyTorch's name, ours, and the layout.
OURS = {
    Linear: (("weight", "kernel", Axes((1, 0))), ("bias", "bias", VECTOR)),
    Embedding: (("weight", "embedding", Axes((0, 1))),),
    Conv: (("weight", "kernel", Axes((3, 2, 0, 1))), ("bias", "bias", VECTOR)),  # HWIO to OIHW
    ConvTranspose2x2: (("weight", "kernel", Axes((2, 3, 0, 1))), ("bias", "bias", VECTOR)),  # HWIO to IOHW, not flipped
    ConvTranspose: (("weight", "kernel", Axes((2, 3, 0, 1))), ("bias", "bias", VECTOR)),
    GroupNorm: NORM,
    BatchNorm: (*NORM, ("running_mean", "mean", VECTOR), ("running_var", "variance", VECTOR)),
    LayerNorm: (("weight", "scale", Axes((2, 0, 1))), ("bias", "bias", Axes((2, 0, 1)))),  # HWC to CHW
    QueryKeyValue: (("in_proj_weight", "kernel", Axes((1, 0))), ("in_proj_bias", "bias", VECTOR)),
    AttentionOutput: (("weight", "kernel", Axes((1, 0))), ("bias", "bias", VECTOR)),
    Projection: (("weight", "kernel", Axes((2, 1, 0))), ("bias", "bias", VECTOR)),
    ConvWithoutBias: (("weight", "kernel", Axes((3, 2, 0, 1))),),  # HWIO to OIHW
    ChannelNorm: (("g", "scale", Axes((0, 3, 1, 2))),),  # 11C to C11
}
FLAX = {  # the layers of Flax without convolutions and attention, whose layouts depend on their settings
    nnx.Linear: (("weight", "kernel", Axes((1, 0))), ("bias", "bias", VECTOR)),
    nnx.Embed: (("weight", "embedding", Axes((0, 1))),),
    nnx.LayerNorm: NORM,
    nnx.RMSNorm: (("weight", "scale", VECTOR),),
    nnx.GroupNorm: NORM,
    nnx.InstanceNorm: NORM,
    nnx.BatchNorm: (*NORM, ("running_mean", "mean", VECTOR), ("running_var", "var", VECTOR)),
}
Part = tuple[str, tuple[nnx.Variable, ...], Axes | Heads]


def layer_parts(layer) -> list[Part] | None:
    """PyTorch's names, our variables and the layout of each array of a layer; None for other objects.

    Parameters that the layer was built without, such as a bias, are left out.
    """
    for kind in type(layer).__mro__:
        if kind is nnx.MultiHeadAttention:
            return attention_parts(layer)
        table = OURS.get(kind) or FLAX.get(kind) or convolution_table(kind, layer)
        if table is not None:
            return [
                (name, (variable,), layout)
                for name, attribute, layout in table
                if isinstance(variable := getattr(layer, attribute), nnx.Variable)
            ]
    return None


def convolution_table(kind: type, layer):
    """For Flax's convolutions, an entry as in FLAX; None for other layers."""
    if kind not in (nnx.Conv, nnx.ConvTranspose):
        return None
    n = len(layer.kernel_size)
    space = tuple(range(n))
    if kind is nnx.Conv:
        kernel = Axes((n + 1, n, *space))  # (space, in, out) to (out, in, space)
    elif layer.transpose_kernel:
        kernel = Axes((n + 1, n, *space))  # (space, out, in) to (in, out, space)
    else:
        kernel = Axes((n, n + 1, *space), tuple(range(2, n + 2)))  # (space, in, out), flipped
    return ("weight", "kernel", kernel), ("bias", "bias", VECTOR)


def attention_parts(layer: nnx.MultiHeadAttention) -> list[Part]:
    """The arrays of torch.nn.MultiheadAttention: query, key and value packed, if their inputs have the same width."""
    inputs = (layer.query, layer.key, layer.value)
    kernels, biases = (tuple(getattr(part, name) for part in inputs) for name in ("kernel", "bias"))
    if layer.in_features == layer.in_kv_features:
        parts: list[Part] = [("in_proj_weight", kernels, Heads("kernel"))]
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        parts = [(name, (kernel,), Heads("kernel")) for name, kernel in zip(names, kernels, strict=True)]
    parts.append(("out_proj.weight", (layer.out.kernel,), Heads("output")))
    if layer.use_bias:
        parts += [("in_proj_bias", biases, Heads("bias")), ("out_proj.bias", (layer.out.bias,), VECTOR)]
    return parts
