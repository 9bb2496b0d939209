"""Counts the floating-point operations of convolutions and matrix products in a program, before it is compiled."""

import math
from collections import Counter

import numpy as np
from jax.lax import Precision

from jax_ddpm.jaxprs import inner_jaxprs


def product_flops(jaxpr) -> Counter:
    """FLOPs of all convolutions and matrix products, by the name of their operands' dtype, or tf32.

    A multiplication and an addition are two. Products with padding and with the zeros between the rows of a strided
    gradient are not counted. A scan counts as often as it goes round, a `while` loop once, and of a `cond` the branch
    that costs most.
    """
    total: Counter = Counter()
    for equation in jaxpr.eqns:
        name, times = equation.primitive.name, 1
        if name == "dot_general":
            total[kind(equation)] += dot_flops(equation)
        elif name == "conv_general_dilated":
            total[kind(equation)] += convolution_flops(equation)
        elif name == "scan":
            times = equation.params["length"]
        elif name == "shard_map":
            times = equation.params["mesh"].size
        parts = [product_flops(inner) for inner in inner_jaxprs(equation)]
        if name == "cond" and parts:
            parts = [max(parts, key=lambda part: sum(part.values()))]
        for part in parts:
            total.update({dtype: times * flops for dtype, flops in part.items()})
    return total


def kind(equation) -> str:
    """The dtype of the operands; tf32 for those of float32 with the precision that `ops.tf32` gives."""
    dtype, precision = equation.invars[0].aval.dtype.name, equation.params["precision"]
    return "tf32" if dtype == "float32" and precision == (Precision.HIGH, Precision.HIGH) else dtype


def dot_flops(equation) -> int:
    contracted, _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted[0])


def convolution_flops(equation) -> int:
    p, numbers = equation.params, equation.params["dimension_numbers"]
    left, kernel = (variable.aval.shape for variable in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    taps = math.prod(
        valid_taps(
            left[a],
            kernel[k],
            out[o],
            p["window_strides"][i],
            p["padding"][i][0],
            p["lhs_dilation"][i],
            p["rhs_dilation"][i],
        )
        for i, (a, k, o) in enumerate(
            zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
        )
    )
    images_and_channels = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    return 2 * taps * images_and_channels // p["batch_group_count"]


def valid_taps(size: int, kernel: int, out: int, stride: int, padding: int, dilation: int, kernel_dilation: int) -> int:
    """How many pairs (output position, kernel position) of one axis meet a number of the input."""
    positions = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - padding
    inside = (positions >= 0) & (positions <= (size - 1) * dilation)
    return int(np.sum(inside & (positions % dilation == 0)))
