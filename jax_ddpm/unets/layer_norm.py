"""LayerNormUNet: a small UNet for 28x28 images with LayerNorm over whole images.

506,852 trained parameters with one image channel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from jax_ddpm.arrays import Array, upcast_dtype
from jax_ddpm.embeddings import sinusoid_table
from jax_ddpm.layers import (
    Buffer,
    Conv,
    ConvTranspose,
    Linear,
    add_label,
    label_embedding,
    remat_block,
    unfilled,
)
from jax_ddpm.ops import add_to_pixels, concatenate_channels, layer_norm, silu
from jax_ddpm.spec.types import TimeActivation

TIME_WIDTH = 100
TIME_ACTIVATIONS = {"silu": silu, "leaky_relu": jax.nn.leaky_relu}  # the slope is 0.01


class LayerNorm(nnx.Module):
    """LayerNorm (Ba et al. 2016) over (H, W, C), with one scale and one bias per element."""

    def __init__(self, size: int, channels: int, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale = unfilled(size, size, channels)
        self.bias = unfilled(size, size, channels)

    def __call__(self, x):
        dtype = upcast_dtype(x.dtype)
        scale, bias = self.scale[...].astype(dtype), self.bias[...].astype(dtype)
        return layer_norm(x, scale, bias, self.epsilon)


class Block(nnx.Module):
    """LayerNorm, then twice 3x3 convolution and SiLU. Without `normalize`, LayerNorm's parameters are unused."""

    def __init__(self, size: int, in_channels: int, out_channels: int, normalize: bool = True):
        self.normalize = normalize
        self.norm = LayerNorm(size, in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.conv2 = Conv(out_channels, out_channels, 3)

    def __call__(self, x):
        h = self.norm(x) if self.normalize else x
        return silu(self.conv2(silu(self.conv1(h))))


class TimeMLP(nnx.Module):
    """Linear(activation(Linear(row of the time table))): one number per channel of a stage's input."""

    def __init__(self, channels: int, activation: Callable):
        self.activation = activation
        self.linear1 = Linear(TIME_WIDTH, channels)
        self.linear2 = Linear(channels, channels)

    def __call__(self, time):
        return self.linear2(self.activation(self.linear1(time)))


class Stage(nnx.Module):
    """Adds the time to the input, then three blocks."""

    def __init__(
        self, size: int, channels: tuple[int, int, int, int], activation: Callable, normalize_last: bool = True
    ):
        c0, c1, c2, c3 = channels
        self.time = TimeMLP(c0, activation)
        self.block1 = Block(size, c0, c1)
        self.block2 = Block(size, c1, c2)
        self.block3 = Block(size, c2, c3, normalize_last)

    @remat_block
    def __call__(self, x, time):
        return self.block3(self.block2(self.block1(add_to_pixels(x, self.time(time)))))


class LayerNormUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, 28, 28, image_channels), about within [-1, 1]. t: integers (B,) in [0, table_rows).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        table_rows: int = 1000,
        num_classes: int = 0,
        null_label: bool = True,
        time_activation: TimeActivation = "silu",
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_table = Buffer(sinusoid_table(table_rows, TIME_WIDTH))
        self.class_embedding = label_embedding(num_classes, null_label, TIME_WIDTH)
        activation = TIME_ACTIVATIONS[time_activation]
        self.stage1 = Stage(28, (image_channels, 10, 10, 10), activation)
        self.down1 = Conv(10, 10, 4, stride=2, padding=1)
        self.stage2 = Stage(14, (10, 20, 20, 20), activation)
        self.down2 = Conv(20, 20, 4, stride=2, padding=1)
        self.stage3 = Stage(7, (20, 40, 40, 40), activation)
        self.down3a = Conv(40, 40, 2, padding=0)
        self.down3b = Conv(40, 40, 4, stride=2, padding=1)
        self.middle = Stage(3, (40, 20, 20, 40), activation)
        self.up1a = ConvTranspose(40, 40, 4, stride=2, padding=1)
        self.up1b = ConvTranspose(40, 40, 2)
        self.stage4 = Stage(7, (80, 40, 20, 20), activation)
        self.up2 = ConvTranspose(20, 20, 4, stride=2, padding=1)
        self.stage5 = Stage(14, (40, 20, 10, 10), activation)
        self.up3 = ConvTranspose(10, 10, 4, stride=2, padding=1)
        self.stage6 = Stage(28, (20, 10, 10, 10), activation, normalize_last=False)
        self.output = Conv(10, image_channels, 3)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Int[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = jnp.asarray(self.time_table[...], dtype)[t]
        time = add_label(time, labels, self.class_embedding, self.null_index)
        h1 = self.stage1(x.astype(dtype), time)
        h2 = self.stage2(self.down1(h1), time)
        h3 = self.stage3(self.down2(h2), time)
        h = self.middle(self.down3b(silu(self.down3a(h3))), time)
        h = self.up1b(silu(self.up1a(h)))
        h = self.stage4(concatenate_channels(h3, h), time)
        h = self.stage5(concatenate_channels(h2, self.up2(h)), time)
        h = self.stage6(concatenate_channels(h1, self.up3(h)), time)
        return self.output(h).astype(result_dtype)
