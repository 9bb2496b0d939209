"""SimpleUNet: the UNet of DeepFindr's notebook "Diffusion models from scratch in PyTorch".

62,438,883 trained parameters with the default settings and three image channels.
"""

from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array
from jax_ddpm.embeddings import concatenated_embedding, geometric_frequencies
from jax_ddpm.layers import BatchNorm, Conv, ConvTranspose, Linear, add_label, label_embedding, remat_block
from jax_ddpm.ops import add_to_pixels, concatenate_channels, relu


class TimeEmbedding(nnx.Module):
    """t -> ReLU(Linear([sin t f, cos t f])), (B,) to (B, width)."""

    def __init__(self, width: int):
        self.width = width
        self.linear = Linear(width, width)

    def __call__(self, t):
        dtype = self.linear.kernel.dtype  # not bfloat16, which would round t = 299 to 300
        frequencies = jnp.asarray(geometric_frequencies(self.width, freq_shift=1), dtype)
        return relu(self.linear(concatenated_embedding(t, frequencies, flip_sin_to_cos=False)))


class Block(nnx.Module):
    """Twice 3x3 convolution, ReLU and BatchNorm, with the time in between, then the size is halved, or doubled if `up`.

    On the way up, the input has `in_channels` channels, and as many of the skip connection.
    """

    def __init__(self, in_channels: int, out_channels: int, time_width: int, up: bool = False):
        self.time_linear = Linear(time_width, out_channels)
        self.conv1 = Conv(2 * in_channels if up else in_channels, out_channels, 3)
        resample = ConvTranspose if up else Conv
        self.resample = resample(out_channels, out_channels, 4, stride=2, padding=1)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.norm1 = BatchNorm(out_channels)
        self.norm2 = BatchNorm(out_channels)

    @remat_block
    def __call__(self, x, time):
        h = self.norm1(relu(self.conv1(x)))
        h = add_to_pixels(h, relu(self.time_linear(time)))
        return self.resample(self.norm2(relu(self.conv2(h))))


class SimpleUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        time_width: int = 32,
        num_classes: int = 0,
        null_label: bool = True,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_embedding = TimeEmbedding(time_width)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        self.input = Conv(image_channels, widths[0], 3)
        pairs = list(pairwise(widths))
        self.down = nnx.List([Block(i, o, time_width) for i, o in pairs])
        self.up = nnx.List([Block(i, o, time_width, up=True) for o, i in reversed(pairs)])
        self.output = Conv(widths[0], image_channels, 1)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = add_label(self.time_embedding(t), labels, self.class_embedding, self.null_index).astype(dtype)
        h = self.input(x.astype(dtype))
        skips = []
        for block in self.down:
            h = block(h, time)
            skips.append(h)
        for block in self.up:
            h = block(concatenate_channels(h, skips.pop()), time)
        return self.output(h).astype(result_dtype)
