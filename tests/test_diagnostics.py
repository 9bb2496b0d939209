"""What the final pictures say of a network, for networks of which it is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import rng
from jax_ddpm.data import ImageData, ShardedImages, to_float
from jax_ddpm.schedules import make_tables
from jax_ddpm.training import diagnostics
from tests.small import small

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 1), np.uint8)


class Scaled(nnx.Module):
    """Predicts a multiple of what it is shown."""

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.asarray(factor, jnp.float32))

    def __call__(self, x, t):
        return self.factor[...] * x


def test_predicted_x_0():
    config = small().diffusion
    x_t, t = RNG.standard_normal((3, 2, 4, 4, 1)).astype(np.float32), np.asarray([19, 7, 0])
    roots = np.sqrt(np.cumprod(1 - np.linspace(config.beta_start, config.beta_end, 20)))[t].reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(diagnostics.predict_x_0(Scaled(0), config, x_t, t), x_t / roots, rtol=1e-6)
    seen = diagnostics.predict_x_0(Scaled(1), config, x_t, t)  # everything is noise: eq. 15 with eps = x_t
    np.testing.assert_allclose(seen, x_t * (1 - np.sqrt(1 - roots**2)) / roots, rtol=1e-4, atol=1e-6)
    seen = diagnostics.predict_x_0(Scaled(0.5), small(objective="x0").diffusion, x_t, t)
    np.testing.assert_allclose(seen, x_t / 2, rtol=1e-6)


@pytest.mark.parametrize("objective", ["eps", "x0"])
def test_loss_by_t(objective):
    """A network that always says 0 is wrong by the noise itself, the same at every t, or by the image."""
    config = small(objective=objective, timesteps=100, min_snr_gamma=5.0)
    t, losses = diagnostics.loss_by_t(Scaled(0), config, IMAGES)
    assert (t[0], t[-1], len(t)) == (0, 99, 20)
    noise = rng.normal(rng.key(0, rng.VALIDATION, rng.NOISE, 0), (16, 4, 4, 1))  # a batch of the validation
    expected = np.mean(np.square(noise if objective == "eps" else to_float(IMAGES[:16])))
    np.testing.assert_allclose(losses, np.full(20, expected), rtol=1e-5)


def test_shares_count_every_pixel():
    shares = diagnostics.bin_fractions(np.asarray([-9.0, -1.499, 0.01, 0.02, 1.6]))
    np.testing.assert_allclose(shares[[0, 30, -1]], [0.4, 0.4, 0.2])
    assert shares.sum() == pytest.approx(1)


def test_few_values_have_a_bin_each():
    levels = np.round(np.arange(17) * 255 / 16).astype(np.uint8)
    edges = diagnostics.bin_edges(levels.reshape(1, 17, 1, 1))
    data, outside = (diagnostics.bin_fractions(x, edges) for x in (to_float(levels), np.asarray([-1.4, 1.4])))
    assert np.count_nonzero(data) == 17 and np.ptp(np.flatnonzero(data)) == 16 and not (data * outside).any()
    assert len(diagnostics.bin_edges(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))) == 62


def test_neighbours_come_from_the_training_images():
    images = ImageData("", IMAGES[:30], IMAGES[30:], ())
    numbers = diagnostics.data_statistics(Scaled(0), small(), images, IMAGES[[3, 7]], 8)
    train, held_out = (ShardedImages([a[:4], a[4:]], [4, len(a) - 4], (4, 4, 1)) for a in np.split(IMAGES, [30]))
    parts = ImageData("", train, held_out, ())
    for name, value in diagnostics.data_statistics(Scaled(0), small(), parts, IMAGES[[3, 7]], 8).items():
        np.testing.assert_array_equal(value, numbers[name])
    np.testing.assert_array_equal(numbers["nearest_index"][:, 0], [3, 7])
    np.testing.assert_array_equal(numbers["nearest_distance"][:, 0], [0, 0])
    np.testing.assert_array_equal(numbers["nearest_images"][:, 0], IMAGES[[3, 7]])
    difference = IMAGES[30:, None].astype(float) - IMAGES[None, :30]
    expected = np.sqrt(np.square(difference).mean(axis=(2, 3, 4))).min(axis=1)
    np.testing.assert_allclose(numbers["held_out_distance"], expected)
    assert "held_out_distance" not in diagnostics.data_statistics(
        Scaled(0), small(), ImageData("", IMAGES, IMAGES[:0], ()), IMAGES[:2], 8
    )


def test_the_forward_process_is_equation_4():
    strip, t = diagnostics.forward_process(IMAGES[:3], small(), 5)
    assert strip.shape == (3, 5, 4, 4, 1) and t == [5, 10, 14, 19]
    np.testing.assert_array_equal(strip[:, 0], IMAGES[:3])
    noise = np.asarray(rng.normal(rng.key(0, rng.NOISE, 0), (3, 4, 4, 1)), np.float64)
    alpha_bar = make_tables("linear", 20, 1e-4, 0.4, np.float64).alpha_bars[10]
    x_t = np.sqrt(alpha_bar) * to_float(IMAGES[:3]) + np.sqrt(1 - alpha_bar) * noise
    levels = np.rint((np.clip(x_t, -1, 1) + 1) * 127.5)
    assert np.abs(strip[:, 2] - levels).max() <= 1 and (strip[:, 2] == levels).mean() > 0.95
