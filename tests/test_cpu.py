"""The routes for CPUs against XLA's own: values and gradients in float64."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import layers, ops
from jax_ddpm.cpu import convolution as cpu_convolution
from jax_ddpm.cpu import norm as cpu_norm
from jax_ddpm.cpu import onednn, winograd
from jax_ddpm.cpu import products as cpu_products
from jax_ddpm.cpu import xla as cpu
from tests.small import jit


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture
def elsewhere(monkeypatch):
    """The layers as on a GPU."""
    monkeypatch.setattr(ops, "uses_cpu_routes", lambda: False)


def check(ours, reference, *arguments):
    """Values and all gradients, for a random cotangent."""

    def both(function):
        def run(*arguments):
            y, pull = jax.vjp(function, *arguments)
            return y, pull(normal(9, *y.shape))

        return jit(run)(*arguments)

    with jax.enable_x64():
        for one, other in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(reference)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-13 * np.abs(other).max(), rtol=0)


@pytest.mark.parametrize(("large", "out"), [(0, 6), (0, 3), (cpu_convolution.NO_FUSION_FROM_ELEMENTS, 6)])
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        (1, 3, 1, 1),
        (1, 5, 1, 2),
        (2, 3, 1, 1),
        (5, 3, 1, 1),
        (4, 3, 1, 0),
        (6, 5, 1, 2),
        (3, 2, 1, 1),
        (6, 3, 2, 1),
        (7, 3, 2, 0),
        (8, 4, 2, 1),
    ],
)
def test_convolution(elsewhere, monkeypatch, size, kernel_size, stride, padding, large, out):
    monkeypatch.setattr(cpu_convolution, "NO_FUSION_FROM_ELEMENTS", large)
    with jax.enable_x64():
        x, kernel = normal(0, 3, size, size + (size > 2), 4), normal(1, kernel_size, kernel_size, 4, out)
        xla = partial(ops.convolve, stride=stride, padding=padding)
        check(partial(cpu_convolution.convolve, stride=stride, padding=padding), xla, x, kernel)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA on CPUs")
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "out"),
    [(8, 3, 1, 16), (9, 3, 1, 8), (8, 3, 2, 16), (8, 2, 1, 8), (8, 4, 2, 16), (8, 5, 1, 3), (8, 3, 1, 48)],
)
@pytest.mark.parametrize("layer", [ops.convolve, ops.transpose_convolve])
def test_convolutions_inside_loops_are_of_the_kind_that_is_fast_there(
    monkeypatch, layer, size, kernel_size, stride, out
):
    """Of any other kind XLA makes naive loops, 100 times slower, where it stands in a loop."""
    monkeypatch.setattr(onednn, "usable_cpu_features", lambda: frozenset())

    def descend(_, both):
        x, kernel = both
        dx, dkernel = jax.grad(lambda x, kernel: jnp.sum(layer(x, kernel, stride, 1) ** 2), argnums=(0, 1))(x, kernel)
        return x - dx, kernel - dkernel

    both = jnp.ones((2, size, size, 16)), jnp.ones((kernel_size, kernel_size, 16, out))
    program = jax.jit(lambda n, both: jax.lax.fori_loop(0, n, descend, both)).lower(3, both).compile()
    kinds = re.findall(r" convolution\(.*dim_labels=(\S+?),", program.as_text())
    assert set(kinds) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"), [(7, 4, 2, 1), (4, 3, 2, 0), (5, 5, 3, 1), (4, 3, 1, 1)]
)
def test_transposed_convolution(elsewhere, monkeypatch, size, kernel_size, stride, padding):
    monkeypatch.setattr(cpu_convolution, "NO_FUSION_FROM_ELEMENTS", 0)
    with jax.enable_x64():
        x, kernel = normal(0, 3, size, size + 1, 6), normal(1, kernel_size, kernel_size, 6, 4)
        xla = partial(ops.transpose_convolve, stride=stride, padding=padding)
        sizes = tuple((n - 1) * stride - 2 * padding + kernel_size for n in (size, size + 1))

        def ours(x, kernel):
            return cpu_convolution.transpose_convolve(x, kernel.swapaxes(2, 3), stride, padding, sizes)

        check(ours, xla, x, kernel)


@pytest.mark.parametrize(
    ("channels", "size"), [((1, 10), (3, 8)), ((10, 1), (3, 6)), ((64, 3), (2, 4)), ((5, 20), (5, 5))]
)
def test_few_channels(elsewhere, channels, size):
    with jax.enable_x64():
        x, kernel = normal(0, 2, *size, channels[0]), normal(1, 3, 3, *channels)
        check(lambda *a: cpu_convolution.convolve(*a, 1, 1), lambda *a: ops.convolve(*a, 1, 1), x, kernel)


@pytest.mark.parametrize("size", [(2, 2), (4, 8), (10, 6)])
def test_winograd(elsewhere, size):
    with jax.enable_x64():
        x, kernel = normal(0, 3, *size, 5), normal(1, 3, 3, 5, 7)
        check(winograd.convolve, lambda x, kernel: ops.convolve(x, kernel, 1, 1), x, kernel)


def test_winograd_in_parts(elsewhere, monkeypatch):
    """Of few channels so many images at a time as caches hold, or the smallest part that divides the batch."""
    with jax.enable_x64():
        x, kernel = normal(0, 12, 4, 6, 5), normal(1, 3, 3, 5, 7)
        monkeypatch.setattr(winograd, "PART_BYTES", 1)
        assert len(winograd.split_batch(x, x, kernel)) == 1, "caches hold it"
        monkeypatch.undo()
        monkeypatch.setattr(ops, "uses_cpu_routes", lambda: False)
        monkeypatch.setattr(winograd, "EXCEEDS_CACHE_FROM_ELEMENTS", 0)
        counts = []
        for cached in (winograd.PART_BYTES, 4 * x.nbytes, 1):
            monkeypatch.setattr(winograd, "PART_BYTES", cached)
            counts.append(len(winograd.split_batch(x, x, kernel)))
            check(winograd.convolve, lambda x, kernel: ops.convolve(x, kernel, 1, 1), x, kernel)
        assert counts == [1, 2, 4]
        monkeypatch.setattr(winograd, "SPLIT_UP_TO_CHANNEL_PRODUCT", 34)
        assert len(winograd.split_batch(x, x, kernel)) == 1


def test_what_gradients_of_winograd_fill_is_not_made_beforehand(monkeypatch):
    """As copies of zeros of a shape that several loops fill."""
    monkeypatch.setattr(winograd, "EXCEEDS_CACHE_FROM_ELEMENTS", 0)
    monkeypatch.setattr(winograd, "PART_BYTES", 1)
    xs, kernels = jnp.ones((2, 12, 4, 6, 5)), jnp.ones((2, 3, 3, 5, 7))

    def loss(xs):
        return sum(jnp.sum(winograd.convolve(x, kernel) ** 2) for x, kernel in zip(xs, kernels, strict=True))

    program = jax.jit(jax.grad(loss)).lower(list(xs)).compile().as_text()
    assert "f32[4,3,4,6,5]" in program and not re.search(r"= f32\[4,3,4,6,5\]\S* copy\(", program)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((4, 6), 1, 1), ((5, 4), 1, 1), ((4, 4), 2, 1), ((4, 4), 1, 0)]
)
def test_many_channels_of_any_size(elsewhere, size, stride, padding):
    with jax.enable_x64():
        x, kernel = normal(0, 2, *size, 256), normal(1, 3, 3, 256, 128)
        xla = partial(ops.convolve, stride=stride, padding=padding)
        check(partial(cpu_convolution.convolve, stride=stride, padding=padding), xla, x, kernel)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_winograd_rounds_little(elsewhere, dtype):
    """Against the direct convolution in float64: an error of at most three times the direct one's own."""
    with jax.enable_x64():
        x, kernel = normal(0, 4, 8, 8, 128), normal(1, 3, 3, 128, 256)
        exact = ops.convolve(x, kernel, 1, 1)
        rounded = x.astype(dtype), kernel.astype(dtype)
        direct = ops.convolve(*rounded, 1, 1)
        assert winograd.is_faster(*rounded, 1)
        filtered = winograd.convolve(*rounded)
        assert direct.dtype == filtered.dtype == dtype
        error, own = (float(jnp.sqrt(jnp.mean(jnp.square(y - exact)))) for y in (filtered, direct))
        assert error < 3 * own


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_2x2_maps_round_little(dtype):
    """An output pixel as one matrix product, in float64: an error of at most three times the same product's own."""
    with jax.enable_x64():
        x, kernel = normal(0, 64, 2, 2, 128), normal(1, 3, 3, 128, 256)

        def pixel(x, kernel):
            return jnp.dot(x.reshape(64, -1), kernel[1:, 1:].reshape(-1, 256), precision="highest")

        rounded = x.astype(dtype), kernel.astype(dtype)
        direct, fewer = pixel(*rounded), winograd.convolve_2x2(*rounded)[:, 0, 0]
        assert direct.dtype == fewer.dtype == dtype
        error, own = (float(jnp.sqrt(jnp.mean(jnp.square(y - pixel(x, kernel))))) for y in (fewer, direct))
        assert error < 3 * own


