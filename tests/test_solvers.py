"""Samplers on Gaussian data, whose exact score is known: orders of convergence, and where the samples end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm.sampling import reverse, samplers
from jax_ddpm.sampling import steps as sampler_steps
from jax_ddpm.schedules import make_tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError

MEAN, STD = 0.3, 0.5


def gaussian(config, std=STD, variance=None):
    """predict(x, t) -> eps of N(MEAN, std^2) data, exactly; variance(t): a learned share for all pixels besides."""
    bars = jnp.asarray(schedule_tables(config, np.float64).alpha_bars)

    def predict(x, t):
        bar = bars[t].reshape(-1, 1, 1, 1)
        eps = jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * MEAN) / (bar * std**2 + 1 - bar)
        if variance is None:
            return eps
        return jnp.concatenate([eps, jnp.broadcast_to(variance(t).reshape(-1, 1, 1, 1), x.shape)], -1)

    return predict


def states(config, settings, x_T, predict, draw_noise=lambda t: None):
    chain = reverse.sampling_timesteps(config, settings)
    tables = schedule_tables(config, np.float64, chain)
    step = reverse.make_step(tables, config, settings, chain, predict)
    history = sampler_steps.first_history(x_T) if settings.sampler == "dpmpp" else None
    walk = jax.jit(
        lambda x_T: reverse.reverse_process(
            step, predict, x_T, chain, draw_noise, num_frames=len(chain) + 1, history=history
        )[1]
    )
    return chain, np.asarray(walk(x_T))


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("dpmpp", 2), ("heun", 2)])
def test_order_of_convergence(sampler, order):
    """Errors at the noise level of t = 0 against the exact solution of the probability-flow ODE.

    That keeps x's distance from the mean of q(x_t), in standard deviations (Song et al. 2021b, eq. 13, for a Gaussian).
    The chains are even in t, without rounding: 960 = 60 * 16.
    """
    with jax.enable_x64(True):
        config = DiffusionConfig(timesteps=961, clip="none")
        bars = make_tables(timesteps=961, dtype=np.float64).alpha_bars
        x_T = np.linspace(-2, 2, 5).reshape(1, 5, 1, 1)
        score = (x_T - np.sqrt(bars[960]) * MEAN) / np.sqrt(bars[960] * STD**2 + 1 - bars[960])
        exact = np.sqrt(bars[0]) * MEAN + score * np.sqrt(bars[0] * STD**2 + 1 - bars[0])
        errors = []
        for intervals in (60, 120, 240):
            settings = SamplerConfig(sampler, intervals + 1, "linspace")
            chain, found = states(config, settings, jnp.asarray(x_T), gaussian(config))
            assert (np.diff(chain) == -960 // intervals).all()
            errors.append(np.abs(found[-2] - exact).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), order, atol=0.1)


def test_heun_from_nearly_pure_noise_ends_nearer_than_ddim():
    """The schedule "cosine" begins at sigma = 20,000, from where the mean of two slopes would lead far away."""
    config, errors = DiffusionConfig(schedule="cosine", clip="none"), {}
    score = np.linspace(-2, 2, 5).reshape(1, 5, 1, 1)
    with jax.enable_x64(True):
        for sampler in ("heun", "ddim"):
            _, found = states(config, SamplerConfig(sampler, 10), jnp.asarray(score), gaussian(config))
            errors[sampler] = np.abs(found[-1] - (MEAN + STD * score)).max()
    assert errors["heun"] < 0.05 < errors["ddim"]


def ends(config, settings, predict, count=40_000):
    """Mean and variance of x_0 over many pixels."""
    with jax.enable_x64(True):

        def draw(t):
            return jax.random.normal(jax.random.fold_in(jax.random.key(1), t), (1, count, 1, 1), jnp.float64)

        _, found = states(config, settings, draw(config.timesteps), predict, draw)
    return found[-1].mean(), found[-1].var()


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "logsnr"])
def test_ancestral_sampling_ends_in_the_exact_mean_and_variance(spacing):
    """With the true variance of p(x_s | x_t), told as a learned one, every chain is exact but for sampling errors.

    The true variance is beta~ + (factor of x_0 in the posterior mean)^2 Var(x_0 | x_t). The last step has no noise:
    there the variance of E[x_0 | x_t] remains, STD^4 bar / (bar STD^2 + 1 - bar) by Gaussian regression.
    """
    config = DiffusionConfig(timesteps=100, beta_end=0.2, clip="none", variance="learned_range")
    settings = SamplerConfig("ddpm", 12, spacing)
    chain = reverse.sampling_timesteps(config, settings)
    tables = schedule_tables(config, np.float64, chain)
    bars = tables.alpha_bars
    left = STD**2 * (1 - bars) / (bars * STD**2 + 1 - bars)  # Var(x_0 | x_t)
    true = np.log(tables.posterior_variance + tables.posterior_mean_x_0**2 * left)
    share = (true - tables.log_posterior_variance) / (np.log(tables.betas) - tables.log_posterior_variance)
    with jax.enable_x64(True):
        mean, variance = ends(config, settings, gaussian(config, variance=lambda t: jnp.asarray(2 * share - 1)[t]))
    bar = bars[chain[-1]]
    start = 1 - (bars[chain[0]] * STD**2 + 1 - bars[chain[0]])  # x_T ~ N(0, 1) instead of q(x_T)
    expected = STD**4 * bar / (bar * STD**2 + 1 - bar)
    assert abs(mean - MEAN) < 0.02
    np.testing.assert_allclose(variance, expected, rtol=0.03, atol=abs(start))


def test_the_two_fixed_variances_are_exact_where_they_should_be():
    """Ho et al. 2020, section 3.2: beta for data of variance 1, beta~ for a single image."""
    for variance, std, spread in (("beta", 1.0, 1.0), ("posterior", 0.0, 0.0)):
        config = DiffusionConfig(timesteps=100, beta_end=0.2, clip="none", variance=variance)
        with jax.enable_x64(True):
            mean, found = ends(config, SamplerConfig("ddpm", 20, "linspace"), gaussian(config, std))
        np.testing.assert_allclose((mean, found), (MEAN, spread), atol=0.02)


def run(settings, clip="x0", objective="eps"):
    """States of a bounded formula with the same noise."""
    config = DiffusionConfig(timesteps=100, beta_end=0.2, clip=clip, objective=objective, variance="posterior")
    with jax.enable_x64(True):
        noise = jnp.asarray(np.random.default_rng(2).standard_normal((101, 2, 3, 3, 1)))
        return states(config, settings, noise[100], lambda x, t: jnp.sin(3 * x + t[0]), lambda t: noise[t])[1]


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("spacing", "clip"), [("trailing", "x0"), ("logsnr", "dynamic"), ("linspace", "state")])
def test_samplers_that_are_one_another(spacing, clip):
    few = (7, spacing)
    same(
        run(SamplerConfig("ddim", *few, eta=1.0), clip), run(SamplerConfig("ddpm", *few), clip)
    )  # Song et al., sec. 4.1
    same(run(SamplerConfig("euler", *few), clip), run(SamplerConfig("ddim", *few), clip))
    for sampler in ("dpmpp", "heun"):
        one, two = (run(SamplerConfig(sampler, n, spacing), clip) for n in (1, 2))
        same(one, run(SamplerConfig("ddim", 1, spacing), clip))  # lower order at the ends
        if sampler == "dpmpp":
            same(two, run(SamplerConfig("ddim", 2, spacing), clip))
        else:
            assert np.abs(two - run(SamplerConfig("ddim", 2, spacing), clip)).max() > 1e-3


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "logsnr"])
def test_a_chain_of_all_timesteps_is_the_whole_process(spacing):
    np.testing.assert_array_equal(run(SamplerConfig("ddpm", 100, spacing)), run(SamplerConfig()))


def test_dynamic_thresholding_by_hand():
    """The 0.75-quantile of |x| = 0, 1, ..., 4 is 3; of small values 1 takes its place."""
    with jax.enable_x64(True):
        x = jnp.array([[0, -1, 2, -3, 4], [0, 0.1, 0.2, -0.3, 0.4]]).reshape(2, 5, 1, 1)
        found = sampler_steps.threshold(x, "dynamic", 0.75).reshape(2, 5)
    np.testing.assert_allclose(found, [[0, -1 / 3, 2 / 3, -1, 1], [0, 0.1, 0.2, -0.3, 0.4]], atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_steps": 1001}, "num_steps = 1001: expected 1 to T = 1000"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"sampler": "ddim", "eta": 1.5}, "eta = 1.5: expected 0 to 1"),
        ({"sampler": "ddim", "eta": -0.1}, "eta = -0.1"),
        ({"sampler": "heun", "eta": 0.5}, "eta = 0.5: only ddim has eta, not heun"),
        ({"sampler": "plms"}, "expected one of ddpm, ddim"),
        ({"spacing": "karras"}, "expected one of linspace"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        samplers.sample_indices(nnx.Dropout(0), DiffusionConfig(), (4, 4, 1), 0, [0], sampler=SamplerConfig(**wrong))


def test_a_learned_variance_wants_a_network_that_has_one():
    config = DiffusionConfig(timesteps=9, beta_end=0.2, variance="learned_range")
    with pytest.raises(UserError, match="learned_variance"):
        states(config, SamplerConfig(), jnp.ones((1, 2, 2, 1)), lambda x, t: x, lambda t: jnp.ones((1, 2, 2, 1)))
