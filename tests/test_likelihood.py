"""Bits per dimension on Gaussian data, whose exact bound and density are known; drawn timesteps; wrong input."""

from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import rng
from jax_ddpm.evaluation import bits_per_dimension
from jax_ddpm.evaluation.flow import flow_bits_per_dimension, velocity
from jax_ddpm.evaluation.likelihood import prior_bits
from jax_ddpm.sampling.samplers import image_keys, noise_at
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.likelihood import Bound, strata, timesteps_in

MEAN, STD, T = 0.1, 0.2, 20
SETTINGS = {"timesteps": T, "beta_end": 0.5, "clip": "none"}


class Gaussian(nnx.Module):
    """Predicts E[x_0 | x_t] of pixels of N(MEAN, STD^2) exactly, in the form of the objective.

    With a learned variance, it also predicts the variance of q(x_{t-1} | x_t).
    """

    def __init__(self, config):
        self.config = config

    def __call__(self, x, t):
        tables = schedule_tables(self.config, np.float64)
        bar = jnp.asarray(tables.alpha_bars)[t].reshape(-1, 1, 1, 1)
        x_0 = MEAN + jnp.sqrt(bar) * STD**2 / (bar * STD**2 + 1 - bar) * (x - jnp.sqrt(bar) * MEAN)
        eps = (x - jnp.sqrt(bar) * x_0) / jnp.sqrt(1 - bar)
        prediction = {"x0": x_0, "eps": eps, "v": jnp.sqrt(bar) * eps - jnp.sqrt(1 - bar) * x_0}[self.config.objective]
        if self.config.variance != "learned_range":
            return prediction
        small = tables.log_posterior_variance
        share = (np.log(true_variance(tables)) - small) / (np.log(tables.betas) - small)
        v = jnp.asarray(2 * share - 1)[t].reshape(-1, 1, 1, 1)
        return jnp.concatenate([prediction, jnp.broadcast_to(v, x.shape)], -1)


def true_variance(tables):
    """Of q(x_{t-1} | x_t), by Gaussian regression on x_t. At t = 0: of x_0, which is positive too."""
    kept = STD**2 * tables.alpha_bars + 1 - tables.alpha_bars
    before = STD**2 * tables.alpha_bars_prev + 1 - tables.alpha_bars_prev
    return before - tables.alphas * before**2 / kept


