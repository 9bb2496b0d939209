"""ConvBlockUNet: a UNet of residual blocks with two convolutions each.

33,260,417 parameters with the default settings and one image channel.
"""

import jax
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array
from jax_ddpm.embeddings import geometric_frequencies, interleaved_embedding
from jax_ddpm.layers import (
    Buffer,
    Conv,
    ConvTranspose2x2,
    GroupNorm,
    Linear,
    add_label,
    label_embedding,
    remat_block,
)
from jax_ddpm.ops import add_to_pixels, concatenate_channels, max_pool_2x2, silu


class TimeEmbedding(nnx.Module):
    """t -> ReLU(Linear([sin J_i t, cos J_i t])), (B,) to (B, width)."""

    def __init__(self, width: int):
        self.frequencies = Buffer(geometric_frequencies(width))
        self.linear = Linear(width, width)

    def __call__(self, t):
        dtype = self.linear.kernel.dtype  # not bfloat16, which would round t = 998 to 1000
        return jax.nn.relu(self.linear(interleaved_embedding(t, self.frequencies[...].astype(dtype))))


class ConvBlock(nnx.Module):
    """Twice 3x3 convolution, GroupNorm and SiLU, plus x. The time is added in between."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.norm1 = GroupNorm(32, out_channels)
        self.time_linear = Linear(time_width, out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.norm2 = GroupNorm(32, out_channels)
        self.residual = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time):
        h = silu(self.norm1(self.conv1(x)))
        h = add_to_pixels(h, silu(self.time_linear(time)))
        h = silu(self.norm2(self.conv2(h)))
        return h + (x if self.residual is None else self.residual(x))


class ConvBlockUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        time_width: int = 256,
        num_classes: int = 0,
        null_label: bool = True,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_embedding = TimeEmbedding(time_width)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        in_channels = (image_channels, *widths[:-1])
        self.encoder = nnx.List([ConvBlock(i, o, time_width) for i, o in zip(in_channels, widths, strict=True)])
        up_widths = widths[:0:-1]  # from the deepest level to the second one
        self.upsamplers = nnx.List([ConvTranspose2x2(w, w // 2) for w in up_widths])
        self.decoder = nnx.List([ConvBlock(w, w // 2, time_width) for w in up_widths])
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
        h = self.encoder[0](x.astype(dtype), time)
        skips = []
        for block in self.encoder[1:]:
            skips.append(h)
            h = block(max_pool_2x2(h), time)
        for upsample, block in zip(self.upsamplers, self.decoder, strict=True):
            h = block(concatenate_channels(skips.pop(), upsample(h)), time)
        return self.output(h).astype(result_dtype)
