"""AnnotatedConvNextUNet: the UNet of the first version of Hugging Face's post "The Annotated Diffusion Model".

2,996,315 parameters with the default settings and one image channel.
"""

from functools import partial
from itertools import pairwise

from flax import nnx
from jax import lax
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array
from jax_ddpm.layers import Conv, ConvTranspose, GroupNorm, Linear, cast, remat_block
from jax_ddpm.ops import add_bias, add_to_pixels, concatenate_channels, gelu, matmul_precision
from jax_ddpm.unets.annotated import Attention, LinearAttention, PreNorm
from jax_ddpm.unets.lucidrains import TimeEmbedding


class DepthwiseConv(Conv):
    """A convolution of each channel with a kernel of its own. Kernel (K, K, 1, C), x NHWC."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(1, channels, kernel_size)

    def __call__(self, x):
        y = lax.conv_general_dilated(
            x,
            cast(self.kernel, x.dtype),
            window_strides=(1, 1),
            padding=((self.padding, self.padding), (self.padding, self.padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
            precision=matmul_precision(x.dtype),
        )
        return add_bias(y, self.bias[...])


class ConvNextBlock(nnx.Module):
    """Depthwise 7x7 convolution, plus the time, then norm, convolution, GELU, norm, convolution, plus x.

    As in Liu et al. 2022, figure 4, but with 3x3 convolutions, two norms, and GroupNorm over all channels. time_width:
    None for the last block, which gets no time.
    """

    def __init__(self, in_channels: int, out_channels: int, multiplier: int, time_width: int | None = None):
        self.time_linear = None if time_width is None else Linear(time_width, in_channels)
        self.depthwise = DepthwiseConv(in_channels, 7)
        self.norm1 = GroupNorm(1, in_channels)
        self.conv1 = Conv(in_channels, multiplier * out_channels, 3)
        self.norm2 = GroupNorm(1, multiplier * out_channels)
        self.conv2 = Conv(multiplier * out_channels, out_channels, 3)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time):
        h = self.depthwise(x)
        if self.time_linear is not None:
            h = add_to_pixels(h, self.time_linear(gelu(time)))
        h = self.conv2(self.norm2(gelu(self.conv1(self.norm1(h)))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Down(nnx.Module):
    """A level on the way down: two blocks, attention, and a strided convolution to the next level if there is one."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, downsample: nnx.Module | None):
        self.block1, self.block2, self.attention, self.downsample = block1, block2, attention, downsample

    def __call__(self, x, skips, time):
        """Appends the output of attention to `skips`."""
        x = self.attention(self.block2(self.block1(x, time), time))
        skips.append(x)
        return x if self.downsample is None else self.downsample(x)


class Up(nnx.Module):
    """A level on the way up: the first block takes [x, the last skip]. A transposed convolution doubles the size."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, upsample: nnx.Module):
        self.block1, self.block2, self.attention, self.upsample = block1, block2, attention, upsample

    def __call__(self, x, skips, time):
        x = self.block2(self.block1(concatenate_channels(x, skips.pop()), time), time)
        return self.upsample(self.attention(x))


class AnnotatedConvNextUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    The settings are those of `AnnotatedConvNextConfig`. Activations have the dtype `dtype` (default: that of the
    parameters). The prediction has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        dim: int = 28,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        init_dim: int | None = None,
        convnext_mult: int = 2,
        attn_heads: int = 4,
        attn_width: int = 128,
        dtype=None,
    ):
        self.dtype = dtype
        widths = [init_dim or dim // 3 * 2, *(dim * factor for factor in dim_mults)]
        block = partial(ConvNextBlock, multiplier=convnext_mult, time_width=4 * dim)

        def attention(kind: type, channels: int):
            return PreNorm(channels, kind(channels, attn_heads, attn_width))

        self.input = Conv(image_channels, widths[0], 7)
        self.time_embedding = TimeEmbedding(dim, theta=10000, waves=0, is_random=False)
        down, up = [], []
        for level, (width, next_width) in enumerate(pairwise(widths), start=1):
            downsample = Conv(next_width, next_width, 4, stride=2, padding=1) if level < len(dim_mults) else None
            blocks = block(width, next_width), block(next_width, next_width)
            down.append(Down(*blocks, attention(LinearAttention, next_width), downsample))
        self.middle1 = block(widths[-1], widths[-1])
        self.middle_attention = attention(Attention, widths[-1])
        self.middle2 = block(widths[-1], widths[-1])
        for width, next_width in reversed(list(pairwise(widths[1:]))):
            upsample = ConvTranspose(width, width, 4, stride=2, padding=1)
            blocks = block(2 * next_width, width), block(width, width)
            up.append(Up(*blocks, attention(LinearAttention, width), upsample))
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.last = ConvNextBlock(dim, dim, convnext_mult)
        self.output = Conv(dim, image_channels, 1)

    def __call__(self, x: Float[Array, "b h w c"], t: Real[Array, "b"]) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = self.time_embedding(t).astype(dtype)
        h = self.input(x.astype(dtype))
        skips: list = []
        for level in self.down:
            h = level(h, skips, time)
        h = self.middle2(self.middle_attention(self.middle1(h, time)), time)
        for level in self.up:  # the skip of the first level is not used
            h = level(h, skips, time)
        return self.output(self.last(h, time)).astype(result_dtype)
