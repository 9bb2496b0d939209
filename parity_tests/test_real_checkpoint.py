"""A checkpoint that somebody else trained on Fashion-MNIST (`layer_norm`, keys under `network.`), as it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm
import torch_ref
from jax_ddpm import data, diffusion, rng
from jax_ddpm.embeddings import sinusoid_table
from jax_ddpm.layers import Buffer
from jax_ddpm.schedules import make_tables
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.network_config import LayerNormConfig
from parity_tests import budgets
from tests.shared_data import SHARED, needs_shared

CHECKPOINT = SHARED and SHARED / "checkpoints" / "myddpm_fashion.pt"


@pytest.fixture(scope="module")
def model():
    return jax_ddpm.load_model(CHECKPOINT)


@needs_shared
def test_it_is_recognised(model):
    theirs = torch_ref.load_model(CHECKPOINT)
    assert model.info.network == LayerNormConfig() and model.info.image_shape == theirs.info.image_shape == (28, 28, 1)
    assert model.num_parameters == sum(p.numel() for p in theirs.parameters()) == 506_852
    assert (model.info.diffusion.timesteps, model.info.diffusion.schedule) == (1000, "linear")


def noise_error(network) -> float:
    """Mean squared error of the noise over 1000 real images."""
    images = data.load("fashion_mnist", 28, data_dir=str(SHARED / "data" / "tfds"), log=lambda line: None).validation
    x_0 = jnp.asarray(data.to_float(images[:1000]))
    t, noise = rng.timesteps(rng.key(0, rng.TIMESTEPS), 1000, 1000), rng.normal(rng.key(0, rng.NOISE), x_0.shape)
    graph, state = nnx.split(network)
    return float(loss(graph, state, x_0, t, noise))


@partial(jax.jit, static_argnums=0)
def loss(graph, state, *batch):
    return diffusion.loss(make_tables(), "eps", nnx.merge(graph, state), *batch)


@pytest.mark.slow
@needs_shared
def test_its_own_table_is_kept(model):
    assert noise_error(model.network) == pytest.approx(0.043, abs=0.004)
    fresh = jax_ddpm.load_model(CHECKPOINT)
    fresh.network.time_table = Buffer(sinusoid_table(1000, 100))
    assert noise_error(fresh.network) > 0.2


@pytest.mark.parametrize("num_steps", [30, pytest.param(1000, marks=pytest.mark.slow)])
@needs_shared
def test_both_frameworks_draw_the_same_clothes(model, num_steps):
    torch.set_num_threads(1)
    sampler = SamplerConfig("ddpm", num_steps)
    ours = jax_ddpm.sample(model, 2, 1, sampler=sampler)
    theirs = torch_ref.sample(torch_ref.load_model(CHECKPOINT), 2, 1, sampler=sampler)
    apart = np.abs(data.to_uint8(ours).astype(int) - data.to_uint8(theirs))
    assert apart.max() <= 1 and np.mean(apart != 0) <= budgets.PIXELS_FLOAT32
    assert np.abs(ours - theirs).max() <= budgets.SAMPLES_REAL_CHECKPOINT
