"""How far TF32 is from float32, without a GPU: `python -m parity_tests.simulated_tf32`.

Both operands of every convolution and matrix product of a network, forwards and backwards, are rounded to TF32's 10
bits after the point, to the nearest or by cutting the others off. Products and sums stay float32, as in a GPU's tensor
cores. jax_ddpm is measured; PyTorch's flags round the same operands.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import ops, unets, weights
from jax_ddpm.sampling.samplers import sample_indices
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from parity_tests.measures import compiled, random_weights, relative
from parity_tests.networks import CASES, Case

TF32_BITS = 10


def nearest(x):
    """x, float32, rounded to TF32."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=TF32_BITS)


def cut(x):
    """x, float32, without the bits that TF32 does not have."""
    words = lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(words & jnp.uint32(2**32 - 2 ** (23 - TF32_BITS)), jnp.float32)


def rounding_operands(product: Callable, to_tf32: Callable) -> Callable:
    """A bilinear function of two float32 arrays that rounds them, and in its gradient the incoming one, too."""

    @jax.custom_vjp
    def rounded(a, b):
        return product(to_tf32(a), to_tf32(b))

    def forward(a, b):
        a, b = to_tf32(a), to_tf32(b)
        return product(a, b), (a, b)

    def backward(operands, gradient):
        return jax.vjp(product, *operands)[1](to_tf32(gradient))

    rounded.defvjp(forward, backward)
    return rounded


@contextmanager
def simulated(to_tf32: Callable = nearest) -> Iterator[None]:
    """Context manager: the products of networks that are traced inside round their operands."""
    convolve, dot, einsum = lax.conv_general_dilated, jnp.dot, jnp.einsum

    def rounding_convolve(x, kernel, *arguments, **settings):
        return rounding_operands(lambda a, b: convolve(a, b, *arguments, **settings), to_tf32)(x, kernel)

    def rounding_dot(a, b, **settings):
        return rounding_operands(partial(dot, **settings), to_tf32)(a, b)

    def rounding_einsum(equation, a, b, **settings):
        return rounding_operands(partial(einsum, equation, **settings), to_tf32)(a, b)

    with (
        mock.patch.object(lax, "conv_general_dilated", rounding_convolve),
        mock.patch.object(jnp, "dot", rounding_dot),
        mock.patch.object(jnp, "einsum", rounding_einsum),
        ops.plain(),
    ):
        yield


def filled(case: Case) -> nnx.Module:
    network = unets.build(case.config, case.channels)
    weights.load_state_dict(network, random_weights(case.config, case.channels))
    return network


def output_and_gradients(case: Case, network: nnx.Module, products) -> tuple[np.ndarray, np.ndarray]:
    """The prediction of a batch, and the gradient of a sum over it for all parameters, as one vector."""
    g = np.random.default_rng(0)
    shape = (4, case.size, case.size, case.channels)
    x, t = g.standard_normal(shape).astype(np.float32), np.asarray([0, 300, 700, 999], np.int32)
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    out = jax.eval_shape(lambda: network(x, t)).shape
    cotangent = g.standard_normal(out).astype(np.float32)

    def loss(params):
        y = nnx.merge(graph, params, rest)(x, t)
        return jnp.vdot(y, cotangent), y

    with products:
        (_, y), gradients = compiled(lambda p: jax.value_and_grad(loss, has_aux=True)(p), quick=True)(params)
    return np.asarray(y), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)])


def distances(name: str, *roundings: Callable) -> Iterator[tuple[float, float]]:
    """For each rounding the largest differences of output and gradients to float32, of the largest magnitudes."""
    case = CASES[name]
    network = filled(case)
    exact = output_and_gradients(case, network, ops.plain())
    for to_tf32 in roundings:
        rounded = output_and_gradients(case, network, simulated(to_tf32))
        yield relative(rounded[0], exact[0]), relative(rounded[1], exact[1])


def samples(network: nnx.Module, shape: tuple[int, int, int], diffusion: DiffusionConfig, products) -> np.ndarray:
    """Four images of seed 0, after all steps of the ancestral sampler."""
    jax.clear_caches()  # JAX does not know that products are replaced
    with products:
        return np.asarray(sample_indices(network, diffusion, shape, 0, np.arange(4))[0])


def main() -> None:
    roundings = {"nearest": nearest, "cut off": cut}
    print("network, rounding: output, gradients")
    for name in ("conv_block", "strided", "attention", "layer_norm", "ddpm"):
        for rounding, (output, gradients) in zip(roundings, distances(name, *roundings.values()), strict=True):
            print(f"{name}, {rounding}: {output:.1e}, {gradients:.1e}", flush=True)
    print("1000-step samples: largest difference, share of 8-bit pixels that differ")
    for name in ("conv_block", "layer_norm"):
        case = CASES[name]
        network, shape = filled(case), (case.size, case.size, case.channels)
        exact = samples(network, shape, DiffusionConfig(), nullcontext())
        for rounding, to_tf32 in roundings.items():
            found = samples(network, shape, DiffusionConfig(), simulated(to_tf32))
            levels = [np.rint((np.clip(x, -1, 1) + 1) * 127.5) for x in (exact, found)]
            print(f"{name}, {rounding}: {np.abs(found - exact).max():.1e}, {np.mean(levels[0] != levels[1]):.1%}")


if __name__ == "__main__":
    main()
