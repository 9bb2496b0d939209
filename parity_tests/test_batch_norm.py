"""Networks with BatchNorm against golden numbers of the originals, in evaluation and in training."""

from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import layers, unets, weights
from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig
from jax_ddpm.training import step
from jax_ddpm.training.state import create_state
from parity_tests import budgets
from parity_tests.golden_weights import GOLDEN, golden_state_dict
from parity_tests.measures import compiled, relative
from parity_tests.measures_training import RUN, furthest
from parity_tests.networks import CASES
from torch_ref.dtypes import float_time

CONFIGS = {
    "simple_unet": SimpleUNetConfig(widths=(8, 16, 24)),
    "context_unet": ContextUNetConfig(channels=8),
    "superminddpm": SuperMinDDPMConfig(widths=(6, 10, 8)),
}
MODES = pytest.mark.parametrize("mode", ["eval", "train"])


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        golden = dict(file)
    labels = (golden["labels"],) if "labels" in golden else ()
    return golden, golden_state_dict(golden["keys"], {}), labels


def originals_frequencies(golden, module):
    """simple_unet's float32 frequencies as the original computed them: 4 of 16 differ in the last bit."""
    if "frequencies" not in golden:
        return nullcontext()
    return mock.patch.object(module, "geometric_frequencies", lambda *_, **__: golden["frequencies"])


def errors(golden, mode, y, x_grad, loss, norms, statistics):
    """Relative errors; y and x_grad are (B, C, H, W). statistics: all running means and variances, by PyTorch name."""
    every = y.shape[-1] // golden["train_y"].shape[-1]
    pairs = [(y[..., ::every, ::every], golden[f"{mode}_y"]), (x_grad[..., ::every, ::every], golden[f"{mode}_x_grad"])]
    pairs += [(loss, golden[f"{mode}_loss"]), ([norms[name] for name in golden["names"]], golden[f"{mode}_norms"])]
    if mode == "train":
        names = [key.partition(" ")[0] for key in golden["keys"] if "running" in key]
        pairs.append((np.concatenate([statistics[name] for name in names]), golden["statistics"]))
    return [relative(ours, theirs) for ours, theirs in pairs]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("simple_unet", "train"),
        pytest.param("simple_unet", "eval", marks=pytest.mark.slow),
        pytest.param("context_unet", "train", marks=pytest.mark.slow),
        pytest.param("context_unet", "eval", marks=pytest.mark.slow),
        pytest.param("superminddpm", "train", marks=pytest.mark.slow),
        pytest.param("superminddpm", "eval", marks=pytest.mark.slow),
    ],
)
def test_golden_numbers(name, mode):
    golden, values, labels = load(name)
    with jax.enable_x64(True), originals_frequencies(golden, unets.simple_unet):
        network = unets.build(CONFIGS[name], golden["x"].shape[1])
        weights.load_state_dict(network, values, np.float64)
        graph, params, buffers = nnx.split(network, nnx.Param, layers.Buffer)

        def loss(params, x):
            network = nnx.merge(graph, params, buffers)
            with layers.batch_statistics() if mode == "train" else nullcontext([]) as found:
                y = network(x, jnp.asarray(golden["t"]), *labels)
            layers.store_statistics(found)
            return jnp.mean(y**2), (y, nnx.state(network, layers.Buffer))

        x = jnp.asarray(np.moveaxis(golden["x"], 1, -1), jnp.float64)
        program = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True), quick=True)
        (value, (y, buffers)), (grads, x_grad) = program(params, x)
        grads = weights.state_dict(nnx.merge(graph, grads, buffers))
    norms = {key: np.linalg.norm(value) for key, value in grads.items()}
    y, x_grad = np.moveaxis(np.asarray(y), -1, 1), np.moveaxis(np.asarray(x_grad), -1, 1)
    assert max(errors(golden, mode, y, x_grad, value, norms, grads)) <= budgets.GOLDEN_NETWORK_FLOAT64


