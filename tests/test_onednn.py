"""oneDNN's calls against XLA's own: values and gradients, what they serve, and what JAX keeps of their programs."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm import ops
from jax_ddpm.cpu import convolution as cpu_convolution
from jax_ddpm.cpu import onednn, onednn_convolution, winograd
from jax_ddpm.cpu import products as cpu_products
from jax_ddpm.cpu import xla as cpu
from tests.test_cpu import elsewhere  # noqa: F401

here = pytest.mark.skipif(not onednn.is_supported("bfloat16"), reason="this jaxlib or this CPU has no such calls")
ALL = [jnp.float32, jnp.bfloat16]


def both(function, dtype, *arguments):
    """Values and all gradients, for a random cotangent, the arguments rounded to dtype: in dtype, and in float32."""

    def run(*arguments):
        y, pull = jax.vjp(function, *arguments)
        g = np.random.default_rng(9).standard_normal(y.shape)
        return y, *pull(jnp.asarray(g, dtype).astype(y.dtype))

    rounded = [jnp.asarray(a, dtype) for a in arguments]
    return jax.jit(run), rounded, [a.astype(jnp.float32) for a in rounded]


def check(ours, reference, dtype, *arguments):
    """Against float32: to its rounding, or to that of numbers of eight bits."""
    run, rounded, _ = both(ours, dtype, *arguments)
    expected, _, exact = both(reference, dtype, *arguments)
    for one, other in zip(run(*rounded), expected(*exact), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        bound = 2e-6 if dtype == jnp.float32 else 2**-7
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=bound * np.abs(other).max(), rtol=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@here
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(
    ("batch", "size", "channels", "kernel_size", "stride", "padding"),
    [
        (3, (7, 5), (10, 20), 3, 1, 1),
        (4, (8, 8), (20, 10), 3, 1, 1),  # fewer channels come out: the other gradient of the kernel
        (3, (6, 7), (6, 8), 3, 2, 0),
        (3, (6, 6), (6, 8), 5, 1, 2),
        (2, (5, 4), (6, 8), 1, 1, 1),
        (2, (5, 4), (8, 6), 1, 1, 1),
        (65, (4, 6), (10, 20), 3, 1, 1),  # a large batch
        (2, (2, 2), (20, 10), 3, 1, 1),
        (4, (6, 6), (1, 5), 3, 1, 1),
        (3, (5, 5), (10, 3), 3, 1, 0),
        (3, (8, 8), (5, 7), 4, 2, 1),
        (3, (6, 7), (5, 7), 3, 2, 0),
        (3, (6, 6), (5, 7), 5, 1, 2),
        (3, (3, 3), (5, 7), 2, 1, 1),
        (2, (1, 1), (8, 12), 3, 1, 1),
        (2, (5, 4), (5, 7), 1, 1, 1),  # more padding than the kernel reaches: gradients crop
        (2, (5, 4), (7, 5), 2, 1, 2),
    ],
)
def test_convolution(elsewhere, monkeypatch, dtype, batch, size, channels, kernel_size, stride, padding):  # noqa: F811
    monkeypatch.setattr(onednn_convolution, "use_onednn", lambda x, kernel: True)
    x, kernel = normal(0, batch, *size, channels[0]), normal(1, kernel_size, kernel_size, *channels)
    check(
        lambda x, kernel, bias: cpu_convolution.convolve(x, kernel, stride, padding, bias),
        lambda x, kernel, bias: ops.convolve(x, kernel, stride, padding, bias),
        dtype,
        x,
        kernel,
        normal(2, channels[1]),
    )


@here
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [(7, 4, 2, 1), (4, 3, 2, 0), (5, 5, 3, 1), (4, 3, 1, 1), (2, 3, 1, 1), (4, 2, 2, 2)],
)
def test_transposed_convolution(elsewhere, monkeypatch, dtype, size, kernel_size, stride, padding):  # noqa: F811
    monkeypatch.setattr(onednn_convolution, "use_onednn", lambda x, kernel: True)
    x, kernel = normal(0, 3, size, size, 6), normal(1, kernel_size, kernel_size, 6, 5)
    sizes = 2 * ((size - 1) * stride - 2 * padding + kernel_size,)
    check(
        lambda x, kernel: cpu_convolution.transpose_convolve(x, kernel.swapaxes(2, 3), stride, padding, sizes),
        lambda x, kernel: ops.transpose_convolve(x, kernel, stride, padding),
        dtype,
        x,
        kernel,
    )


@here
@pytest.mark.parametrize("size", [2, 6])
def test_winograd(elsewhere, monkeypatch, size):  # noqa: F811
    """Its products, in float32 alone: in half precision oneDNN convolves directly."""
    monkeypatch.setattr(onednn, "FLOAT32_FROM_ELEMENTS", 0)
    monkeypatch.setattr(winograd, "EXCEEDS_CACHE_FROM_ELEMENTS", 0)
    x, kernel = normal(0, 4, size, size, 16), normal(1, 3, 3, 16, 32)
    ours = winograd.convolve_2x2 if size == 2 else winograd.convolve
    text = jax.jit(ours).lower(*(jnp.asarray(a, jnp.float32) for a in (x, kernel))).as_text()
    assert "__onednn$matmul" in text
    check(ours, lambda x, kernel: ops.convolve(x, kernel, 1, 1), jnp.float32, x, kernel)


@here
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("stride", "channels"), [(1, (5, 7)), (1, (7, 1)), (2, (5, 7))])
def test_kernel_gradient_in_parts(elsewhere, monkeypatch, dtype, stride, channels):  # noqa: F811
    """A large batch is taken in parts, the last one smaller; in half precision the sum of all is rounded once."""
    monkeypatch.setattr(onednn_convolution, "use_onednn", lambda x, kernel: True)
    monkeypatch.setattr(onednn_convolution, "GRADIENT_IN_PARTS_FROM_BYTES", 0)
    check(
        lambda x, kernel: cpu_convolution.convolve(x, kernel, stride, 1),
        lambda x, kernel: ops.convolve(x, kernel, stride, 1),
        dtype,
        normal(0, 33, 6, 5, channels[0]),
        normal(1, 3, 3, *channels),
    )


@here
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("shape", "out"), [((6, 5), 7), ((3, 4, 4, 5), 1), ((1, 5), 3)])
def test_dense(monkeypatch, dtype, shape, out):
    monkeypatch.setattr(onednn, "is_faster", lambda x: True)
    exact = partial(jnp.dot, precision="highest")
    check(cpu_products.matmul, exact, dtype, normal(0, *shape), normal(1, 5, out))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("by_onednn", [False, pytest.param(True, marks=here)])
@pytest.mark.parametrize("heads", [1, 3])
def test_products_of_attention(monkeypatch, dtype, by_onednn, heads):
    monkeypatch.setattr(onednn, "is_faster", lambda x: by_onednn)
    query, key, value = normal(0, 2, 6, heads, 5), normal(1, 2, 7, heads, 5), normal(2, 2, 7, heads, 5)
    share = normal(3, 2, heads, 6, 7)
    for equation, *arguments in (("bqhd,bkhd->bhqk", query, key), ("bhqk,bkhd->bqhd", share, value)):
        check(partial(cpu_products.einsum, equation), partial(jnp.einsum, equation), dtype, *arguments)


@here
def test_what_pays():
    """What is small stays XLA's own in float32, so that its programs can be kept."""
    assert onednn.is_faster(jnp.zeros((2, 4, 4, 16), jnp.bfloat16)) and not onednn.is_faster(jnp.zeros((2, 4, 4, 16)))
    assert onednn.is_faster(jnp.zeros((8, 32, 32, 64))) and not onednn.is_faster(jnp.zeros((64, 8, 8, 64)))


