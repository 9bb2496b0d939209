"""Inversion, interpolation, img2img and inpainting against algebra: networks that know the exact noise."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import diffusion, rng
from jax_ddpm.sampling import editing, inpainting, samplers
from jax_ddpm.sampling.reverse import sampling_timesteps
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError

MEAN, STD, CORRELATION = 0.2, 0.5, 0.8


class Gaussian(nnx.Module):
    """The exact eps of images of two pixels of N(MEAN, STD^2) with that correlation."""

    def __init__(self, config, correlation=0.0):
        self.config, self.correlation = config, correlation

    def __call__(self, x, t):
        bar = jnp.asarray(schedule_tables(self.config, np.float64).alpha_bars)[t].reshape(-1, 1)
        pixels = x.reshape(len(x), 2) - jnp.sqrt(bar) * MEAN
        sum_, difference = (pixels[:, :1] + s * pixels[:, 1:] for s in (1, -1))  # the covariance's eigenvectors
        large, small = (bar * STD**2 * (1 + s * self.correlation) + 1 - bar for s in (1, -1))
        score = jnp.concatenate([sum_ / large + difference / small, sum_ / large - difference / small], 1) / 2
        return (jnp.sqrt(1 - bar) * score).reshape(x.shape)


class Told(nnx.Module):
    """Predicts the same whatever it sees."""

    def __init__(self, prediction):
        self.prediction = nnx.data(jnp.asarray(prediction))

    def __call__(self, x, t):
        return jnp.broadcast_to(self.prediction, x.shape)


class Formula(nnx.Module):
    """Some bounded function of the pixel, its neighbour and t."""

    def __call__(self, x, t):
        return jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t.astype(x.dtype)).reshape(-1, 1, 1, 1)


@pytest.fixture
def network():
    return Formula()


CONFIG = DiffusionConfig(timesteps=25, beta_end=0.3)
PIXELS = DiffusionConfig(timesteps=100, beta_end=0.2, clip="none", variance="posterior")
IMAGES = np.random.default_rng(3).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)


def test_inversion_follows_the_exact_ode_and_comes_back():
    """A Gaussian's ODE keeps the distance from the mean in standard deviations; Euler's error halves with the step."""
    config = DiffusionConfig(timesteps=1000, clip="x0")
    x = np.linspace(-1.5, 1.5, 8).reshape(4, 1, 2, 1)
    bar = schedule_tables(config, np.float64).alpha_bars[-1]
    exact = np.sqrt(bar) * MEAN + (x - MEAN) / STD * np.sqrt(bar * STD**2 + 1 - bar)
    there, back = [], []
    with jax.enable_x64(True):
        for steps in (125, 250, 500, 1000):
            settings = {"sampler": SamplerConfig("ddim", steps), "config": config, "dtype": jnp.float64}
            x_T = editing.invert(Gaussian(config), x, **settings)
            there.append(np.abs(x_T - exact).max())
            back.append(np.abs(editing.reconstruct(Gaussian(config), x_T, **settings) - x).max())
    assert there[-1] < 1e-2 and back[-1] < 1e-2
    np.testing.assert_allclose(np.log2(np.divide(back[:-1], back[1:])), 1, atol=0.2)
    assert there[0] > there[1] > there[2] > there[3]


def test_inversion_is_exact_where_the_noise_does_not_depend_on_the_state():
    """Then every step up undoes one down, whatever the chain, and x_T is eq. 4 of Ho et al. 2020."""
    eps = np.random.default_rng(1).standard_normal((3, 8, 8, 1))
    with jax.enable_x64(True):
        for spacing in ("leading", "logsnr", "trailing"):
            settings = {"sampler": SamplerConfig("ddim", 7, spacing), "config": CONFIG, "dtype": jnp.float64}
            x_T = editing.invert(Told(eps), IMAGES, **settings)
            bar = np.cumprod(1 - np.linspace(1e-4, 0.3, 25))[sampling_timesteps(CONFIG, settings["sampler"])[0]]
            np.testing.assert_allclose(x_T, np.sqrt(bar) * IMAGES + np.sqrt(1 - bar) * eps, atol=1e-12)
            np.testing.assert_allclose(editing.reconstruct(Told(eps), x_T, **settings), IMAGES, atol=1e-12)


@pytest.mark.parametrize("objective", ["x0", "v"])
def test_inversion_goes_by_the_objective(objective):
    """The same exact Gaussian told as eps, x_0 or v has the same x_T."""
    config = DiffusionConfig(timesteps=100, beta_end=0.2)
    told = replace(config, objective=objective)
    x = np.linspace(-1, 1, 6).reshape(3, 1, 2, 1)
    with jax.enable_x64(True):
        tables = schedule_tables(config, np.float64)

        class Other(nnx.Module):
            def __call__(self, x, t):
                eps = Gaussian(config)(x, t)
                root, rest = (
                    diffusion.extract(a, t) for a in (tables.sqrt_alpha_bars, tables.sqrt_one_minus_alpha_bars)
                )
                x_0 = (x - rest * eps) / root
                return x_0 if objective == "x0" else root * eps - rest * x_0

        settings = {"sampler": SamplerConfig("ddim", 10), "dtype": jnp.float64}
        x_T = editing.invert(Gaussian(config), x, config=config, **settings)
        np.testing.assert_allclose(editing.invert(Other(), x, config=told, **settings), x_T, atol=1e-12)


def test_slerp():
    a, b = np.array([[3.0, 0.0]]), np.array([[0.0, 3.0]])
    weights = np.linspace(0, 1, 7)
    angles = weights * np.pi / 2
    found = editing.slerp(a, b, weights)
    np.testing.assert_allclose(found[:, 0], 3 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    x /= np.linalg.norm(x.reshape(2, -1), axis=1).reshape(2, 1, 1, 1)
    on_the_sphere = editing.slerp(*x, weights)
    assert on_the_sphere.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(on_the_sphere.reshape(7, -1), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(editing.slerp(a, 2 * a, weights)[:, 0, 0], 3 + 3 * weights)  # the straight line


def test_interpolation_ends_in_the_pictures_of_the_seeds(network):
    settings = {"sampler": SamplerConfig("heun", 5), "config": CONFIG, "image_shape": (8, 8, 1)}
    ends = samplers.sample(network, seeds=[3, 7], **settings)
    np.testing.assert_array_equal(editing.interpolate(network, 3, 7, 2, **settings), ends)
    between = editing.interpolate(network, 3, 7, 5, **settings)
    np.testing.assert_allclose(between[[0, -1]], ends, atol=1e-5)
    assert len(between) == 5 and np.abs(np.diff(between, axis=0)).max(axis=(1, 2, 3)).min() > 1e-2


def test_img2img_takes_the_noise_of_x_t_away_again():
    """A network that tells the very noise that was added leads back to the images."""
    noise = np.stack([rng.normal(rng.key(9, rng.SAMPLING, i, 25), (8, 8, 1)) for i in range(3)])
    settings = {"sampler": SamplerConfig("ddim", 6), "config": CONFIG}
    for start_t in (4, 13, 24):
        again = editing.img2img(Told(noise), IMAGES, start_t, 9, **settings)
        np.testing.assert_allclose(again, IMAGES, atol=1e-4)
    other = editing.img2img(Told(noise), IMAGES, 13, 8, **settings)
    assert np.abs(other - IMAGES).max() > 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_img2img_keeps_the_image_at_first_and_forgets_it_at_last(network, sampler):
    config = DiffusionConfig(timesteps=200, beta_end=0.2)
    settings = {"sampler": SamplerConfig(sampler), "config": config}
    kept = editing.img2img(network, IMAGES, 0, 9, **settings)
    np.testing.assert_allclose(kept, IMAGES, atol=0.1)
    drawn = samplers.sample(network, 3, 9, image_shape=(8, 8, 1), **settings)
    forgotten = editing.img2img(network, IMAGES, 199, 9, **settings)
    np.testing.assert_allclose(forgotten, drawn, atol=0.05)  # 4e-5 of the image is left
    one_each = editing.img2img(network, IMAGES[:2], 100, seeds=[9, 9], **settings)
    assert np.abs(one_each - editing.img2img(network, IMAGES[:2], 100, 9, **settings)).max(axis=(1, 2, 3))[0] < 1e-5


def repaint_loop(predict, images, mask, chain, resamplings, jump, draw):
    """Lugmayr et al. 2022, Algorithm 1 with jumps, level by level in NumPy: level k is above k steps of the chain."""
    betas = np.linspace(PIXELS.beta_start, PIXELS.beta_end, PIXELS.timesteps)
    levels = np.append(1, np.cumprod(1 - betas)[np.sort(chain)])  # alpha_bar of each level
    x, level, visited, jumped, way = draw("SAMPLING", PIXELS.timesteps), len(chain), Counter(), Counter(), []
    while level > 0:
        t = int(np.sort(chain)[level - 1])
        place = t + visited[t] * (PIXELS.timesteps + 1)
        visited[t] += 1
        way.append(t)
        here, below = levels[level], levels[level - 1]
        beta = 1 - here / below
        eps = predict(x, np.full(len(x), t))
        mean = (x - beta / np.sqrt(1 - here) * eps) / np.sqrt(1 - beta)
        x = mean + np.sqrt(beta * (1 - below) / (1 - here)) * draw("SAMPLING", place)
        known = np.sqrt(below) * images + np.sqrt(1 - below) * draw("KNOWN", place)
        x = np.where(mask[..., None], known, x)
        level -= 1
        if level % jump == 1 % jump and 1 <= level <= len(chain) - jump and jumped[level] < resamplings - 1:
            jumped[level] += 1
            kept = levels[level + jump] / levels[level]
            x = np.sqrt(kept) * x + np.sqrt(1 - kept) * draw("JUMP", place)
            level += jump
    return x, way


@pytest.mark.parametrize(("steps", "resamplings", "jump"), [(6, 3, 1), (9, 3, 3), (5, 1, 10), (4, 2, 3)])
def test_inpainting_is_algorithm_1(steps, resamplings, jump):
    sampler, network = SamplerConfig("ddpm", steps), Gaussian(PIXELS, CORRELATION)
    images, mask = np.array([[0.9, -0.3], [0.1, 0.6]]).reshape(2, 1, 2, 1), np.array([[1, 0]])
    chain = sampling_timesteps(PIXELS, sampler)
    with jax.enable_x64(True):

        def draw(purpose, number):
            keys = [rng.key(4, getattr(rng, purpose), i, number) for i in range(2)]
            return np.stack([rng.normal(k, (1, 2, 1), jnp.float64) for k in keys])

        expected, way = repaint_loop(network, images, mask, chain, resamplings, jump, draw)
        stretches = {"resamplings": resamplings, "jump": jump}
        settings = {"sampler": sampler, "config": PIXELS, "dtype": jnp.float64}
        found = inpainting.inpaint(network, images, mask, 4, **settings, **stretches)
    assert inpainting.repaint_schedule(chain, **stretches)[0].tolist() == way
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_inpainting_nears_the_exact_conditional_mean():
    """E[b | a] = mean + correlation (a - mean); without resampling the pixels do not fit (section 4.2)."""
    wanted, errors = MEAN + CORRELATION * (0.9 - MEAN), []
    images, mask = np.full((1000, 1, 2, 1), 0.9), np.array([[1, 0]])
    with jax.enable_x64(True):
        for resamplings in (1, 16):
            settings = {"config": PIXELS, "dtype": jnp.float64, "batch_size": 1000, "jump": 1}
            drawn = inpainting.inpaint(
                Gaussian(PIXELS, CORRELATION), images, mask, 3, resamplings=resamplings, **settings
            )
            errors.append(abs(drawn[:, 0, 1, 0].mean() - wanted))
    assert errors[0] > 0.15 and errors[1] < 0.05


def test_known_pixels_stay_and_unknown_ones_are_drawn(network):
    mask = np.zeros((8, 8))
    mask[:, 2:5] = 1
    settings = {"sampler": SamplerConfig("ddpm", 6), "config": CONFIG, "jump": 2, "resamplings": 2}
    drawn = inpainting.inpaint(network, IMAGES, mask, 4, 2, **settings)
    np.testing.assert_array_equal(drawn[:, mask == 1], IMAGES[:, mask == 1])
    assert np.abs(drawn - IMAGES)[:, mask == 0].mean() > 0.2
    two = inpainting.inpaint(network, IMAGES[:1].repeat(2, 0), mask, 4, **settings)
    assert np.abs(two[0] - two[1])[mask == 0].max() > 0.1  # of one image, by their numbers
    alone = inpainting.inpaint(network, IMAGES[:2], mask, seeds=[4, 4], **settings)
    np.testing.assert_allclose(alone[0], drawn[0], atol=1e-5)


def test_with_nothing_known_inpainting_is_sampling(network):
    settings = {"sampler": SamplerConfig("ddpm", 6), "config": CONFIG}
    drawn = inpainting.inpaint(network, IMAGES, np.zeros((8, 8)), 4, resamplings=1, **settings)
    np.testing.assert_allclose(drawn, samplers.sample(network, 3, 4, image_shape=(8, 8, 1), **settings), atol=1e-6)


def test_a_given_state_is_where_sampling_starts(network):
    settings = {"config": CONFIG, "image_shape": (8, 8, 1)}
    x_T = np.stack([rng.normal(rng.key(7, rng.SAMPLING, i, 25), (8, 8, 1)) for i in range(3)])
    drawn = samplers.sample(network, 3, 7, batch_size=2, **settings)
    np.testing.assert_allclose(samplers.sample(network, seed=7, batch_size=2, x_T=x_T, **settings), drawn, atol=1e-6)


DDIM, NOISY, ODE = SamplerConfig("ddim", 5), SamplerConfig("ddim", 5, eta=0.5), SamplerConfig("heun", 5)
REFUSALS = {
    "noise between seeds": ("interpolate", (1, 2), {"sampler": SamplerConfig()}, "sampler='ddim'"),
    "eta between seeds": ("interpolate", (1, 2), {"sampler": NOISY}, "sampler='ddim'"),
    "one end": ("interpolate", (1, 2, 1), {}, "num_images = 1: expected at least 2"),
    "another sampler up": ("invert", (IMAGES,), {"sampler": ODE}, "sampler='ddim'"),
    "noise up": ("invert", (IMAGES,), {"sampler": NOISY}, "eta = 0.5"),
    "bytes": ("invert", (IMAGES.astype(np.uint8),), {}, "uint8: expected floating point"),
    "one image without its axis": ("invert", (IMAGES[0],), {}, "expected the shape"),
    "nan": ("img2img", (IMAGES * np.nan, 3), {}, "nan or inf"),
    "after the end": ("img2img", (IMAGES, 25), {}, r"start_t = 25: expected 0, .* to T - 1 = 24"),
    "before the chain": ("img2img", (IMAGES, 3), {"sampler": DDIM}, r"start_t = 3: expected 4"),
    "too few seeds": ("img2img", (IMAGES, 3), {"seeds": [1]}, "expected 3, one for each image"),
    "another mask": ("inpaint", (IMAGES, np.ones((9, 8))), {}, r"mask = \(9, 8\): expected .*\(8, 8\)"),
    "not ancestral": ("inpaint", (IMAGES, np.ones((8, 8))), {"sampler": DDIM}, "sampler='ddpm'"),
    "no way": ("inpaint", (IMAGES, np.ones((8, 8))), {"resamplings": 0}, "resamplings = 0"),
    "no jump": ("inpaint", (IMAGES, np.ones((8, 8))), {"jump": 0}, "jump = 0: expected 1 to num_steps - 1 = 24"),
    "too long a jump": ("inpaint", (IMAGES, np.ones((8, 8))), {"jump": 25}, "expected 1 to num_steps - 1 = 24"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(network, kind):
    name, arguments, settings, said = REFUSALS[kind]
    shape = {"image_shape": (8, 8, 1)} if name == "interpolate" else {}
    with pytest.raises(UserError, match=said):
        getattr(inpainting if name == "inpaint" else editing, name)(
            network, *arguments, config=CONFIG, **shape, **settings
        )


def test_start_t_wants_its_states(network):
    with pytest.raises(UserError, match="start_t = 3: expected x_T too"):
        samplers.sample(network, start_t=3, config=CONFIG, image_shape=(8, 8, 1))
    with pytest.raises(UserError, match=r"x_T = \(1, 4, 4, 1\)"):
        samplers.sample(network, x_T=np.zeros((1, 4, 4, 1)), config=CONFIG, image_shape=(8, 8, 1))