@pytest.mark.parametrize("shape", [(3, 7, 7, 8), (2, 28, 28, 4), (2, 1, 1, 8), (2, 67, 4)])
def test_group_norm(elsewhere, shape):
    with jax.enable_x64():
        x, scale, bias = 3 * normal(0, *shape) + 5, normal(1, shape[-1]), normal(2, shape[-1])

        def reference(x, scale, bias):
            norm = layers.GroupNorm(2, shape[-1])
            norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
            return norm(x)

        check(lambda x, scale, bias: cpu_norm.group_norm(x, scale, bias, 2, 1e-5), reference, x, scale, bias)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4, 5)])
def test_dense(elsewhere, shape):
    with jax.enable_x64():
        arguments = normal(0, *shape), normal(1, 5, 7), normal(2, 7)
        ours = lambda x, kernel, bias: cpu.add_bias(cpu_products.matmul(x, kernel), bias)  # noqa: E731
        check(ours, lambda x, kernel, bias: x @ kernel + bias, *arguments)


@pytest.mark.parametrize("shape", [(3, 7, 7, 5), (2, 67), (16, 4, 4, 8), (4, 6, 2, 3)])
def test_layer_norm(elsewhere, shape):
    with jax.enable_x64():
        arguments = normal(0, *shape), normal(1, *shape[1:]), normal(2, *shape[1:])
        check(lambda *a: cpu_norm.layer_norm(*a, 1e-5), lambda *a: ops.layer_norm(*a, 1e-5), *arguments)


