"""oneDNN's convolution and matrix product, called directly through XLA's custom calls. jaxlib for x86 contains them.

PyTorch computes with the same oneDNN functions, so the speed is the same. XLA itself never uses them for convolutions.
Their interface is documented only in XLA's source (xla/service/cpu/onednn_config.proto, onednn_convolution.cc), and an
invalid call aborts the process. So they are used only with tested versions of jaxlib, on CPUs with the instruction sets
that were tested. The environment variable JAX_DDPM_ONEDNN=0 turns them off. JAX's compilation cache cannot store
programs with such calls: after its first call a process writes no more programs to the cache.
"""

import functools
import json
import os
import platform

import jax
import jax.numpy as jnp
import jaxlib

from jax_ddpm.cpu.flags import cpu_features

TESTED_JAXLIB_VERSIONS = ("0.10.2",)
ISA_LIMIT_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # they limit the instruction sets that oneDNN uses
REQUIRED_CPU_FEATURES = {"float32": {"avx512f"}, "bfloat16": {"avx512_bf16"}}
FLOAT32_FROM_ELEMENTS = 1 << 19  # oneDNN is used for float32 inputs with at least this many elements


def is_supported(dtype) -> bool:
    """Whether oneDNN can be used for this dtype.

    JAX must have a single CPU device, and the CPU must have the required instructions.
    """
    required = REQUIRED_CPU_FEATURES.get(jnp.dtype(dtype).name)
    single_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return required is not None and required <= usable_cpu_features() and single_cpu


def is_faster(x) -> bool:
    """Whether to use oneDNN for a layer with the input x (B, ...): in bfloat16, and in float32 if x is large.

    oneDNN is also faster for smaller float32 inputs. But such a program is not cached, so every start would compile it.
    """
    return is_supported(x.dtype) and (x.dtype == jnp.bfloat16 or x.size >= FLOAT32_FROM_ELEMENTS)


@functools.cache
def usable_cpu_features() -> frozenset[str]:
    """The CPU's features as named in /proc/cpuinfo. Empty if this jaxlib was not tested or oneDNN is turned off."""
    if os.environ.get("JAX_DDPM_ONEDNN") == "0" or any(name in os.environ for name in ISA_LIMIT_VARIABLES):
        return frozenset()
    if jaxlib.__version__ not in TESTED_JAXLIB_VERSIONS or platform.machine() != "x86_64":
        return frozenset()
    return frozenset(cpu_features().decode().split())


def convolve(x, kernel, strides, padding, dilation=(1, 1), axes=(0, 1, 2, 3), bias=None, dtype=None):
    """Cross-correlation of x (B, H, W, I) with a kernel, plus a bias (O,): (B, H', W', O).

    axes: the kernel's axes for rows, columns, I and O. strides, dilation: one number for rows, one for columns.
    padding: one pair (before, after) each; a negative number crops x. The sum, with the bias, is rounded once, to
    `dtype`: by default x's dtype, else a wider one.
    """
    rows, columns = (slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape[1:3], padding, strict=True))
    x, padding = x[:, rows, columns], [(max(a, 0), max(b, 0)) for a, b in padding]
    sizes = [kernel.shape[axis] for axis in axes]
    output_size = [
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
    shape = (len(x), *output_size, sizes[3])
    return custom_call("convolution", shape, {"onednn_conv_config": config}, *operands, dtype=dtype)


def matmul(a, b, transpose_a: bool = False, transpose_b: bool = False, dtype=None):
    """a (..., M, K) @ b (..., K, N), each optionally transposed first. The result has a's dtype, or a wider `dtype`."""
    shape = *a.shape[:-2], a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    config = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return custom_call("matmul", shape, {"onednn_matmul_config": config}, a, b, dtype=dtype)


def transpose(x):
    """x (M, N) transposed. If x is not finite, neither is the result.

    Computed as a product with the identity matrix. XLA would fuse a plain transposition with the producer of x, into
    loops with strided memory access.
    """
    return matmul(x, jnp.eye(len(x), dtype=x.dtype), transpose_a=True)


def custom_call(name: str, shape, config: dict, *operands, dtype=None):
    """Call oneDNN's function `name`. Returns an array of `shape` and `dtype` (default: that of the first operand)."""
    # XLA cannot serialise this custom call: it mistakes the call for another kind and fails. JAX then warns and goes
    # on. So writing to the compilation cache is turned off. It must stay off, because JAX writes when it compiles,
    # after this function has returned.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    result = jax.ShapeDtypeStruct(shape, dtype or operands[0].dtype)
    options = {"custom_call_api_version": 2, "legacy_backend_config": json.dumps(config)}
    return jax.ffi.ffi_call(f"__onednn${name}", result, vmap_method="sequential", **options)(*operands)
