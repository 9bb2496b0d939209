"""StridedUNet: a UNet with strided convolutions on the way down and transposed ones on the way up.

4,544,323 parameters with three image channels.
"""

from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array
from jax_ddpm.layers import Conv, ConvTranspose2x2, GroupNorm, Linear, add_label, label_embedding, remat_block
from jax_ddpm.ops import add_to_pixels, concatenate_channels, silu

TIME_WIDTH = 256


class TimeEmbedding(nnx.Module):
    """t -> Linear(SiLU(Linear(t))), (B,) to (B, 256). t is not scaled."""

    def __init__(self):
        self.linear1 = Linear(1, TIME_WIDTH)
        self.linear2 = Linear(TIME_WIDTH, TIME_WIDTH)

    def __call__(self, t):
        return self.linear2(silu(self.linear1(t[:, None].astype(self.linear1.kernel.dtype))))


class DoubleConv(nnx.Module):
    """Twice 3x3 convolution, GroupNorm and SiLU."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.norm1 = GroupNorm(8, out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.norm2 = GroupNorm(8, out_channels)

    @remat_block
    def __call__(self, x):
        return silu(self.norm2(self.conv2(silu(self.norm1(self.conv1(x))))))


class DownBlock(nnx.Module):
    """Returns features at full and at half size. The time is added before the strided convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = DoubleConv(in_channels, out_channels)
        self.time_linear = Linear(TIME_WIDTH, out_channels)
        self.down = Conv(out_channels, out_channels, 3, stride=2)

    def __call__(self, x, time):
        h = add_to_pixels(self.conv(x), self.time_linear(time))
        return h, self.down(h)


class UpBlock(nnx.Module):
    """Doubles the size, concatenates the skip, convolves, then adds the time."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        self.up = ConvTranspose2x2(in_channels, in_channels)
        self.conv = DoubleConv(in_channels + skip_channels, out_channels)
        self.time_linear = Linear(TIME_WIDTH, out_channels)

    def __call__(self, x, skip, time):
        h = self.conv(concatenate_channels(self.up(x), skip))
        return add_to_pixels(h, self.time_linear(time))


class StridedUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 8. t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(self, image_channels: int = 3, num_classes: int = 0, null_label: bool = True, dtype=None):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_embedding = TimeEmbedding()
        self.class_embedding = label_embedding(num_classes, null_label, TIME_WIDTH)
        self.down1 = DownBlock(image_channels, 64)
        self.down2 = DownBlock(64, 128)
        self.down3 = DownBlock(128, 256)
        self.middle = DoubleConv(256, 256)
        self.up1 = UpBlock(256, 128, 128)
        self.up2 = UpBlock(128, 64, 64)
        self.up3 = UpBlock(64, 64, 64)
        self.output = Conv(64, image_channels, 1)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = add_label(self.time_embedding(t), labels, self.class_embedding, self.null_index).astype(dtype)
        h1, half1 = self.down1(x.astype(dtype), time)
        _, half2 = self.down2(half1, time)
        _, half3 = self.down3(half2, time)
        h = self.up1(self.middle(half3), half2, time)
        h = self.up2(h, half1, time)
        h = self.up3(h, h1, time)  # the features before the first strided convolution
        return self.output(h).astype(result_dtype)
