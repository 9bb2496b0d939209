"""Small networks of images: convolutions, norms, skips, pooling, other sizes; and their ports with one fault.

A port takes the name of its fault, "" for none.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from parity_tests.doctor_weights import kernel, rngs


class Pictures(nn.Module):
    """Convolutions, norms, residuals, a skip, a transposed convolution, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.norm2 = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1, output_padding=1)
        self.fuse = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.conv1(F.silu(self.norm1(h)))
        skip = h
        h = self.down(h)
        h = h + self.depth(F.gelu(self.bn(h)))
        h = self.up(F.leaky_relu(self.norm2(h), 0.1))
        h = self.fuse(torch.cat([h, skip], 1))
        h = F.avg_pool2d(h, 3, stride=2, padding=1)
        return self.head(h.flatten(1))


class CustomNorm(nnx.Module):
    """GroupNorm written by hand, with a fault."""

    def __init__(self, groups, channels, wrong):
        self.groups, self.wrong, self.epsilon = groups, wrong, 1e-5
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x):
        b, h, w, c = x.shape
        g = x.reshape(b, h * w, self.groups, c // self.groups)
        mean = g.mean((1, 3), keepdims=True)
        var = g.var((1, 3), keepdims=True, ddof=1 if self.wrong == "unbiased variance" else 0)
        root = (
            jnp.sqrt(var) + self.epsilon if self.wrong == "epsilon outside the root" else jnp.sqrt(var + self.epsilon)
        )
        y = ((g - mean) / root).reshape(x.shape)
        scale, bias = self.scale[...], self.bias[...]
        if self.wrong == "shift before scale":
            return (y + bias) * scale
        if self.wrong == "scale and shift swapped":
            return y * bias + scale
        return y * (1 + scale) + bias if self.wrong == "scale plus one" else y * scale + bias


BY_HAND = (
    *("unbiased variance", "epsilon outside the root", "shift before scale", "scale and shift swapped"),
    "scale plus one",
)


class PicturesPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        same, fast = ((1, 1), (1, 1)), wrong == "one-pass variance"
        self.stem = nnx.Conv(3, 8, (3, 3), padding="CIRCULAR" if wrong == "circular padding" else same, rngs=rngs())
        epsilon = 1e-6 if wrong == "GroupNorm epsilon" else 1e-5
        self.norm1 = nnx.GroupNorm(8, num_groups=4, epsilon=epsilon, use_fast_variance=fast, rngs=rngs())
        if wrong in BY_HAND:
            self.norm1 = CustomNorm(4, 8, wrong)
        bias, dtype = wrong != "bias missing", jnp.bfloat16 if wrong == "bfloat16" else None
        self.conv1 = nnx.Conv(8, 8, (3, 3), padding=same, use_bias=bias, dtype=dtype, rngs=rngs())
        padding = "SAME" if wrong == "SAME padding" else ((1, 1), (1, 1))
        if wrong == "padding on one axis only":
            padding = ((1, 1), (0, 1))
        self.down = nnx.Conv(8, 16, (3, 3), strides=2, padding=padding, rngs=rngs())
        self.bn = nnx.BatchNorm(
            16,
            use_running_average=wrong != "BatchNorm in training mode",
            epsilon=1e-3 if wrong == "BatchNorm epsilon" else 1e-5,
            momentum=0.99 if wrong == "BatchNorm momentum" else 0.9,
            rngs=rngs(),
        )
        dilation = 1 if wrong == "dilation missing" else 2
        padding = ((dilation,) * 2,) * 2
        self.depth = nnx.Conv(
            *(16, 16, (3, 3)), padding=padding, kernel_dilation=dilation, feature_group_count=4, rngs=rngs()
        )
        groups = {"GroupNorm groups": 2, "LayerNorm for GroupNorm": 1}.get(wrong, 4)
        self.norm2 = nnx.GroupNorm(16, num_groups=groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        padding = "SAME" if wrong == "transposed convolution's crop" else ((1, 2), (1, 2))
        self.up = nnx.ConvTranspose(16, 16, (3, 3), strides=2, padding=padding, rngs=rngs())
        self.fuse = nnx.Conv(24, 8, (1, 1), rngs=rngs())
        self.head = nnx.Linear(128, 10, rngs=rngs())
        self.dropout = nnx.Dropout(0.3, deterministic=wrong != "dropout on", rngs=rngs())

    def after_copy(self):
        """Faults in the weights."""
        changes = {
            "kernel flipped": (self.stem, lambda k: k[::-1, ::-1]),
            "kernel's height and width swapped": (self.conv1, lambda k: k.swapaxes(0, 1)),
            "in and out swapped": (self.conv1, lambda k: k.swapaxes(2, 3)),
            "groups' channels in another order": (
                self.depth,
                lambda k: k.reshape(3, 3, 4, 4, 4).swapaxes(3, 4).reshape(k.shape),
            ),
            "transposed convolution not flipped": (self.up, lambda k: k[::-1, ::-1]),
            "transposed convolution's in and out swapped": (self.up, lambda k: k.swapaxes(2, 3)),
            "kernel's rows reversed": (self.stem, lambda k: k[::-1]),
            "classifier reshaped, not transposed": (self.head, lambda k: k.T.reshape(k.shape)),
        }
        if self.wrong in changes:
            kernel(*changes[self.wrong])
        if self.wrong == "running variance's root":
            self.bn.var.set_value(jnp.sqrt(self.bn.var.get_value()))

    def __call__(self, x):
        wrong = self.wrong
        if wrong == "picture transposed":
            x = x.swapaxes(1, 2)
        if wrong == "pictures in [0, 1]":
            x = (x + 1) / 2
        h = self.stem(x)
        inner = self.norm1(jax.nn.silu(h) if wrong == "activation before the norm" else h)
        if wrong == "activation before the norm":
            pass
        elif wrong == "ReLU for SiLU":
            inner = jax.nn.relu(inner)
        elif wrong == "sigmoid for SiLU":
            inner = jax.nn.sigmoid(inner)
        elif wrong != "activation missing":
            inner = jax.nn.silu(inner)
        out = self.conv1(inner)
        if wrong == "bias doubled":
            out = out + self.conv1.bias[...]
        if wrong == "residual missing":
            h = out
        elif wrong == "residual of the normalised":
            h = inner + out
        elif wrong == "residual doubled":
            h = 2 * h + out
        elif wrong == "residual scaled":
            h = (h + out) / np.sqrt(2.0)
        elif wrong == "residual subtracted":
            h = h - out
        else:
            h = h + out
        skip = h
        h = self.down(h)
        inner = self.bn(h)
        if wrong == "GELU by tanh":
            inner = jax.nn.gelu(inner)
        elif wrong == "GELU by sigmoid":
            inner = inner * jax.nn.sigmoid(1.702 * inner)
        else:
            inner = jax.nn.gelu(inner, approximate=False)
        h = h + self.depth(self.dropout(inner))
        slope = {"leaky ReLU's slope": 0.01, "ELU for leaky ReLU": None}.get(wrong, 0.1)
        h = jax.nn.elu(self.norm2(h)) if slope is None else jax.nn.leaky_relu(self.norm2(h), slope)
        h = self.up(h)
        if wrong == "skip scaled":
            skip = skip / np.sqrt(2.0)
        if wrong == "skip before the residual":
            skip = self.stem(x)
        parts = [skip, h] if wrong == "concatenation order" else [h, skip]
        h = self.fuse(jnp.concatenate(parts, -1))
        counted = wrong != "padding not counted"
        if wrong == "maximum pooling":
            h = nnx.max_pool(h, (3, 3), (2, 2), ((1, 1), (1, 1)))
        elif wrong == "SAME pooling":
            h = nnx.avg_pool(h, (3, 3), (2, 2), "SAME")
        else:
            h = nnx.avg_pool(h, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=counted)
        h = h if wrong == "flattened channels last" else h.transpose(0, 3, 1, 2)
        return self.head(h.reshape(len(h), -1))


class Sizes(nn.Module):
    """Every way to change an image's size."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))

    def forward(self, x):
        h = F.interpolate(self.a(x), scale_factor=2, mode="bilinear", align_corners=False)
        h = F.max_pool2d(self.b(h), 2)
        h = F.interpolate(self.c(h), scale_factor=2, mode="nearest")
        h = F.interpolate(self.d(h), size=(5, 5), mode="bilinear", align_corners=False)
        return self.f(F.pad(self.e(h), (1, 1, 1, 1), mode="reflect"))


class SizesPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        for name in "abcdef":
            setattr(self, name, nnx.Conv(4, 4, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs()))

    def after_copy(self):
        pass

    def __call__(self, x):
        wrong = self.wrong

        def resized(h, size, method="bilinear", antialias=False):
            shape = (len(h), size, size, h.shape[-1])
            if method == "corners":
                at = np.linspace(0, h.shape[1] - 1, size)
                low = np.minimum(at.astype(int), h.shape[1] - 2)
                f = (at - low)[None, :, None, None]
                h = h[:, low] * (1 - f) + h[:, low + 1] * f
                f = f.swapaxes(1, 2)
                return h[:, :, low] * (1 - f) + h[:, :, low + 1] * f
            return jax.image.resize(h, shape, method, antialias=antialias)

        n = x.shape[1]
        methods = {"nearest for bilinear": "nearest", "align_corners": "corners", "cubic for bilinear": "cubic"}
        h = resized(self.a(x), 2 * n, methods.get(wrong, "bilinear"))
        h = self.b(h)
        if wrong == "average for maximum":
            h = nnx.avg_pool(h, (2, 2), (2, 2))
        elif wrong == "strided for pooled":
            h = h[:, ::2, ::2]
        else:
            h = nnx.max_pool(h, (2, 2), (2, 2))
        h = self.c(h)
        if wrong == "bilinear for nearest":
            h = resized(h, 2 * n)
        elif wrong == "tiled for repeated":
            h = jnp.tile(h, (1, 2, 2, 1))
        else:
            h = h.repeat(2, 1).repeat(2, 2)
        h = resized(self.d(h), 5, antialias=wrong == "antialiased")
        mode = {"edges repeated for reflected": "edge", "zeros for reflected": "constant"}.get(wrong, "reflect")
        return self.f(jnp.pad(self.e(h), ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode))
