"""Schedules, objectives and samplers of the user's own."""

import numpy as np
import pytest

import jax_ddpm
import torch_ref
from jax_ddpm.diffusion import loss_per_image
from jax_ddpm.sampling.reverse import make_step, reverse_process
from jax_ddpm.schedules import linear_betas, schedule_tables
from jax_ddpm.spec import registered
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.json_text import from_json, to_json
from torch_ref.schedules import schedule_tables as torch_ref_tables


@pytest.fixture(autouse=True)
def empty():
    """No registered parts, before and after."""
    yield
    for table in (registered.SCHEDULES, registered.OBJECTIVES, registered.SAMPLERS):
        table.clear()


def v(x_0, noise, level):
    return level.signal * noise - level.sigma * x_0


def x_0_of_v(x_t, prediction, level):
    return level.signal * x_t - level.sigma * prediction


def ddim(x_t, x_0, eps, now, below):
    return below.signal * x_0 + below.sigma * eps


def draw(sampler, **settings):
    config = DiffusionConfig(timesteps=20, beta_end=0.4, **settings)

    def network(x, t):
        return 0.5 * x

    step = make_step(schedule_tables(config), config, SamplerConfig(sampler), np.arange(20)[::-1], network)
    x_T = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    return np.asarray(reverse_process(step, network, x_T, 20, lambda t: np.ones_like(x_T))[0])


def test_known_parts_written_again_are_the_same():
    jax_ddpm.register_schedule("mine", lambda timesteps: linear_betas(timesteps, 1e-3, 0.3))
    jax_ddpm.register_objective("mine", v, x_0_of_v)
    jax_ddpm.register_sampler("mine", ddim)
    ours, theirs = DiffusionConfig(10, "mine"), DiffusionConfig(10, beta_start=1e-3, beta_end=0.3)
    for tables in (schedule_tables, torch_ref_tables):
        assert np.array_equal(tables(ours).alpha_bars, tables(theirs).alpha_bars)
    x_0, noise = np.random.default_rng(0).normal(size=(2, 10, 4, 4, 1)).astype(np.float32)
    arguments = lambda x, t: 0.3 * x, x_0, np.arange(10), noise
    for settings in ({}, {"min_snr_gamma": 5.0}, {"p2_gamma": 1.0}):
        losses = [loss_per_image(schedule_tables(theirs), name, *arguments, **settings) for name in ("mine", "v")]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(draw("mine", objective="mine"), draw("ddim", objective="v"), atol=1e-6)
    assert SamplerConfig("mine").is_deterministic and not SamplerConfig("ddpm").is_deterministic


def test_a_sampler_with_noise_is_not_deterministic():
    jax_ddpm.register_sampler("noisy", lambda x_t, x_0, eps, now, below, noise: x_0 + below.sigma * noise)
    assert not SamplerConfig("noisy").is_deterministic
    assert np.isfinite(draw("noisy")).all()


def test_settings_keep_the_names():
    jax_ddpm.register_schedule("mine", linear_betas)
    config = DiffusionConfig(schedule="mine")
    assert from_json(DiffusionConfig, to_json(config), "text") == config
    registered.SCHEDULES.clear()
    with pytest.raises(
        jax_ddpm.UserError, match=r"schedule = mine: expected one of linear, .*\n.*once it is registered"
    ):
        config.check()


def test_another_function_of_the_same_name_replaces_the_first():
    config = DiffusionConfig(timesteps=10, schedule="mine")
    for end in (0.1, 0.2):
        jax_ddpm.register_schedule("mine", lambda timesteps, end=end: linear_betas(timesteps, 1e-3, end))
        assert schedule_tables(config, np.float64).betas[-1] == end


def test_compiled_programs_follow_a_replaced_function():
    model = zero_network()
    config = DiffusionConfig(timesteps=4)
    drawn = []
    for factor in (0.5, 0.25):
        jax_ddpm.register_sampler("mine", lambda x_t, x_0, eps, now, below, factor=factor: factor * x_0)
        settings = {"sampler": "mine", "num_steps": 1, "config": config, "image_shape": (8, 8, 1)}
        drawn.append(jax_ddpm.sample(model, 1, **settings))
    np.testing.assert_allclose(drawn[0], 2 * drawn[1], rtol=1e-6)


def zero_network():
    from flax import nnx

    class Zero(nnx.Module):
        def __call__(self, x, t):
            return 0 * x

    return Zero()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jax_ddpm.register_schedule("cosine", linear_betas), "'cosine' exists already"),
        (lambda: jax_ddpm.register_schedule("a b", linear_betas), "name of the schedule = 'a b': expected letters"),
        (
            lambda: jax_ddpm.register_schedule("x", lambda t: np.ones(3)),
            "shape of the schedule x = (3,): expected (10,)",
        ),
        (lambda: jax_ddpm.register_schedule("x", lambda t: np.full(t, 2.0)), "betas of the schedule x = 2 to 2"),
        (lambda: jax_ddpm.register_schedule("x", lambda: 0), "The schedule x failed on arrays of NumPy (TypeError"),
        (lambda: jax_ddpm.register_objective("x", v, lambda x, p, level: x - p), "error of predicted_x_0"),
        (lambda: jax_ddpm.register_objective("x", v, lambda x, p, level: 0.8 * x - 0.6 * p), "error of predicted_x_0"),
        (
            lambda: jax_ddpm.register_objective("x", lambda x_0, noise, level: x_0**3, lambda x, p, level: np.cbrt(p)),
            "curvature of predicted_x_0",
        ),
        (lambda: jax_ddpm.register_sampler("x", lambda *a: a[0][0]), "result of the sampler x in its last step"),
        (lambda: torch_ref.register_sampler("ddim", ddim), "A sampler 'ddim' exists already"),
        (lambda: SamplerConfig("none").check(10), "sampler = none: expected one of ddpm"),
        (lambda: DiffusionConfig(objective="none").check(), "objective = none: expected one of eps"),
    ],
)
def test_wrong_parts(call, message):
    with pytest.raises(jax_ddpm.UserError) as error:
        call()
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_continuous_objectives_refuse_them():
    jax_ddpm.register_sampler("mine", ddim)
    with pytest.raises(jax_ddpm.UserError, match="expected heun, euler or midpoint"):
        jax_ddpm.sample(
            zero_network(), 1, sampler="mine", config=DiffusionConfig(objective="flow"), image_shape=(8, 8, 1)
        )
