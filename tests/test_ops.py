"""Plain JAX in place of the routes for CPUs: derivatives that the routes lack, and a package without any routes."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import ops, unets, weights
from jax_ddpm.cpu import routes
from jax_ddpm.layers import Buffer
from jax_ddpm.spec.json_text import to_json
from jax_ddpm.spec.network_config import ConvBlockConfig
from tests.small import jit, small

on_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all operations are plain")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def conv_block():
    """A loss of a network's parameters, and the parameters, in float64."""
    network = unets.build(ConvBlockConfig(widths=(32,), time_width=32), 1)
    weights.initialise(network, 0)
    graph, params, buffers = nnx.split(network, nnx.Param, Buffer)
    x, t = normal(1, 2, 4, 4, 1), np.asarray([3, 700])

    def loss(params):
        return jnp.mean(nnx.merge(graph, params, buffers)(x, t) ** 2)

    return loss, jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)


def every_operation():
    """A loss that goes through each operation once, and its parameters."""
    shapes = {"x": (2, 4, 4, 3), "kernel": (3, 3, 3, 4), "bias": (4,), "vectors": (2, 4), "up": (4, 4, 8, 5)}
    shapes |= {"scale": (4,), "layer": (4, 4, 5), "dense": (5, 6)}
    params = {name: normal(number, *shape) for number, (name, shape) in enumerate(shapes.items())}
    return loss_by_every_operation, params


def loss_by_every_operation(params):
    h = ops.add_bias(ops.convolution_nhwc(params["x"], params["kernel"], 1, 1), params["bias"])
    h = ops.silu(ops.group_norm(h, params["scale"], params["bias"], 2, 1e-5))
    h = ops.max_pool_2x2(ops.concatenate_channels(h, ops.add_to_pixels(h, params["vectors"])))
    h = ops.layer_norm(ops.transpose_convolve(h, params["up"], 2, 1), params["layer"], params["layer"], 1e-5)
    h = ops.checkpoint(lambda h: ops.materialize(ops.matmul(h, params["dense"])), h)
    return ops.sum_of_squares(jnp.sin(ops.einsum("bhwc,bvwc->bhv", h, h)))


LOSSES = {"conv_block": conv_block, "every operation": every_operation}


def loss_of(name):
    """The loss, its parameters, and a direction to change them in."""
    loss, params = LOSSES[name]()
    leaves, tree = jax.tree.flatten(params)
    direction = jax.tree.unflatten(tree, [normal(100 + n, *leaf.shape) for n, leaf in enumerate(leaves)])
    return loss, params, direction


def test_every_operation_is_among_those_tested():
    names = loss_by_every_operation.__code__.co_names
    inside = [code for code in loss_by_every_operation.__code__.co_consts if hasattr(code, "co_names")]
    assert set(routes.__all__) - {"draw_once", "prng_impl"} <= {*names, *(n for code in inside for n in code.co_names)}


def moved(params, direction, step):
    return jax.tree.map(lambda p, d: p + step * d, params, direction)


def assert_close(a, b, tolerance):
    """Within this share of b's largest number, over all leaves."""
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", [pytest.param("conv_block", marks=pytest.mark.slow), "every operation"])
def test_plain_operations_have_forward_and_second_derivatives(name):
    """Against central differences, whose error is of the order of the squared step."""
    step = 1e-6
    with jax.enable_x64(), ops.plain():
        loss, params, direction = loss_of(name)
        gradient = jit(jax.grad(loss))

        @jit
        def derivatives(params, direction):
            """Value, first derivative along the direction, gradient, and Hessian times the direction."""
            return jax.jvp(jax.value_and_grad(loss), (params,), (direction,))

        (_, slope_by_gradient), (slope, curvature) = derivatives(params, direction)
        high, low = (moved(params, direction, sign * step) for sign in (1, -1))
        run = jit(loss)
        np.testing.assert_allclose(slope, (run(high) - run(low)) / (2 * step), rtol=1e-6)
        products = [jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (slope_by_gradient, direction)), strict=True)]
        np.testing.assert_allclose(slope, sum(products), rtol=1e-10)
        difference = jax.tree.map(lambda a, b: (a - b) / (2 * step), gradient(high), gradient(low))
        assert_close(curvature, difference, 1e-6)


