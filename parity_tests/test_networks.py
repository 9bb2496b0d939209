"""Every network in both frameworks: initial weights, an optimiser step, whole samples, files (more on the ladder)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm
import jax_ddpm.layers
import torch_ref
import torch_ref.layers
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import data, unets, weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.infer_network import RECOGNISERS
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig
from jax_ddpm.spec.write_model import write_model
from parity_tests import budgets, measures
from parity_tests.measures_training import RUN, furthest, in_double, optimiser_step, train_jax, train_torch
from parity_tests.networks import CASES, Case

torch.set_num_threads(1)
NETWORKS = pytest.mark.parametrize("name", CASES)


def mostly_slow(*fast: str) -> list:
    """All networks; those that are not in `fast` are marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def initialised(case, seed=5):
    ours, theirs = unets.build(case.config, case.channels), torch_ref.unets.build(case.config, case.channels)
    weights.initialise(ours, seed)
    torch_ref.weights.initialise(theirs, seed)
    return ours, theirs


@NETWORKS
def test_initial_weights_are_equal(name):
    ours, theirs = initialised(CASES[name])
    a, b = weights.state_dict(ours), torch_ref.weights.state_dict(theirs)
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def with_outputs(case):
    """As `initialised`. `adm`, whose last layer starts at zero, has other random weights."""
    ours, theirs = initialised(case)
    if case.config.name == "adm":
        values = measures.random_weights(case.config, case.channels)
        weights.load_state_dict(ours, values)
        torch_ref.weights.load_state_dict(theirs, values)
    return ours, theirs


def random_images(size, channels):
    return np.random.default_rng(9).integers(0, 256, (16, size, size, channels), np.uint8)


@pytest.mark.slow
@NETWORKS
def test_one_optimiser_step(name):  # the ladder has one of conv_block and one of ddpm
    case = CASES[name]
    run = replace(RUN, network=case.config)
    assert optimiser_step(run, partial(random_images, case.size, case.channels)) <= budgets.UPDATE_FLOAT64


ONE_LEVEL = DDPMConfig(
    widths=(32,), layers_per_block=1, down_attention=(False,), up_attention=(False,), mid_block=False
)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        pytest.param(CASES["attention"], 2, marks=pytest.mark.slow, id="attention"),
        pytest.param(Case(ONE_LEVEL, 1, 8), 2, marks=pytest.mark.slow, id="ddpm"),
    ],
)
def test_dropout(case, parts):
    """The same masks in both frameworks, in the training only, however the batch is split."""
    images = partial(random_images, case.size, case.channels)
    run = in_double(replace(RUN, network=replace(case.config, dropout=0.4)))
    ours = train_jax(replace(run, training=replace(run.training, accumulate=parts)), 1, np.float64, images)
    theirs = train_torch(run, 1, np.float64, images)
    without = train_torch(replace(run, network=replace(case.config, dropout=0.0)), 1, np.float64, images)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=budgets.NETWORK_FLOAT64)
    assert abs(theirs[0][0] - without[0][0]) > 1e-4
    assert furthest(ours[1], theirs[1]) / run.training.learning_rate <= budgets.UPDATE_FLOAT64


def test_masks_of_dropout():
    h = np.random.default_rng(0).standard_normal((6, 16, 16, 8)).astype(np.float32)
    ours, theirs = (package.layers.Dropout(0.3, 5, 9, np.arange(6)) for package in (jax_ddpm, torch_ref))
    masks = []
    for _ in range(2):
        a, b = np.asarray(ours(h)), measures.channels_last(theirs(measures.channels_first(h)))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a[a != 0], (h / np.float32(0.7))[a != 0], rtol=1e-6)
        masks.append(a == 0)
    assert abs(np.mean(masks) - 0.3) < 0.01  # 24,576 coins: three standard deviations
    assert np.mean(masks[0] & masks[1]) < 0.1 + 0.01 and np.mean(masks[0][0] & masks[0][1]) < 0.13
    part = jax_ddpm.layers.Dropout(0.3, 5, 9, np.array([4, 1]))
    np.testing.assert_array_equal(np.asarray(part(h[[4, 1]])) == 0, masks[0][[4, 1]])


@pytest.mark.slow
@NETWORKS
def test_whole_samples(name):  # conv_block: the ladder; layer_norm: test_real_checkpoint; ddpm: test_diffusers
    case = CASES[name]
    ours, theirs = with_outputs(case)
    settings = {
        "config": DiffusionConfig(timesteps=200, beta_end=0.1),
        "image_shape": (case.size, case.size, case.channels),
    }
    a, b = jax_ddpm.sample(ours, 2, 11, **settings), torch_ref.sample(theirs.eval(), 2, 11, **settings)
    difference = np.abs(data.to_uint8(a).astype(int) - data.to_uint8(b))
    assert difference.max() <= 1
    assert np.mean(difference != 0) <= budgets.PIXELS_FLOAT32


@NETWORKS
def test_files_are_recognised_and_read_by_both(name, tmp_path):
    case = CASES[name]
    values = weights.state_dict(initialised(case)[0])
    (recognised,) = filter(None, (recognise(values) for recognise in RECOGNISERS.values()))
    assert (recognised.config, recognised.image_channels) == (case.config, case.channels)
    info = ModelInfo(
        network=case.config, image_shape=(case.size, case.size, case.channels), diffusion=DiffusionConfig()
    )
    write_model(tmp_path / "model.safetensors", values, info)
    ours, theirs = (package.load_model(tmp_path / "model.safetensors") for package in (jax_ddpm, torch_ref))
    assert ours.info == theirs.info == info
    loaded = weights.state_dict(ours.network)
    for key, value in torch_ref.weights.state_dict(theirs).items():
        np.testing.assert_array_equal(value, values[key], err_msg=key)
        np.testing.assert_array_equal(loaded[key], values[key], err_msg=key)


@pytest.mark.parametrize("name", mostly_slow("conv_block"))
def test_bfloat16_touches_activations_only(name):
    case = CASES[name]
    ours, _ = with_outputs(case)
    low = unets.build(case.config, case.channels, jnp.bfloat16)
    weights.load_state_dict(low, weights.state_dict(ours))
    x, t = measures.inputs(2, case.size, case.channels, np.float32)
    y, y_low = (np.asarray(measures.compiled(lambda x, t, n=n: n(x, t), quick=True)(x, t)) for n in (ours, low))
    assert y_low.dtype == np.float32
    assert 0 < np.abs(y - y_low).max() <= budgets.BFLOAT16 * np.abs(y).max()
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(nnx.state(low)))
