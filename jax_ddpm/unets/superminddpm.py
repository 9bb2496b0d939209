"""SuperMinDDPM: the convolutions in a row of `superminddpm.py` in cloneofsimo's minDiffusion. It does not use t.

16,867,073 trained parameters with the default settings and one image channel.
"""

from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array
from jax_ddpm.layers import BatchNorm, Conv, remat_block


class Block(nnx.Module):
    """Convolution, BatchNorm and leaky ReLU with the slope 0.01."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        self.conv = Conv(in_channels, out_channels, kernel_size)
        self.norm = BatchNorm(out_channels)

    @remat_block
    def __call__(self, x):
        return jax.nn.leaky_relu(self.norm(self.conv(x)), negative_slope=0.01)


class SuperMinDDPM(nnx.Module):
    """(x, t) -> prediction of x's shape, the same for every t.

    x: (B, H, W, image_channels), about within [-0.5, 0.5], of any height and width. t: numbers (B,), not used.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256, 512, 256, 128, 64),
        kernel_size: int = 7,
        dtype=None,
    ):
        self.dtype = dtype
        blocks = [Block(i, o, kernel_size) for i, o in pairwise((image_channels, *widths))]
        self.layers = nnx.List([*blocks, Conv(widths[-1], image_channels, 3)])

    def __call__(self, x: Float[Array, "b h w c"], t: Real[Array, "b"]) -> Float[Array, "b h w c"]:
        result_dtype = self.layers[-1].kernel.dtype
        h = x.astype(self.dtype or result_dtype)
        for layer in self.layers:
            h = layer(h)
        return h.astype(result_dtype)
