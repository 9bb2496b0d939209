"""Small PyTorch networks that together have every kind of layer, and their ports in Flax, right or with one fault.

A port takes the name of its fault, "" for none.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from jax_ddpm import layers, ops


def rngs():
    return nnx.Rngs(0)


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its parameters and buffers random, norms' scales around 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=g)
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
            value.copy_(noise / math.sqrt(fan_in) if value.ndim > 1 else 0.3 * noise)
            if name.endswith(("norm.weight", "1.weight", "2.weight", "bn.weight")) and value.ndim == 1:
                value.add_(1.0)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
    return module.eval()


def copy_weights(theirs: nn.Module, ours: nnx.Module) -> None:
    """Fill a port whose modules have the same names as theirs."""
    for name, module in theirs.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        target = ours
        for part in name.split(".") if name else []:
            if part.isdigit():
                target = target[int(part)] if int(part) < len(target) else None
            else:
                target = getattr(target, part, None)
            if target is None:
                break
        if target is not None:
            for key, value in own.items():
                put(target, module, key, value.detach().numpy())


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)


def put(target, module: nn.Module, key: str, value: np.ndarray) -> None:
    """One array into a layer of Flax or of jax_ddpm."""
    names = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    if isinstance(module, NORMS):
        names["weight"] = "scale"
    elif isinstance(module, nn.Embedding):
        names["weight"] = "embedding"
    name = names.get(key, key)
    variable = getattr(target, name, None)
    if variable is None or not isinstance(variable, nnx.Variable) or variable.get_value() is None:
        return
    if isinstance(module, nn.Linear) and key == "weight":
        value = value.T
    elif isinstance(module, nn.Conv2d) and key == "weight":
        value = value.transpose(2, 3, 1, 0)
    elif isinstance(module, nn.ConvTranspose2d) and key == "weight":
        value = value.transpose(2, 3, 0, 1)
        if isinstance(target, nnx.ConvTranspose):
            value = value[::-1, ::-1]
    if value.shape == variable.shape:
        variable.set_value(jnp.asarray(value))


def kernel(layer, change) -> None:
    layer.kernel.set_value(jnp.asarray(change(np.asarray(layer.kernel.get_value()))))


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


class Timed(nn.Module):
    """A residual block that is told the time."""

    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(16, 32), nn.Linear(32, 32)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.time1, self.time2 = nn.Linear(32, 8), nn.Linear(32, 16)
        self.norm1, self.norm2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(8, dtype=x.dtype) / 8)
        phase = t[:, None].to(x.dtype) * frequencies
        time = self.linear2(F.silu(self.linear1(torch.cat([phase.sin(), phase.cos()], -1))))
        h = self.stem(x)
        r = self.conv1(F.silu(h)) + self.time1(F.silu(time))[:, :, None, None]
        h = h + F.silu(self.norm1(r))
        scale, shift = self.time2(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = h + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.out(h)


class TimedPort(nnx.Module):
    """With the layers of jax_ddpm."""

    def __init__(self, wrong=""):
        self.wrong = wrong
        self.linear1, self.linear2 = layers.Linear(16, 32), layers.Linear(32, 32)
        self.stem = layers.Conv(3, 8, 3)
        self.conv1, self.conv2 = layers.Conv(8, 8, 3), layers.Conv(8, 8, 3)
        self.time1, self.time2 = layers.Linear(32, 8), layers.Linear(32, 16)
        epsilon = 1e-3 if wrong == "epsilon 1e-3" else 1e-5
        self.norm1 = layers.GroupNorm(4 if wrong == "groups of norm1" else 2, 8, epsilon)
        self.norm2 = layers.GroupNorm(2, 8)
        self.out = layers.Conv(8, 3, 3)

    def after_copy(self):
        if self.wrong == "square weights not transposed":
            kernel(self.linear2, lambda k: k.T)
        if self.wrong == "bias not copied":
            self.conv1.bias.set_value(jnp.zeros(8))

    def __call__(self, x, t):
        wrong, dtype = self.wrong, x.dtype
        t = {"t off by one": t + 1, "t over 1000": t / 1000}.get(wrong, t)
        count = 7 if wrong == "frequencies over n - 1" else 8
        period = 1000.0 if wrong == "period 1000" else 10000.0
        frequencies = jnp.exp(-jnp.log(jnp.asarray(period, dtype)) * jnp.arange(8, dtype=dtype) / count)
        if wrong == "two pi":
            frequencies = 2 * np.pi * frequencies
        phase = t[:, None].astype(dtype) * frequencies
        parts = [jnp.sin(phase), jnp.cos(phase)]
        if wrong == "cosines first":
            parts = parts[::-1]
        embedding = jnp.concatenate(parts, -1)
        if wrong == "sines and cosines interleaved":
            embedding = jnp.stack(parts, -1).reshape(len(t), -1)
        time = self.linear2(ops.silu(self.linear1(embedding)))
        told = time if wrong == "time not activated" else ops.silu(time)
        h = self.stem(x)
        r = self.conv1(ops.silu(h))
        added = self.time1(told)[:, None, None]
        if wrong == "time added after the norm":
            r = ops.silu(self.norm1(r) + added)
        elif wrong == "time added after the activation":
            r = ops.silu(self.norm1(r)) + added
        elif wrong == "time multiplied":
            r = ops.silu(self.norm1(r * added))
        elif wrong == "time left out":
            r = ops.silu(self.norm1(r))
        elif wrong == "time added twice":
            r = ops.silu(self.norm1(r + 2 * added))
        else:
            r = ops.silu(self.norm1(r + added))
        h = h + r
        scale, shift = jnp.split(self.time2(told)[:, None, None], 2, -1)
        if wrong == "scale and shift swapped":
            scale, shift = shift, scale
        if wrong == "scale without one":
            scale = scale - 1
        h = h + self.conv2(ops.silu(self.norm2(h) * (1 + scale) + shift))
        if wrong == "gradient stopped":
            h = h - self.conv2(jnp.zeros_like(h)) + jax.lax.stop_gradient(self.conv2(jnp.zeros_like(h)))
        return self.out(h)


class Tokens(nn.Module):
    """A vision transformer of one block."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.label = nn.Embedding(5, 16)
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x, y):
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.label(y)[:, None], h], 1) + self.position
        b, n, c = h.shape
        q, k, v = self.qkv(self.norm1(h)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / math.sqrt(c // 4)).softmax(-1) @ v
        h = h + self.proj(a.transpose(1, 2).reshape(b, n, c))
        h = h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
        return self.head(self.norm3(h)[:, 0])


class TokensPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.patch = nnx.Conv(3, 16, (4, 4), strides=4, padding="VALID", rngs=rngs())
        self.label = nnx.Embed(5, 16, rngs=rngs())
        self.position = nnx.Param(jnp.zeros((1, 5, 16)))
        epsilon = 1e-6 if wrong == "LayerNorm epsilon" else 1e-5
        self.norm1 = nnx.LayerNorm(16, epsilon=epsilon, use_fast_variance=False, rngs=rngs())
        self.norm2, self.norm3 = (
            nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs()) for _ in range(2)
        )
        self.qkv, self.proj = nnx.Linear(16, 48, rngs=rngs()), nnx.Linear(16, 16, rngs=rngs())
        self.fc1, self.fc2 = nnx.Linear(16, 32, rngs=rngs()), nnx.Linear(32, 16, rngs=rngs())
        self.head = nnx.Linear(16, 10, rngs=rngs())

    def after_copy(self):
        if self.wrong == "square projection not transposed":
            kernel(self.proj, lambda k: k.T)
        if self.wrong == "embedding's rows shifted":
            table = np.asarray(self.label.embedding.get_value())
            self.label.embedding.set_value(jnp.asarray(np.roll(table, 1, 0)))

    def __call__(self, x, y):
        wrong = self.wrong
        h = self.patch(x)
        h = h.swapaxes(1, 2) if wrong == "patches by columns" else h
        h = h.reshape(len(x), -1, 16)
        label = self.label(y)[:, None]
        if wrong == "embedding scaled":
            label = label * 4.0
        h = jnp.concatenate([h, label] if wrong == "label last" else [label, h], 1)
        h = h if wrong == "positions missing" else h + self.position[...]
        b, n, c = h.shape
        packed = self.qkv(h if wrong == "norm missing" else self.norm1(h))
        heads = 2 if wrong == "two heads" else 4
        if wrong == "packed by heads":
            q, k, v = packed.reshape(b, n, heads, 3, c // heads).transpose(3, 0, 2, 1, 4)
        elif wrong == "heads last":
            q, k, v = packed.reshape(b, n, 3, c // heads, heads).transpose(2, 0, 4, 1, 3)
        else:
            q, k, v = packed.reshape(b, n, 3, heads, c // heads).transpose(2, 0, 3, 1, 4)
        if wrong == "key and value swapped":
            k, v = v, k
        scale = {"softmax not scaled": 1.0, "softmax scaled by the width": c**-0.5}.get(wrong, (c // heads) ** -0.5)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * scale
        if wrong == "causal mask":
            scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-2 if wrong == "softmax over queries" else -1)
        a = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
        a = a if wrong == "heads not moved back" else a.transpose(0, 2, 1, 3)
        h = h + self.proj(a.reshape(b, n, c))
        if wrong == "norm after the residual":
            h = self.norm2(h + self.fc2(jax.nn.gelu(self.fc1(h), approximate=False)))
        else:
            h = h + self.fc2(jax.nn.gelu(self.fc1(self.norm2(h)), approximate=wrong == "GELU by tanh in the MLP"))
        if wrong == "mean for the first token":
            return self.head(self.norm3(h).mean(1))
        return self.head(self.norm3(h)[:, 1 if wrong == "second token" else 0])


class Attended(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mha = nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        h = self.norm(x)
        return self.fc(x + self.mha(h, h, h, need_weights=False)[0])


class AttendedPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        heads = 2 if wrong == "two heads" else 4
        self.mha = nnx.MultiHeadAttention(heads, 16, decode=False, rngs=rngs())
        self.fc = nnx.Linear(16, 16, rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)
        heads = self.mha.num_heads
        weight, bias = theirs.mha.in_proj_weight.detach().numpy(), theirs.mha.in_proj_bias.detach().numpy()
        names = ["query", "key", "value"]
        if self.wrong == "query and key swapped":
            names = ["key", "query", "value"]
        if self.wrong == "key and value swapped":
            names = ["query", "value", "key"]
        for number, name in enumerate(names):
            part, layer = slice(16 * number, 16 * number + 16), getattr(self.mha, name)
            w = weight[part].T
            if self.wrong == "heads split the other way":
                w = w.reshape(16, 4, 4).swapaxes(1, 2)
            layer.kernel.set_value(jnp.asarray(w.reshape(16, heads, 16 // heads)))
            layer.bias.set_value(jnp.asarray(bias[part].reshape(heads, 16 // heads)))
        w = theirs.mha.out_proj.weight.detach().numpy().T
        w = w.T if self.wrong == "output projection not transposed" else w
        self.mha.out.kernel.set_value(jnp.asarray(w.reshape(heads, 16 // heads, 16)))
        self.mha.out.bias.set_value(jnp.asarray(theirs.mha.out_proj.bias.detach().numpy()))

    def __call__(self, x):
        h = self.norm(x)
        return self.fc(x + self.mha(h))


INPUTS = {
    "pictures": lambda g: (g.standard_normal((2, 3, 8, 8)),),
    "sizes": lambda g: (g.standard_normal((2, 4, 4, 4)),),
    "timed": lambda g: (g.standard_normal((2, 3, 8, 8)), np.array([3, 700])),
    "tokens": lambda g: (g.standard_normal((2, 3, 8, 8)), np.array([1, 3])),
    "attended": lambda g: (g.standard_normal((2, 6, 16)),),
}
NETWORKS = {
    "pictures": (Pictures, PicturesPort),
    "sizes": (Sizes, SizesPort),
    "timed": (Timed, TimedPort),
    "tokens": (Tokens, TokensPort),
    "attended": (Attended, AttendedPort),
}


def build(network: str, wrong: str = "") -> tuple[nn.Module, nnx.Module, tuple[np.ndarray, ...]]:
    """A torch network, its port with a fault (in float32), and inputs in PyTorch's layout."""
    theirs_class, ours_class = NETWORKS[network]
    torch.manual_seed(0)
    theirs, ours = scrambled(theirs_class()), ours_class(wrong)
    if hasattr(ours, "fill"):
        ours.fill(theirs)
    else:
        copy_weights(theirs, ours)
        if isinstance(theirs, Tokens):
            ours.position.set_value(jnp.asarray(theirs.position.detach().numpy()))
        ours.after_copy()
    inputs = INPUTS[network](np.random.default_rng(1))
    return theirs, ours, tuple(v.astype(np.float32) if v.dtype == np.float64 else v for v in inputs)