@MODES
@pytest.mark.parametrize("name", CONFIGS)
def test_golden_numbers_of_the_twin(name, mode):
    golden, values, labels = load(name)
    with originals_frequencies(golden, torch_ref.unets.simple_unet):
        network = torch_ref.unets.build(CONFIGS[name], golden["x"].shape[1])
    torch_ref.weights.load_state_dict(network, values, np.float64)
    network.train(mode == "train")
    x = torch.tensor(golden["x"], dtype=torch.float64, requires_grad=True)
    t = torch.from_numpy(golden["t"])
    y = network(x, float_time(t) if t.is_floating_point() else t, *map(torch.from_numpy, labels))
    loss = torch.mean(y**2)
    loss.backward()
    norms = {key: value.grad.norm().item() for key, value in network.named_parameters()}
    found = errors(
        golden, mode, y.detach().numpy(), x.grad.numpy(), loss.item(), norms, torch_ref.weights.state_dict(network)
    )
    assert max(found) <= budgets.GOLDEN_NETWORK_FLOAT64


def run_of(name, **training):
    case = CASES[name]
    return replace(
        RUN,
        network=case.config,
        training=replace(RUN.training, **{"batch_size": 8, "power_ema": True, "precision": "float64"}, **training),
    )


def images_of(name, steps=3):
    case, g = CASES[name], np.random.default_rng(9)
    return [g.integers(0, 256, (8, case.size, case.size, case.channels), np.uint8) for _ in range(steps)]


def train(name, settings, broken_step=None, remat=False):
    """(losses, parameters, EMA, average) by PyTorch name after three steps in float64, of JAX and of the twin."""
    case, run = CASES[name], run_of(name, **settings)
    labels = (np.arange(8) % 10,) if case.config.takes_labels else ()
    batches = images_of(name)
    ours, theirs = unets.build(case.config, case.channels), torch_ref.unets.build(case.config, case.channels)
    torch_ref.weights.initialise(theirs, 3)
    with jax.enable_x64(True):
        weights.initialise(ours, 3)
        jax_run = replace(run, training=replace(run.training, remat=remat))
        optimizer = step.make_optimizer(run.training)
        graph, state = create_state(ours, optimizer, True, np.float64, True)
        structure = jax.tree.structure(state)
        program = compiled(step.make_train_step(graph, optimizer, jax_run, 3), quick=True)
        losses = []
        for number, images in enumerate(batches):
            images = images.astype(np.float64) * (np.nan if number == broken_step else 1)
            state, metrics = program(state, images, *labels)
            losses.append(float(metrics["loss"]))
        assert jax.tree.structure(state) == structure and program._cache_size() == 1
        found = (state.params, state.ema, *state.power_ema)
        of_jax = losses, *(weights.state_dict(nnx.merge(graph, p, state.buffers)) for p in found)
    twin_optimizer = torch_ref.step.make_optimizer(run.training, theirs)
    twin_state = torch_ref.step.create_state(theirs, twin_optimizer, True, torch.float64, True)
    twin_step = torch_ref.step.make_train_step(run, 3)
    losses = []
    for number, images in enumerate(batches):
        images = images.astype(np.float64) * (np.nan if number == broken_step else 1)
        twin_state, metrics = twin_step(twin_state, images, *labels)
        losses.append(metrics["loss"])
    found = (twin_state.network, twin_state.ema, *twin_state.power_ema)
    return of_jax, (losses, *map(torch_ref.weights.state_dict, found))


@pytest.mark.parametrize(
    ("name", "settings", "broken_step", "remat"),
    [
        pytest.param("simple_unet", {}, 1, False, marks=pytest.mark.slow),
        pytest.param("simple_unet", {"accumulate": 2}, None, True, marks=pytest.mark.slow),
        pytest.param("context_unet", {"accumulate": 2}, 2, False, marks=pytest.mark.slow),
        pytest.param("superminddpm", {"accumulate": 2}, 1, True, marks=pytest.mark.slow),
    ],
)
def test_training_steps(name, settings, broken_step, remat):
    """Parameters, averages and running statistics of three steps agree; a skipped step changes no statistics."""
    ours, theirs = train(name, settings, broken_step, remat)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-8)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        for key, value in b.items():
            if "running" in key:
                np.testing.assert_allclose(a[key], value, rtol=1e-6, atol=1e-8, err_msg=key)
                np.testing.assert_array_equal(a[key], ours[1][key])
    assert furthest(ours[1], theirs[1]) / RUN.training.learning_rate <= budgets.UPDATE_FLOAT64
    assert np.isfinite(np.concatenate([value.ravel() for value in ours[1].values()])).all()