@here
@pytest.mark.parametrize("batch", [3, 65])
def test_gradients_of_what_is_not_finite(monkeypatch, batch):
    monkeypatch.setattr(onednn_convolution, "use_onednn", lambda x, kernel: True)
    x, kernel = np.ones((batch, 4, 4, 5), np.float32), jnp.ones((3, 3, 5, 6), jnp.float32)
    x[1, 2, 2, 1] = np.inf
    y, pull = jax.vjp(lambda kernel: cpu_convolution.convolve(jnp.asarray(x), kernel, 1, 1), kernel)
    assert not np.isfinite(pull(jnp.ones_like(y))[0][:, :, 1]).any() and np.isfinite(y[0]).all()


@pytest.mark.slow
@here
def test_rematerialised_and_mapped_gradients():
    x, kernel = jnp.asarray(normal(0, 2, 3, 4, 4, 10), jnp.float32), jnp.asarray(normal(1, 3, 3, 10, 10), jnp.float32)

    def loss(kernel, x):
        return jnp.sum(cpu.silu(cpu_convolution.convolve(x, kernel, 1, 1)) ** 2)

    one = jnp.stack([jax.grad(loss)(kernel, image) for image in x])
    np.testing.assert_allclose(jax.vmap(jax.grad(loss), (None, 0))(kernel, x), one, rtol=1e-4, atol=1e-4)
    again = jax.grad(jax.checkpoint(loss))(kernel, x[0])
    np.testing.assert_allclose(again, one[0], rtol=1e-5, atol=1e-5)


