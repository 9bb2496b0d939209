"""Fast versions, for CPUs, of operations of `jax_ddpm.ops`: same names, same arguments."""

from jax_ddpm.cpu import convolution, xla
from jax_ddpm.cpu.norm import group_norm, layer_norm
from jax_ddpm.cpu.products import einsum, matmul
from jax_ddpm.cpu.threefry import THREEFRY
from jax_ddpm.cpu.xla import (
    add_to_pixels,
    checkpoint,
    concatenate_channels,
    draw_once,
    materialize,
    max_pool_2x2,
    silu,
    sum_of_squares,
)

__all__ = [
    "add_bias",
    "add_to_pixels",
    "checkpoint",
    "concatenate_channels",
    "convolution_nhwc",
    "draw_once",
    "einsum",
    "group_norm",
    "layer_norm",
    "materialize",
    "matmul",
    "max_pool_2x2",
    "prng_impl",
    "silu",
    "sum_of_squares",
    "transpose_convolve",
]


def prng_impl():
    return THREEFRY


def add_bias(x, bias):
    return xla.add_bias(x, bias.astype(x.dtype))


def convolution_nhwc(x, kernel, stride, padding, bias=None):
    return convolution.convolve(x, kernel, stride, padding, None if bias is None else bias.astype(x.dtype))


def transpose_convolve(x, kernel, stride, padding):
    size = tuple((n - 1) * stride - 2 * padding + len(kernel) for n in x.shape[1:3])
    return convolution.transpose_convolve(x, kernel.swapaxes(2, 3), stride, padding, size)
