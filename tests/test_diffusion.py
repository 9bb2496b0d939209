"""Schedules and the forward process against the algebra of the papers, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_ddpm import diffusion
from jax_ddpm.schedules import make_betas, make_tables
from jax_ddpm.spec.errors import UserError

SCHEDULES = ["linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas"]
ENDS = pytest.mark.parametrize("ends_in_noise", [False, True])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draws(*shape):
    return np.random.default_rng(3).standard_normal(shape)


@ENDS
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_is_the_chain_stepped(schedule, ends_in_noise):
    """Mean and variance of x_t after t + 1 steps of q(x_t | x_{t-1}) are those of q(x_t | x_0)."""
    tables = make_tables(schedule, 50, dtype=np.float64, zero_terminal_snr=ends_in_noise)
    mean, variance = 1.0, 0.0
    for t in range(50):
        mean *= np.sqrt(1 - tables.betas[t])
        variance = variance * (1 - tables.betas[t]) + tables.betas[t]
        np.testing.assert_allclose(tables.sqrt_alpha_bars[t], mean, rtol=1e-12)
        np.testing.assert_allclose(tables.sqrt_one_minus_alpha_bars[t] ** 2, variance, rtol=1e-9)
    x_0, noise, t = draws(3, 2, 2, 1), draws(3, 2, 2, 1) * 2, np.array([0, 20, 49])
    x_t = diffusion.q_sample(tables, x_0, jnp.asarray(t), noise)
    for i in range(3):
        a = np.prod(1 - tables.betas[: t[i] + 1])
        np.testing.assert_allclose(x_t[i], np.sqrt(a) * x_0[i] + np.sqrt(1 - a) * noise[i], rtol=1e-12)


@ENDS
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_is_bayes_rule(schedule, ends_in_noise):
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussian densities."""
    tables = make_tables(schedule, 40, dtype=np.float64, zero_terminal_snr=ends_in_noise)
    x_0, x_t = draws(1, 1, 1, 1), draws(2, 1, 1, 1)[1:]
    for t in range(1, 40):
        beta, prior_variance = tables.betas[t], 1 - tables.alpha_bars[t - 1]
        prior_mean = np.sqrt(tables.alpha_bars[t - 1]) * x_0
        precision = (1 - beta) / beta + 1 / prior_variance
        expected = (np.sqrt(1 - beta) * x_t / beta + prior_mean / prior_variance) / precision
        mean, variance = diffusion.posterior(tables, x_0, x_t, jnp.array([t]))
        np.testing.assert_allclose(mean, expected, rtol=1e-9)
        np.testing.assert_allclose(np.ravel(variance), 1 / precision, rtol=1e-9)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_objectives_tell_the_same(objective):
    tables = make_tables("linear", 1000, dtype=np.float64)
    x_0, noise = draws(4, 2, 2, 3), draws(4, 2, 2, 3)[::-1].copy()
    t = jnp.array([0, 10, 500, 999])
    x_t = diffusion.q_sample(tables, x_0, t, noise)
    answer = diffusion.objective_target(tables, objective, x_0, t, noise)
    # x_T holds 0.6 % of x_0, which costs two digits.
    np.testing.assert_allclose(diffusion.predicted_x_0(tables, objective, x_t, t, answer), x_0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(diffusion.predicted_eps(tables, objective, x_t, t, answer), noise, rtol=0, atol=1e-11)


def test_losses_of_the_objectives_are_one_error_weighted():
    """The error in x_0 is SNR times smaller than in eps, and min-SNR-gamma gives all objectives the same loss."""
    tables = make_tables("cosine", 100, dtype=np.float64)
    x_0, noise, t = draws(5, 2, 2, 1), draws(5, 2, 2, 1)[::-1].copy(), jnp.array([1, 20, 50, 80, 95])
    guess = x_0 + 0.1 * draws(5, 2, 2, 1)[:, ::-1]
    x_t = diffusion.q_sample(tables, x_0, t, noise)
    root, rest = diffusion.extract(tables.sqrt_alpha_bars, t), diffusion.extract(tables.sqrt_one_minus_alpha_bars, t)
    eps = (x_t - root * guess) / rest
    answers = {"x0": guess, "eps": eps, "v": root * eps - rest * guess}
    losses = [
        diffusion.loss_per_image(tables, objective, lambda *_, a=a: a, x_0, t, noise, min_snr_gamma=5.0)
        for objective, a in answers.items()
    ]
    expected = np.minimum(tables.snr[t], 5.0) * np.mean((guess - x_0) ** 2, axis=(1, 2, 3))
    for loss in losses:
        np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_plain_loss_is_the_mean_squared_error():
    tables, x, noise, t = make_tables(dtype=np.float64), draws(3, 2, 2, 1), draws(3, 2, 2, 1), jnp.array([5, 6, 7])
    loss = diffusion.loss(tables, "eps", lambda x_t, t: x_t * 0, x, t, noise)
    np.testing.assert_allclose(loss, np.mean(noise**2), rtol=1e-12)


def test_cosine_follows_its_formula():
    tables = make_tables("cosine", 1000, dtype=np.float64)
    u = np.arange(1, 1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(tables.alpha_bars[:990], f[:990], rtol=1e-9)
    assert tables.betas.max() == 0.999


def test_sigmoid_follows_its_formula():
    tables = make_tables("sigmoid", 1000, dtype=np.float64)
    s = 1 / (1 + np.exp(-(np.arange(1, 1001) / 1000 * 6 - 3)))
    ends = 1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(tables.alpha_bars[:990], ((ends[1] - s) / (ends[1] - ends[0]))[:990], rtol=1e-9)


def test_scaled_linear_and_sigmoid_betas_follow_their_formulas():
    roots = np.sqrt(make_betas("scaled_linear", 1000, 0.00085, 0.012))
    np.testing.assert_allclose(np.diff(roots), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-9)
    betas = make_betas("sigmoid_betas", 1000, 1e-4, 0.02)
    share = (betas - 1e-4) / (0.02 - 1e-4)
    np.testing.assert_allclose(np.log(share / (1 - share)), np.linspace(-6, 6, 1000), rtol=0, atol=1e-9)


def test_zero_terminal_snr_shifts_and_scales_the_signal():
    """Lin et al. 2023, Algorithm 1: sqrt(alpha_bar) is an affine function of the old one, from the old start to 0."""
    old, new = (make_tables(zero_terminal_snr=on, dtype=np.float64).sqrt_alpha_bars for on in (False, True))
    assert new[-1] == 0 and new[0] == pytest.approx(old[0], rel=1e-12)
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=0, atol=1e-12)
    by_hand = make_tables("trained", 3, trained_betas=(0.1, 0.2, 1.0), zero_terminal_snr=True, dtype=np.float64)
    np.testing.assert_array_equal(by_hand.betas, [0.1, 0.2, 1.0])  # it ends in noise already


@settings(max_examples=60, deadline=None)
@given(
    *(st.sampled_from(SCHEDULES), st.integers(2, 1200), st.floats(1e-6, 0.5), st.floats(1e-6, 0.49)),
    st.booleans(),
)
def test_every_schedule_is_a_diffusion(schedule, timesteps, low, more, ends_in_noise):
    tables = make_tables(schedule, timesteps, low, low + more, dtype=np.float64, zero_terminal_snr=ends_in_noise)
    assert tables.timesteps == timesteps
    assert ((tables.betas > 0) & (tables.betas < 1))[:-1].all()
    assert tables.alpha_bars[-1] == 0 if ends_in_noise else tables.betas[-1] < 1
    assert (np.diff(tables.alpha_bars) <= 0).all() and (tables.alpha_bars >= 0).all()
    assert tables.posterior_variance[0] == 0 and (tables.posterior_variance <= tables.betas).all()
    assert tables.posterior_mean_x_0[0] == pytest.approx(1) and tables.posterior_mean_x_t[0] == 0


def test_tables_are_rounded_once():
    exact, rounded = make_tables(dtype=np.float64), make_tables()
    for name, value in vars(exact).items():
        np.testing.assert_array_equal(value.astype(np.float32), getattr(rounded, name))


@pytest.mark.parametrize(
    "arguments",
    [
        *[("linear", 0), ("linear", 10, 0.0, 0.1), ("linear", 10, 0.2, 0.1), ("linear", 10, 0.1, 1.0), ("no", 9)],
        *[("trained", 2), ("trained", 2, 0.1, 0.2, (0.1,)), ("trained", 2, 0.1, 0.2, (0.0, 0.1))],
        *[("trained", 2, 0.1, 0.2, (1.0, 0.1)), ("linear", 2, 0.1, 0.2, (0.1, 0.1))],
        ("linear", 1, 0.1, 0.2, None, True),
    ],
)
def test_wrong_schedules_are_refused(arguments):
    with pytest.raises(UserError):
        make_betas(*arguments)


# The hybrid loss of learned variances


def hybrid(tables, said, x_0, noise, t, variance="learned_range"):
    return diffusion.loss_per_image(tables, "eps", lambda x, t: said, x_0, t, noise, variance=variance)


def test_the_bound_is_the_divergence_of_two_gaussians():
    """The integral of q log2(q / p) on a grid of one pixel, Sigma by Nichol & Dhariwal 2021, eq. 15."""
    tables = make_tables("linear", 1000, dtype=np.float64)
    t, v, x_0, noise, eps = 300, 0.4, 0.25, -0.7, -0.6
    beta, bar, bar_prev = tables.betas[t], tables.alpha_bars[t], tables.alpha_bars[t - 1]
    x_t = np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * noise
    small = (1 - bar_prev) / (1 - bar) * beta

    def mean(x_0):
        return np.sqrt(bar_prev) * beta / (1 - bar) * x_0 + np.sqrt(1 - beta) * (1 - bar_prev) / (1 - bar) * x_t

    sigma2 = np.exp(0.7 * np.log(beta) + 0.3 * np.log(small))
    seen = (x_t - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    x = mean(x_0) + np.sqrt(small) * np.linspace(-12, 12, 200_001)
    log_q, log_p = (
        -0.5 * (x - m) ** 2 / s - 0.5 * np.log(2 * np.pi * s) for m, s in ((mean(x_0), small), (mean(seen), sigma2))
    )
    bits = np.trapezoid(np.exp(log_q) * (log_q - log_p), x) / np.log(2)
    one = np.ones((1, 1, 1, 1))
    said = jnp.concatenate([eps * one, v * one], -1)
    found = hybrid(tables, said, x_0 * one, noise * one, jnp.array([t]))
    np.testing.assert_allclose(found, (eps - noise) ** 2 + 0.001 * 1000 * bits, rtol=1e-9)


def test_the_levels_of_a_pixel_share_all_probability():
    levels = jnp.asarray(np.arange(256) / 127.5 - 1).reshape(256, 1, 1, 1)
    for mean, sigma in ((0.3, 0.01), (-1.2, 0.5), (0.9, 2.0)):
        shares = diffusion.pixel_probability(levels, jnp.full_like(levels, mean), jnp.full_like(levels, sigma))
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
        assert (shares >= 0).all()


def test_the_first_timestep_has_the_likelihood_of_pixels():
    """Of 1/255 around x_0 if the prediction is right, sigma^2 being beta~ of t = 1; -log2 of 1e-12 if it is far off."""
    tables = make_tables("linear", 1000, dtype=np.float64)
    x_0, noise, t = draws(1, 2, 2, 1) * 0.1, draws(1, 2, 2, 1), jnp.array([0])
    sigma = np.sqrt(tables.posterior_variance[1])
    for wrong, share in ((0.0, math.erf(1 / 255 / sigma / math.sqrt(2))), (50.0, 1e-12)):
        said = jnp.concatenate([noise + wrong, -np.ones_like(noise)], -1)
        bits = hybrid(tables, said, x_0, noise, t) - hybrid(tables, said, x_0, noise, t, "beta")
        np.testing.assert_allclose(bits, -np.log2(share), rtol=1e-6)


def test_the_bound_teaches_the_variance_alone():
    tables, x_0, noise, t = make_tables(dtype=np.float64), draws(3, 2, 2, 1), draws(3, 2, 2, 1), jnp.array([0, 7, 999])
    said = jnp.asarray(draws(3, 2, 2, 2))
    of_hybrid, of_simple = (
        jax.grad(lambda said, v=variance: hybrid(tables, said, x_0, noise, t, v).sum())(said)
        for variance in ("learned_range", "beta")
    )
    np.testing.assert_array_equal(of_hybrid[..., :1], of_simple[..., :1])
    assert (of_simple[..., 1:] == 0).all() and (np.abs(of_hybrid[1:, ..., 1:]) > 0).all()
