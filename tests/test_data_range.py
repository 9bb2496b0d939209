"""Images in other ranges than [-1, 1], and networks that receive something else than the timestep's index."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_ddpm
from jax_ddpm import weights
from jax_ddpm.evaluation import bits_per_dimension
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.spec.data_range import from_data_range, from_levels, to_data_range
from jax_ddpm.spec.diffusers_scheduler import write_diffusion
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.network_config import ConvBlockConfig, LayerNormConfig
from jax_ddpm.spec.run_config import check_time
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.step import prepare_images

RANGES = ((0.0, 1.0), (-0.5, 0.5), (-1.0, 1.0), (0.0, 255.0))
TIMES = {"index": 9, "from_one": 10, "fraction": 0.9, "fraction_from_one": 1.0}  # of t = 9, T = 10
SHAPE = (4, 4, 1)
X0 = DiffusionConfig(timesteps=10, objective="x0")


class Constant(nnx.Module):
    """Predicts the value as x_0, whatever it sees."""

    def __init__(self, value):
        self.value = nnx.Variable(jnp.float32(value))  # no constant of the program, which is compiled once

    def __call__(self, x, t):
        return jnp.zeros_like(x) + self.value[...]


class Time(nnx.Module):
    """Predicts the time that it receives."""

    def __call__(self, x, t):
        return jnp.zeros_like(x) + jnp.asarray(t).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("data_range", RANGES)
def test_levels_become_the_values_of_the_range_and_the_way_back_is_exact(data_range):
    levels = np.arange(256, dtype=np.float64)
    x = from_levels(levels, data_range)
    np.testing.assert_allclose(x, np.linspace(*data_range, 256), atol=1e-13)
    np.testing.assert_allclose(from_data_range(x, data_range), np.linspace(-1, 1, 256), atol=1e-14)
    np.testing.assert_allclose(to_data_range(np.linspace(-1, 1, 256), data_range), x, atol=1e-13)


def test_the_range_0_to_1_is_levels_over_255():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = prepare_images(jnp.asarray(images), jnp.float32, None, (0.0, 1.0))
    np.testing.assert_allclose(np.asarray(x), images / 255, atol=6e-8)  # XLA multiplies by a rounded 1 / 255


@pytest.mark.parametrize("clip", ["none", "x0", "dynamic", "state"])
def test_samples_are_in_the_usual_range_and_clipped_at_the_networks(clip):
    config = dataclasses.replace(X0, data_range=(0.0, 1.0), clip=clip)
    for value, expected in ((0, -1), (0.25, -0.5), (1, 1), (1.5, 2 if clip == "none" else 1)):
        x = jax_ddpm.sample(Constant(value), 2, config=config, image_shape=SHAPE)
        np.testing.assert_allclose(x, expected, atol=1e-5)


def test_edited_images_are_in_the_usual_range_too():
    config = dataclasses.replace(X0, data_range=(0.0, 1.0), timesteps=4)
    images = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    mask = np.zeros(SHAPE[:2])
    mask[:2] = 1
    network = Constant(0.75)  # 0.5 in [-1, 1]
    x = jax_ddpm.inpaint(network, images, mask, config=config, resamplings=1, jump=1)
    np.testing.assert_array_equal(x[:, :2], images[:, :2])
    np.testing.assert_allclose(x[:, 2:], 0.5, atol=1e-6)
    np.testing.assert_allclose(jax_ddpm.img2img(network, images, 2, config=config), 0.5, atol=1e-6)
    # A network that predicts what the schedule leaves of the image: inverted and reconstructed, it is the image.
    x_T = jax_ddpm.invert(Constant(0.0), images, config=dataclasses.replace(config, objective="eps"))
    back = jax_ddpm.reconstruct(Constant(0.0), x_T, config=dataclasses.replace(config, objective="eps"))
    np.testing.assert_allclose(back, images, atol=1e-5)
    scale = float(np.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, 4))))  # eps = 0: x_T is the scaled image in [0, 1]
    np.testing.assert_allclose(x_T, scale * (images + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("data_range", RANGES[1:3])
def test_the_decoder_counts_the_levels_of_the_range(data_range):
    """L_0 is -log2 of the levels' probability under N(mean, sigma^2), Ho et al. 2020, eq. 13, computed with erf."""
    images = np.random.default_rng(0).integers(100, 156, (2, *SHAPE), np.uint8)
    schedule = {"timesteps": 2, "schedule": "trained", "trained_betas": (0.1, 0.5), "variance": "posterior"}
    config = DiffusionConfig(objective="x0", data_range=data_range, **schedule)
    low, high = data_range
    found = bits_per_dimension(Constant(low + 0.5 * (high - low)), images, config=config).terms[:, 0]
    sigma = np.sqrt(0.5 * (1 - 0.9) / (1 - 0.45)) * 255 / (high - low)  # of eq. 7 at t = 2, in levels
    cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))
    upper, lower = (cdf((images + half - 127.5) / sigma) for half in (0.5, -0.5))
    np.testing.assert_allclose(found, -np.log2(upper - lower).mean(axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("t_input", TIMES)
def test_what_the_network_receives(t_input):
    config = dataclasses.replace(X0, t_input=t_input, clip="none", data_range=(0.0, 20.0))
    x = jax_ddpm.sample(Time(), 2, config=config, image_shape=SHAPE, sampler="ddim", num_steps=1)
    np.testing.assert_allclose(x, TIMES[t_input] / 10 - 1, atol=1e-6)  # one step from t = 9; 0 to 20 become -1 to 1
    seen = by_timestep(Time(), config)(jnp.zeros((2, *SHAPE)), jnp.array([9, 9]))
    np.testing.assert_allclose(seen, TIMES[t_input], rtol=1e-6)


def test_the_usual_settings_change_nothing():
    network = Time()
    assert by_timestep(network, DiffusionConfig()) is network
    x = np.zeros(3)
    assert to_data_range(x, (-1, 1)) is x and from_data_range(x, (-1, 1)) is x


def test_a_model_file_holds_them(tmp_path):
    network = ConvBlockConfig(widths=(32,), time_width=8)
    diffusion = DiffusionConfig(timesteps=10, data_range=(0.0, 1.0), t_input="fraction")
    built = jax_ddpm.build(network)
    weights.initialise(built, 0)
    info = ModelInfo(network, (8, 8, 1), diffusion)
    write_model(tmp_path / "model.safetensors", weights.state_dict(built), info)
    model = jax_ddpm.load_model(tmp_path / "model.safetensors", log=lambda line: None)
    assert model.info.diffusion == diffusion
    assert describe(model.info, 1).endswith("images from 0 to 1, t_input fraction")
    x, t = jnp.ones((2, 8, 8, 1)), jnp.array([3, 7])
    np.testing.assert_array_equal(model(x, t), model.network(x, jnp.asarray([0.3, 0.7], jnp.float32)))
    with pytest.raises(UserError, match="data_range"):
        jax_ddpm.load_model(tmp_path / "model.safetensors", data_range=(-1.0, 1.0), log=lambda line: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_range": (1.0, 0.0)}, "data_range = .*the smaller one first"),
        ({"data_range": (0.0, float("inf"))}, "data_range"),
        ({"data_range": (0.0, float("nan"))}, "data_range"),
        ({"data_range": (0.0, 1.0, 2.0)}, "data_range"),
        ({"t_input": "from_two"}, "t_input = from_two: expected one of index, from_one"),
        ({"t_input": "fraction", "objective": "flow"}, "t_input = fraction: the objective flow has a time of its own"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DiffusionConfig(**settings).check()


def test_a_table_of_timesteps_takes_integers_only():
    network = LayerNormConfig(table_rows=1000)
    check_time(network, DiffusionConfig(timesteps=999, t_input="from_one"))
    with pytest.raises(UserError, match="table_rows = 1000: expected at least T \\+ 1 = 1001"):
        check_time(network, DiffusionConfig(timesteps=1000, t_input="from_one"))
    with pytest.raises(UserError, match="t_input = fraction: expected index or from_one"):
        check_time(network, DiffusionConfig(t_input="fraction"))


@pytest.mark.parametrize("settings", [{"data_range": (0.0, 1.0)}, {"t_input": "from_one"}])
def test_diffusers_cannot_have_them(settings):
    with pytest.raises(UserError, match="cannot be written as a diffusers folder"):
        write_diffusion(DiffusionConfig(**settings))