def test_silu():
    with jax.enable_x64():
        check(cpu.silu, jax.nn.silu, normal(0, 3, 5, 5, 10))
        x = normal(0, 3, 5, 5, 16)
        np.testing.assert_array_equal(cpu.silu(x), jax.nn.silu(x))  # without a gradient
    assert np.isinf(cpu.silu(jnp.array([jnp.inf, 1])[None]))[0, 0], "the branch is taken whatever comes first"


def test_silu_of_large_arrays(monkeypatch):
    monkeypatch.setattr(cpu, "FUSE_BELOW_ELEMENTS", 0)
    with jax.enable_x64():
        check(cpu.silu, jax.nn.silu, normal(0, 3, 5, 5, 16))


def test_concatenated_channels():
    """In bfloat16 bits are copied: not even those of a NaN are touched."""
    a, b = (normal(i, 2, 3, 4, c).astype(jnp.bfloat16).at[0, 0, 0, 0].set(jnp.nan) for i, c in ((0, 3), (1, 5)))
    g = normal(2, 2, 3, 4, 8).astype(jnp.bfloat16)
    y, pull = jax.vjp(ops.concatenate_channels, a, b)
    for one, other in zip((y, *pull(g)), (np.concatenate([a, b], axis=-1), g[..., :3], g[..., 3:]), strict=True):
        np.testing.assert_array_equal(np.asarray(one).view(np.uint16), np.asarray(other).view(np.uint16))


def test_group_norm_of_bfloat16(elsewhere):
    """Statistics in float32, as elsewhere: the result is rounded once."""
    norm = layers.GroupNorm(2, 6)
    norm.scale, norm.bias = nnx.Param(normal(0, 6)), nnx.Param(normal(1, 6))
    x, scale, bias = normal(2, 3, 4, 5, 6).astype(jnp.bfloat16), norm.scale[...], norm.bias[...]
    ours, theirs = cpu_norm.group_norm(x, scale, bias, 2, norm.epsilon), norm(x)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=2**-7, atol=1e-6)


def test_layer_norm_of_bfloat16(elsewhere):
    """Statistics and gradients in float32; results are rounded once."""
    x, g = (normal(i, 3, 4, 4, 5).astype(jnp.bfloat16) for i in (0, 1))
    scale, bias = (normal(i, 4, 4, 5).astype(jnp.float32) for i in (2, 3))

    def both(norm):
        y, pull = jax.vjp(lambda *a: norm(*a, 1e-5), x, scale, bias)
        return y, *pull(g)

    for one, other in zip(both(cpu_norm.layer_norm), both(ops.layer_norm), strict=True):
        assert one.dtype == other.dtype
        one, other = (a.astype(jnp.float32) for a in (one, other))
        np.testing.assert_allclose(one, other, rtol=2**-7, atol=2**-7 * float(abs(other).max()) / 16)