def gaussian_images(count=2, size=64):
    """Levels of pixels at the quantiles of N(MEAN, STD^2), so that their mean and variance are those."""
    shares = (np.arange(count * size**2) + 0.5) / (count * size**2)
    x = np.array([NormalDist(MEAN, STD).inv_cdf(share) for share in shares])
    levels = np.rint((x + 1) * 127.5).astype(np.uint8)
    return np.random.default_rng(0).permutation(levels).reshape(count, size, size, 1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def bound(images, **changes):
    config = DiffusionConfig(**SETTINGS | changes)
    return bits_per_dimension(Gaussian(config), images, config=config, dtype=jnp.float64), config


@pytest.mark.parametrize(("objective", "variance"), [("eps", "beta"), ("v", "posterior"), ("x0", "learned_range")])
def test_every_term_is_the_expectation_by_algebra(objective, variance):
    """KL of two normal distributions whose means differ by the posterior's factor times x_0's error.

    The mean square of that error is Var(x_0 | x_t). Its average over 8,192 pixels is known to about 1.6%.
    """
    found, config = bound(gaussian_images(), objective=objective, variance=variance)
    tables = schedule_tables(config, np.float64)
    bars = tables.alpha_bars[1:]
    small, factor = tables.posterior_variance[1:], tables.posterior_mean_x_0[1:]
    sigma2 = {"beta": tables.betas[1:], "posterior": small, "learned_range": true_variance(tables)[1:]}[variance]
    left = STD**2 * (1 - bars) / (bars * STD**2 + 1 - bars)  # Var(x_0 | x_t)
    nats = 0.5 * (np.log(sigma2 / small) - 1 + small / sigma2 + factor**2 * left / sigma2)
    np.testing.assert_allclose(found.mean_terms[1:], nats / np.log(2), rtol=0.07, atol=1e-3)
    np.testing.assert_allclose(found.mean_terms[1:].sum(), nats.sum() / np.log(2), rtol=0.02)


def test_the_decoder_has_the_probability_of_levels():
    """L_0 by integration over x_1 on a grid, level by level, the outermost levels with their tails."""
    n, normal = np.linspace(-6, 6, 401), NormalDist()
    for levels in ((0, 1), (128, 255)):
        images = np.repeat(np.uint8(levels), 4096).reshape(2, 64, 64, 1)
        found, config = bound(images, objective="v", variance="posterior")
        tables = schedule_tables(config, np.float64)
        root, noise = tables.sqrt_alpha_bars[0], tables.sqrt_one_minus_alpha_bars[0]
        sigma = np.sqrt(tables.posterior_variance[1])
        for level, bits in zip(levels, found.terms[:, 0], strict=True):
            x = level / 127.5 - 1
            mean = MEAN + root * STD**2 / (root**2 * STD**2 + noise**2) * (root * x + noise * n - root * MEAN)
            high = [1.0 if level == 255 else normal.cdf((x + 1 / 255 - m) / sigma) for m in mean]
            low = [0.0 if level == 0 else normal.cdf((x - 1 / 255 - m) / sigma) for m in mean]
            density = np.exp(-0.5 * n**2) / np.sqrt(2 * np.pi)
            np.testing.assert_allclose(bits, np.trapezoid(-np.log2(np.subtract(high, low)) * density, n), rtol=0.05)


def test_the_sum_is_the_information_that_x_1_has_of_x_0():
    """The exact reverse chain: all terms but L_0 add up to KL(q(x_1 | x_0), p(x_1)), whatever T is.

    That is the capacity of a Gaussian channel, log2(1 + SNR STD^2) / 2, and what x_T's own distribution costs.
    """
    found, config = bound(gaussian_images(), objective="x0", variance="learned_range")
    tables = schedule_tables(config, np.float64)
    mean, variance = tables.sqrt_alpha_bars[-1] * MEAN, tables.alpha_bars[-1] * (STD**2 - 1) + 1
    start = 0.5 * (variance + mean**2 - 1 - np.log(variance)) / np.log(2)
    information = 0.5 * np.log2(1 + tables.snr[0] * STD**2)
    np.testing.assert_allclose((found.per_image - found.terms[:, 0]).mean(), information + start, rtol=0.01)


def test_the_prior_is_the_divergence_of_two_gaussians():
    x_0, tables = np.linspace(-1, 1, 8).reshape(2, 2, 2, 1), schedule_tables(DiffusionConfig(**SETTINGS), np.float64)
    bar, x = tables.alpha_bars[-1], np.linspace(-12, 12, 20_001)
    log_q = -0.5 * (x - np.sqrt(bar) * x_0[..., None]) ** 2 / (1 - bar) - 0.5 * np.log(1 - bar)
    q = np.exp(log_q) / np.sqrt(2 * np.pi)
    nats = np.trapezoid(q * (log_q + 0.5 * x**2), x)
    np.testing.assert_allclose(prior_bits(tables, x_0), nats.mean(axis=(1, 2, 3)) / np.log(2), rtol=1e-9)
    pure = schedule_tables(DiffusionConfig(zero_terminal_snr=True, objective="v"), np.float64)
    np.testing.assert_array_equal(prior_bits(pure, x_0), 0)


def test_drawn_timesteps_estimate_the_whole_bound():
    """Each is a term of the whole bound. The error is that of a mean over images; each t of a range is drawn."""
    images, told = gaussian_images(count=200, size=8), []
    config = DiffusionConfig(**SETTINGS)
    settings = {"config": config, "batch_size": 100, "progress": told.append}
    whole = bits_per_dimension(Gaussian(config), images, **settings)
    assert told == 2 * list(range(1, T + 1))
    drawn = bits_per_dimension(Gaussian(config), images, 5, **settings)
    assert drawn.t.shape == (200, 5) and (drawn.t[:, 0] == 0).all()
    np.testing.assert_allclose(drawn.terms, np.take_along_axis(whole.terms, drawn.t, 1), rtol=1e-6)
    np.testing.assert_allclose(whole.per_image, whole.terms @ np.ones(T) + whole.prior, rtol=1e-12)
    difference = drawn.per_image - whole.per_image
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(200)
    assert drawn.value == drawn.per_image.mean()
    assert drawn.standard_error == pytest.approx(np.std(drawn.per_image, ddof=1) / np.sqrt(200))
    for column, first, last in zip(drawn.t.T, drawn.edges[:-1], drawn.edges[1:] - 1, strict=True):
        assert set(column) == set(range(first, last + 1))
    fewer = bits_per_dimension(Gaussian(config), images[:150], **settings)  # 50 in the second batch, padded
    np.testing.assert_allclose(fewer.terms, whole.terms[:150], rtol=1e-6)
    assert np.isnan(Bound(whole.edges, whole.t[:1], whole.terms[:1], whole.prior[:1]).standard_error)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 17, 1000])