@on_cpus
@pytest.mark.parametrize("name", LOSSES)
def test_the_routes_differ_in_rounding_alone(name):
    with jax.enable_x64():
        loss, params, direction = loss_of(name)
        traces = []

        @jit
        def both(params):
            traces.append(ops.uses_cpu_routes())
            return jax.value_and_grad(loss)(params)

        by_routes = both(params)
        with ops.plain():
            plain = both(params)
        assert_close(by_routes, plain, 1e-12)
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (by_routes, plain)), strict=True))
        both(params)
        with ops.plain():
            both(params)
        assert traces == [True, False], "each kind is traced once, and none is taken for the other"
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(loss, (params,), (direction,))
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(jax.grad(loss), (params,), (direction,))


def test_the_convolution_of_2x2_maps_for_tpus_is_the_usual_one():
    """Its values, its gradient, and derivatives of the gradient, in float64; in float32, it rounds no more."""
    with jax.enable_x64():
        x, kernel, direction = normal(0, 3, 2, 2, 64), normal(1, 3, 3, 64, 8) / 16, normal(2, 3, 2, 2, 64)

        def derivatives(name):
            with ops.compile_for(name):
                convolve = partial(ops.convolve, stride=1, padding=1, bias=jnp.arange(8.0))
                gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), (0, 1))
                found = jax.jvp(lambda x: gradient(x, kernel), (x,), (direction,))
                return convolve(x, kernel), found, convolve(x.astype("float32"), kernel.astype("float32"))

        (*of_tpu, rounded), (*usual, usual_rounded) = map(derivatives, ("tpu", "gpu"))
        for one, other in zip(*map(jax.tree.leaves, (of_tpu, usual)), strict=True):
            assert_close(one, other, 1e-13)
        error, own = (float(jnp.sqrt(jnp.mean((y - usual[0]) ** 2))) for y in (rounded, usual_rounded))
        assert rounded.dtype == jnp.float32 and error < 2 * own


def test_plain_ends_with_its_block_even_by_an_error():
    before = ops.uses_cpu_routes()
    with pytest.raises(ZeroDivisionError), ops.plain():
        assert not ops.uses_cpu_routes()
        1 / 0  # noqa: B018
    assert ops.uses_cpu_routes() == before


def in_a_process(program, *arguments, **environment) -> str:
    """What a program prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # compiles twice as fast
    environment = {**os.environ, "XLA_FLAGS": flags, **environment}
    arguments = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_environment_switches_the_routes_off():
    program = """
import jax, jax.numpy as jnp
from jax_ddpm import ops
x = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1))
jax.jvp(lambda *x: ops.silu(ops.convolve(*x, 1, 1)), x, x)
print(ops.uses_cpu_routes())
"""
    assert in_a_process(program, JAX_DDPM_CPU_ROUTES="0").strip() == "False"


RUN = """
import json, sys
if sys.argv[1] == "absent":
    sys.modules["jax_ddpm.cpu.routes"] = None
import jax_ddpm
from jax_ddpm import ops
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import loop
assert ops.uses_cpu_routes() == (sys.argv[1] == "there")
assert callable(loop.finish)
loop.finish = loop.export  # without the closing pictures
folder = jax_ddpm.train(from_json(RunConfig, sys.argv[2], "argument"), sys.argv[3], log=lambda line: None)
losses = [json.loads(line)["loss"] for line in open(folder / "metrics.jsonl")]
model = jax_ddpm.load_model(folder, log=lambda line: None)
print(json.dumps([losses, jax_ddpm.sample(model, 2, seed=3).ravel().tolist()]))
"""


@pytest.mark.slow
@on_cpus
def test_the_package_trains_and_samples_without_routes(tmp_path):
    """Where the module does not exist: the same losses and pictures up to rounding."""
    config = to_json(small(widths=(32,), steps=6, batch_size=8, log_every=1, validate_every=0, sample_every=0))
    there, absent = (json.loads(in_a_process(RUN, kind, config, tmp_path / kind)) for kind in ("there", "absent"))
    for (one, other), tolerance in zip(zip(there, absent, strict=True), (1e-4, 1e-3), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