def test_rounding_to_bfloat16():
    """Ties to even, infinities, numbers too small to be normal; NaN stays NaN, as arithmetic makes it (quiet)."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | low
    bits = bits[(bits & 0x7FFFFFFF <= 0x7F800000) | (bits & 0x400000 > 0)]  # no signalling NaN
    nan = np.isnan(bits.view(np.float32))
    exact = bits[~nan].view(np.float32).astype(jnp.bfloat16).view(np.uint16)
    for round_ in (cpu.cast, jax.jit(cpu.cast, static_argnums=1)):
        ours = np.asarray(round_(bits.view(np.float32), jnp.bfloat16))
        assert np.isnan(ours[nan]).all()
        np.testing.assert_array_equal(ours[~nan].view(np.uint16), exact)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_silu_of_bfloat16_is_rounded_once(monkeypatch, on_cpu):
    """Its gradient too, for which it keeps nothing wider than x."""
    monkeypatch.setattr(ops, "uses_cpu_routes", lambda: on_cpu)
    x, g = (normal(i, 3, 4, 4, 16).astype(jnp.bfloat16) for i in (0, 1))
    exact, pull = jax.vjp(jax.nn.silu, x.astype(jnp.float32))
    ours, pull_ours = jax.vjp(ops.silu, x)
    assert ours.dtype == jnp.bfloat16 and (ours == exact.astype(jnp.bfloat16)).all()
    assert (pull_ours(g)[0] == pull(g.astype(jnp.float32))[0].astype(jnp.bfloat16)).all()
    assert {(kept.shape, kept.dtype) for kept in jax.tree.leaves(pull_ours)} == {(x.shape, x.dtype)}


def test_elsewhere_the_gradient_of_a_bias_is_never_in_bfloat16(elsewhere):
    g = normal(0, 4, 32, 32, 3).astype(jnp.bfloat16)
    _, pull = jax.vjp(lambda bias: ops.add_bias(g, bias), normal(1, 3))
    _, pull_vectors = jax.vjp(lambda vectors: ops.add_to_pixels(g, vectors), normal(1, 4, 3))
    exact = np.asarray(g, np.float64)
    np.testing.assert_allclose(pull(g)[0], exact.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pull_vectors(g)[0], exact.sum((1, 2)), rtol=1e-5)


def test_add_to_pixels(elsewhere):
    with jax.enable_x64():
        for channels in (5, 16):
            check(cpu.add_to_pixels, ops.add_to_pixels, normal(0, 3, 8, 6, channels), normal(1, 3, channels))
    for channels in (5, 16):
        x, vectors = (normal(i, 3, *maps, channels).astype(jnp.bfloat16) for i, maps in ((0, (8, 6)), (1, ())))
        np.testing.assert_array_equal(cpu.add_to_pixels(x, vectors), ops.add_to_pixels(x, vectors))


def test_max_pool(elsewhere):
    """Among equals too; with NaN the values alone, and that its gradient goes where it came from."""
    with jax.enable_x64():
        x = jnp.round(normal(0, 3, 6, 8, 5))
        check(cpu.max_pool_2x2, ops.max_pool_2x2, x)
        y, pull = jax.vjp(cpu.max_pool_2x2, x.at[0, 1, 0, 0].set(jnp.nan))
        (dx,) = pull(jnp.ones_like(y))
        assert (
            np.isnan(y).sum() == 1 and np.isnan(y[0, 0, 0, 0]) and dx[0, 1, 0, 0] == 1 and dx[0, :2, :2, 0].sum() == 1
        )


def test_sum_of_squares():
    with jax.enable_x64():
        for shape in [(3, 5), (cpu.FUSE_BELOW_ELEMENTS // 32, 32), (cpu.FUSE_BELOW_ELEMENTS + 1,)]:
            x = normal(0, *shape)
            np.testing.assert_allclose(cpu.sum_of_squares(x), np.sum(np.square(x)), rtol=1e-12)


def test_a_gradient_that_is_nan_stays_one(monkeypatch):
    monkeypatch.setattr(cpu_convolution, "NO_FUSION_FROM_ELEMENTS", 0)
    x, kernel = jnp.ones((1, 3, 3, 1), jnp.float32), jnp.ones((3, 3, 1, 1), jnp.float32)
    _, pull = jax.vjp(lambda kernel: cpu_convolution.convolve(x, kernel, 1, 1), kernel)
    for place in ((0, 0, 0, 0), (0, 1, 1, 0)):
        (gradient,) = pull(jnp.ones_like(x).at[place].set(jnp.nan))
        assert np.isnan(gradient).any()
