"""oneDNN's convolutions and products, which jaxlib's library for x86 CPUs holds, called by the names XLA has for them.

They are as fast as PyTorch's, which are the same. XLA itself never calls them for a convolution, and what they expect
is written down nowhere but in its source (xla/service/cpu/onednn_config.proto, onednn_convolution.cc of XLA); a call
that oneDNN refuses ends the process. So they are called only in versions of jaxlib that were tried, on kinds of CPU
that were tried, unless the environment has JAX_DDPM_ONEDNN=0. JAX's compilation cache cannot keep programs with such
calls: a process that made one writes no more programs to it.
"""

import functools
import json
import os
import platform

import jax
import jax.numpy as jnp
import jaxlib

from jax_ddpm.cpu.flags import cpu_features

VERSIONS = ("0.10.2",)  # of jaxlib
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # with which oneDNN does not use what the CPU has
INSTRUCTIONS = {"float32": {"avx512f"}, "bfloat16": {"avx512_bf16"}}
LARGE = 1 << 19  # numbers


def serves(dtype) -> bool:
    """Whether oneDNN computes in this dtype here: on one device of a CPU that has the instructions for it."""
    wanted = INSTRUCTIONS.get(jnp.dtype(dtype).name)
    here = jax.default_backend() == "cpu" and jax.device_count() == 1
    return wanted is not None and wanted <= instructions() and here


def pays(x) -> bool:
    """Whether oneDNN is to be called for a layer of x (B, ...): in bfloat16, and in float32 where x is large.

    It is faster elsewhere too, but programs of small layers that are kept start sooner.
    """
    return serves(x.dtype) and (x.dtype == jnp.bfloat16 or x.size >= LARGE)


@functools.cache
def instructions() -> frozenset[str]:
    """What this CPU can do, in Linux's words; nothing where jaxlib was not tried, or oneDNN is not wanted."""
    if os.environ.get("JAX_DDPM_ONEDNN") == "0" or any(name in os.environ for name in LIMITS):
        return frozenset()
    if jaxlib.__version__ not in VERSIONS or platform.machine() != "x86_64":
        return frozenset()
    return frozenset(cpu_features().decode().split())


def convolve(x, kernel, strides, padding, dilation=(1, 1), axes=(0, 1, 2, 3), bias=None, dtype=None):
    """Cross-correlation of x (B, H, W, I) with a kernel whose `axes` are its rows, columns, I and O: (B, H', W', O).

    Plus bias (O,), before the sum is rounded to x's dtype, or the wider one given. strides, dilation: a number per axis
    of the maps; padding: a pair per axis, negative where x is to be cropped.
    """
    rows, columns = (slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape[1:3], padding, strict=True))
    x, padding = x[:, rows, columns], [(max(a, 0), max(b, 0)) for a, b in padding]
    sizes = [kernel.shape[axis] for axis in axes]
    maps = [
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (low, high) in zip(x.shape[1:3], sizes[:2], strides, dilation, padding, strict=True)
    ]
    image = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    filters = {"input_feature_dim": axes[2], "output_feature_dim": axes[3], "spatial_dims": axes[:2]}
    window = {
        "pad_left": [low for low, _ in padding],
        "pad_right": [high for _, high in padding],
        "strides": strides,
        "window_dilations": dilation,
    }
    config = {"dims": 4, "feature_groups": 1, "input": image, "output": image}
    config |= {"kernel": {"filter": filters}, "window": window}
    operands = [x, kernel]
    if bias is not None:
        config["fusions"] = {"ops": ["BIAS"]}
        operands.append(bias)
    return call("convolution", (len(x), *maps, sizes[3]), {"onednn_conv_config": config}, *operands, dtype=dtype)


def matmul(a, b, transpose_a: bool = False, transpose_b: bool = False, dtype=None):
    """a @ b of (..., M, K) and (..., K, N), either transposed before, in their dtype or a wider one."""
    shape = *a.shape[:-2], a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    config = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return call("matmul", shape, {"onednn_matmul_config": config}, a, b, dtype=dtype)


def transpose(x):
    """x (M, N) transposed, NaN where x is not finite.

    A product with the identity: XLA would merge a transposition with whatever computes x, into loops that jump through
    memory.
    """
    return matmul(x, jnp.eye(len(x), dtype=x.dtype), transpose_a=True)


def call(name: str, shape, config: dict, *operands, dtype=None):
    """The result, of this shape, and the operands' dtype if no other is given."""
    # XLA would write down such a call as if it were one of another kind, and fail (JAX warns, and goes on). Programs
    # are written when they are compiled: what puts this back between tracing and compiling brings the warning.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    result = jax.ShapeDtypeStruct(shape, dtype or operands[0].dtype)
    options = {"custom_call_api_version": 2, "legacy_backend_config": json.dumps(config)}
    return jax.ffi.ffi_call(f"__onednn${name}", result, vmap_method="sequential", **options)(*operands)
