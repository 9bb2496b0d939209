"""A sampler in bfloat16 casts its weights once, before the loop over its steps."""

from contextlib import nullcontext

import jax
import numpy as np
import pytest

from jax_ddpm import unets, weights
from jax_ddpm.jaxprs import inner_jaxprs
from jax_ddpm.plan import target
from jax_ddpm.plan.programs import lower_sampling
from jax_ddpm.sampling import samplers
from jax_ddpm.spec.diffusion_config import SamplerConfig
from parity_tests.networks import CASES, Case
from tests.small import small

CONFIG = small(precision="bfloat16")
FEW_STEPS = SamplerConfig("ddim", num_steps=2)


def without_casts(monkeypatch):
    monkeypatch.setattr(samplers, "cast_once", lambda *networks: nullcontext())


def casts_of_kernels(jaxpr, in_loop: bool = False) -> list[bool]:
    """For each cast of an array (K, K, I, O) from float32 to bfloat16: whether it is inside a loop."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type" and equation.outvars[0].aval.dtype.name == "bfloat16":
            operand = equation.invars[0].aval
            if (
                operand.dtype.name == "float32"
                and len(operand.shape) == 4
                and operand.shape[0] == operand.shape[1] == 3
            ):
                found.append(in_loop)
        for inner in inner_jaxprs(equation):
            found += casts_of_kernels(inner, in_loop or equation.primitive.name in ("scan", "while"))
    return found


def casts_in_program() -> list[bool]:
    lowered = lower_sampling(CONFIG, target.devices_of(target.parse_target("cpu")), "cpu", 8, (8, 8, 1))
    return casts_of_kernels(lowered.jaxpr.jaxpr)


def test_no_kernel_is_cast_in_a_step(monkeypatch):
    assert casts_in_program() and not any(casts_in_program())
    jax.clear_caches()
    without_casts(monkeypatch)
    assert all(casts_in_program())
    jax.clear_caches()


def draw(config, channels: int, size: int) -> np.ndarray:
    network = unets.build_in("bfloat16", config, channels)
    weights.initialise(network, 0)
    shape = size, size, channels
    return np.asarray(samplers.sample_indices(network, CONFIG.diffusion, shape, 0, [0, 1], sampler=FEW_STEPS)[0])


@pytest.mark.parametrize("name", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(CASES))])
def test_the_images_have_the_same_bits(monkeypatch, name):
    """name: of a case; None: a smaller network."""
    case = Case(CONFIG.network, 1, 4) if name is None else CASES[name]
    once = draw(case.config, case.channels, case.size)
    jax.clear_caches()
    without_casts(monkeypatch)
    np.testing.assert_array_equal(once, draw(case.config, case.channels, case.size))
    jax.clear_caches()