@here
@pytest.mark.parametrize(
    ("channels", "stride"), [((64, 3), 1), ((3, 64), 1), ((128, 2), 1), ((3, 64), 2), ((64, 1), 1)]
)
def test_float32_networks_for_pictures_are_left_to_xla(channels, stride):
    x, kernel = jnp.zeros((1, 8, 8, channels[0])), jnp.zeros((3, 3, *channels))
    gradient = jax.grad(lambda x, kernel: jnp.sum(cpu_convolution.convolve(x, kernel, stride, 1)), (0, 1))
    assert "__onednn" not in str(jax.make_jaxpr(gradient)(x, kernel))
    assert "__onednn" in str(jax.make_jaxpr(gradient)(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)))


@here
def test_repeats_itself_in_loops_and_maps():
    x, kernel = (jnp.asarray(normal(i, *s), jnp.bfloat16) for i, s in enumerate([(4, 8, 8, 16), (3, 3, 16, 16)]))
    step = jax.jit(lambda x: cpu_convolution.convolve(x, kernel, 1, 1) / 12)
    scan = jax.jit(lambda x: jax.lax.scan(lambda x, _: (step(x), None), x, length=3)[0])
    assert (scan(x) == step(step(step(x)))).all() and (scan(x) == scan(x)).all()
    each = jax.vmap(lambda image: cpu_convolution.convolve(image[None], kernel, 1, 1)[0])(x)
    np.testing.assert_allclose(each.astype(float), 12 * step(x).astype(float), atol=0.2)


@here
@pytest.mark.parametrize(
    ("dtype", "channels", "served"),
    [
        ("bfloat16", (64, 64), True),
        ("float32", (10, 20), True),
        ("float32", (32, 40), True),
        ("float32", (64, 128), False),
        ("float32", (3, 64), False),
        ("float32", (64, 1), False),
        ("float64", (10, 20), False),
    ],
)
def test_what_is_served(monkeypatch, dtype, channels, served):
    with jax.enable_x64():
        x, kernel = jnp.zeros((1, 4, 4, channels[0]), dtype), jnp.zeros((3, 3, *channels), dtype)
        assert onednn_convolution.use_onednn(x, kernel) == served
        with monkeypatch.context() as patch:
            patch.setattr(jax, "device_count", lambda: 4)
            assert not onednn_convolution.use_onednn(x, kernel), "the calls are not divided among devices"


def test_not_where_it_was_not_tried_or_is_not_wanted(monkeypatch):
    def instructions():
        onednn.usable_cpu_features.cache_clear()
        return onednn.usable_cpu_features()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(onednn.jaxlib, "__version__", "99.0")
            assert not instructions() and not onednn.is_supported("float32")
        with monkeypatch.context() as patch:
            patch.setattr(onednn.platform, "machine", lambda: "aarch64")
            assert not instructions()
        with monkeypatch.context() as patch:
            patch.setattr(onednn, "cpu_features", lambda: b"")
            assert not instructions()
        with monkeypatch.context() as patch:
            patch.setenv("JAX_DDPM_ONEDNN", "0")
            assert not instructions()
        with monkeypatch.context() as patch:
            patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
            assert not instructions()
    finally:
        onednn.usable_cpu_features.cache_clear()
    monkeypatch.setattr(onednn, "usable_cpu_features", lambda: {"avx2", "avx512f"})
    assert onednn.is_supported("float32") and not onednn.is_supported("bfloat16"), "needs its instructions"


COMPILE = """
import sys, warnings
warnings.simplefilter("error")
from jax_ddpm.cpu import convolution as cpu_convolution
import jax, jax.numpy as jnp
dtype = sys.argv[1]
x, kernel = jnp.ones((2, 8, 8, 16), dtype), jnp.ones((3, 3, 16, 16), dtype)
jax.jit(lambda x: cpu_convolution.convolve(x, kernel, 1, 1))(x).block_until_ready()
"""


@here
@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", False), ("float32", True)])
def test_programs_that_jax_cannot_keep_are_not_offered_to_it(tmp_path, dtype, kept):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run([sys.executable, "-c", COMPILE, dtype], env=environment, check=True)
    assert any("lambda" in path.name for path in tmp_path.iterdir()) == kept