def test_ranges_hold_every_timestep_once(timesteps):
    for count in {min(2, timesteps), min(5, timesteps), (timesteps + 1) // 2 if timesteps > 3 else timesteps, None}:
        edges = strata(timesteps, count)
        assert len(edges) == (count or timesteps) + 1 and (np.diff(edges) > 0).all()
        assert (edges[0], edges[1], edges[-1]) == (0, 1, timesteps)
        last = timesteps_in(edges, np.full((1, len(edges) - 1), np.nextafter(np.float32(1), np.float32(0))))
        np.testing.assert_array_equal(last, [edges[1:] - 1])


@pytest.mark.parametrize(
    ("images", "count", "changes", "words"),
    [
        (np.zeros((2, 4, 4, 1)), None, {}, "uint8"),
        (np.zeros((0, 4, 4, 1), np.uint8), None, {}, "shape"),
        (np.zeros((4, 4, 1), np.uint8), None, {}, "shape"),
        (np.zeros((2, 4, 4, 1), np.uint8), 1, {}, "from|expected 2"),
        (np.zeros((2, 4, 4, 1), np.uint8), T + 1, {}, "expected 2 to T = 20"),
        (np.zeros((2, 4, 4, 1), np.uint8), None, {"zero_terminal_snr": True}, "objective"),
        (np.zeros((2, 4, 4, 1), np.uint8), None, {"variance": "none"}, "variance"),
    ],
)
def test_wrong_input_is_refused(images, count, changes, words):
    config = DiffusionConfig(**SETTINGS | changes)
    with pytest.raises(UserError, match=words):
        bits_per_dimension(Gaussian(config), images, count, config=config)


def test_a_network_without_variance_is_refused():
    config, plain = DiffusionConfig(**SETTINGS, variance="learned_range"), Gaussian(DiffusionConfig(**SETTINGS))
    with pytest.raises(UserError, match="predicts no variance"):
        bits_per_dimension(plain, gaussian_images(1, 4), config=config)


# The probability-flow ODE


def test_the_flows_density_is_exact_on_gaussian_data_to_second_order():
    """The ODE keeps the distance from the mean in standard deviations, so x_T and p(x) have closed forms."""
    config = DiffusionConfig(clip="none")
    images, errors, told = gaussian_images(2, 4), [], []
    bars = schedule_tables(config, np.float64).alpha_bars[[0, -1]]
    means, spreads = np.sqrt(bars) * MEAN, np.sqrt(bars * STD**2 + 1 - bars)
    noise = np.asarray(noise_at(image_keys(0, [0, 1], rng.LIKELIHOOD), 0, (4, 4, 1), jnp.float64))
    x = np.sqrt(bars[0]) * (images / 127.5 - 1) + np.sqrt(1 - bars[0]) * noise
    x_T = means[1] + (x - means[0]) / spreads[0] * spreads[1]
    log_p = -0.5 * x_T**2 + np.log(spreads[1] / spreads[0])
    log_q = -0.5 * noise**2 - 0.5 * np.log(1 - bars[0])
    exact = (log_q - log_p).mean(axis=(1, 2, 3)) / np.log(2)
    for steps in (21, 41, 81):
        settings = {"config": config, "dtype": jnp.float64, "progress": told.append}
        found = flow_bits_per_dimension(Gaussian(config), images, steps, **settings)
        errors.append(np.abs(found.state - exact).max())
    assert errors[-1] < 2e-3 and told[-1] == 80
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.1)
    np.testing.assert_array_equal(found.per_image, found.decoder + found.state)


def test_the_trace_is_estimated_without_bias():
    """Of a Jacobian with a part outside its diagonal: eps = x + x's neighbour / 2, whose divergence is 1 per value."""
    tables, t = schedule_tables(DiffusionConfig(), np.float64), jnp.full(4000, 300)
    x, signs = np.random.default_rng(1).choice([-1.0, 1.0], (2, 4000, 1, 4, 1))
    of_neighbours = partial(velocity, tables, "eps", lambda x, t: x + jnp.roll(x, 1, axis=2) / 2)
    _, divergence = jax.jit(of_neighbours)(x, t, signs)
    n = tables.sqrt_one_minus_alpha_bars[300]
    assert np.std(divergence) > 0.1
    assert abs(np.mean(divergence) - (n - n**2)) < 4 * np.std(divergence) / np.sqrt(4000)


@pytest.mark.parametrize(
    ("images", "steps", "changes", "words"),
    [
        (np.zeros((2, 4, 4, 1)), None, {}, "uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), 1, {}, "expected 2 to T = 20"),
        (np.zeros((2, 4, 4, 1), np.uint8), None, {"zero_terminal_snr": True, "objective": "v"}, "more than 0"),
    ],
)
def test_wrong_input_of_the_flow_is_refused(images, steps, changes, words):
    config = DiffusionConfig(**SETTINGS | changes)
    with pytest.raises(UserError, match=words):
        flow_bits_per_dimension(Gaussian(config), images, steps, config=config)
