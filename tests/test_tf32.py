"""Precision tf32 in a run, its model and its samples. On a CPU: the bits of float32, and a line that says so."""

import copy
import inspect

import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jax_ddpm
import torch_ref
from jax_ddpm import unets
from jax_ddpm.evaluation.samples import settings_of
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.types import TF32_ON_CPUS
from jax_ddpm.training import loop, trackers
from jax_ddpm.training.pictures import Pictures
from jax_ddpm.weights.torch_names import own_table
from tests.small import small


@pytest.mark.slow
def test_a_run_in_tf32(tmp_path, monkeypatch):
    monkeypatch.setattr(Pictures, "save_final", lambda *_: [])
    monkeypatch.setattr(trackers.TensorBoard, "picture", lambda *_: None)
    monkeypatch.setattr(loop, "write_page", lambda folder: None)
    config, said = small(precision="tf32", steps=2, validate_every=0, checkpoint_every=1), []
    run = jax_ddpm.train(config, tmp_path / "run", log=said.append)
    assert said.count(TF32_ON_CPUS) == 1 and jax_ddpm.load_run(run).config.training.precision == "tf32"
    with pytest.raises(UserError, match="precision"):
        jax_ddpm.train(small(steps=2), run, resume=True, log=said.append)

    exact, model = (jax_ddpm.load_model(run, precision=name, log=said.append) for name in ("float32", "tf32"))
    assert said.count(TF32_ON_CPUS) == 2
    assert [unets.tf32.is_in_tf32(each.network) for each in (exact, model)] == [False, True]
    assert [settings_of(each, ANCESTRAL, 0).get("tf32") for each in (exact, model)] == [None, True]
    images = [jax_ddpm.sample(each, 2, sampler="ddim", num_steps=2) for each in (exact, model)]
    np.testing.assert_array_equal(*images)

    exact, model = (torch_ref.load_model(run, precision=name, log=said.append) for name in ("float32", "tf32"))
    assert said.count(TF32_ON_CPUS) == 3
    images = [torch_ref.sample(each, 2, sampler="ddim", num_steps=2) for each in (exact, model, copy.deepcopy(model))]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


class OwnUNet(nnx.Module):
    def __init__(self):
        self.layer = nnx.Conv(1, 1, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x, t, dropout=None):
        return self.layer(x)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(unets.tf32.in_tf32, lax.Precision.HIGH), (unets.tf32.in_full_float32, lax.Precision.HIGHEST)],
)
def test_a_network_of_the_users_own(monkeypatch, change, expected):
    """Flax's layers follow, too, and the network keeps its names and arguments."""
    monkeypatch.setitem(unets.REGISTERED_TORCH_NAMES, OwnUNet, {"conv": "layer"})
    graph, state = nnx.split(change(unets.tf32.in_full_float32(OwnUNet())))
    network = nnx.merge(graph, state)
    equations = jax.make_jaxpr(lambda x: network(x, None))(np.zeros((1, 4, 4, 1), np.float32)).jaxpr.eqns
    precisions = [each.params["precision"] for each in equations if each.primitive.name == "conv_general_dilated"]
    assert precisions == [(expected, expected)]
    assert isinstance(network, OwnUNet) and type(network).__name__ == "OwnUNet"
    assert own_table(network) == {"conv": "layer"} and "dropout" in inspect.signature(network).parameters
