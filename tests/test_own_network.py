"""A network of one's own, registered: trained, resumed, saved, loaded and sampled like the others."""

import inspect
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_ddpm
from jax_ddpm import layers, weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.own_networks import check_self_condition
from jax_ddpm.training.feed import STEPS_PER_DISPATCH, Feed
from jax_ddpm.training.prepare import make_mesh
from tests.registry import restored
from tests.small import small
from tests.test_runs import quiet


@dataclass(frozen=True)
class PlainConfig(jax_ddpm.NetworkConfig):
    name: Literal["plain"] = "plain"
    width: int = 8


class Plain(nnx.Module):
    """Three convolutions, one of them Flax's, and t as another channel."""

    def __init__(self, image_channels, width, dtype=None):
        self.scale = layers.Buffer(np.float32(0.05))
        self.first = layers.Conv(image_channels + 1, width, 3)
        self.middle = nnx.Conv(width, width, (3, 3), rngs=nnx.Rngs(0))
        self.last = layers.Conv(width, image_channels, 3)

    def __call__(self, x, t):
        time = jnp.broadcast_to((t * self.scale[...]).reshape(-1, 1, 1, 1), (*x.shape[:3], 1))
        h = nnx.relu(self.first(jnp.concatenate([x, time], axis=-1)))
        return self.last(nnx.relu(self.middle(h)))


def test_on_a_cpu_it_stays_out_of_loops(registered):
    """It may have convolutions that XLA makes slow there."""
    images, mesh, own = np.zeros((16, 8, 8, 1), np.uint8), make_mesh(16), replace(small(), network=PlainConfig())
    assert Feed(images, small(), mesh).steps_per_dispatch == STEPS_PER_DISPATCH
    assert Feed(images, own, mesh).steps_per_dispatch == (1 if jax.default_backend() == "cpu" else STEPS_PER_DISPATCH)


class WithCounter(Plain):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.counter = nnx.Variable(np.zeros(()))


@pytest.fixture
def registered():
    with restored():
        jax_ddpm.register(PlainConfig, Plain)
        yield


def test_it_is_treated_like_the_others(registered, tmp_path):
    config = replace(small(steps=8), network=PlainConfig(width=16))
    folder = jax_ddpm.train(config, tmp_path / "run", log=quiet)
    jax_ddpm.train(replace(config, training=replace(config.training, steps=12)), folder, resume=True, log=quiet)
    model = jax_ddpm.load_model(folder)
    assert model.info.network == PlainConfig(width=16) and model.info.step == 12
    values = weights.state_dict(model.network)
    assert set(values) == {
        *("scale", "first.weight", "first.bias", "middle.weight", "middle.bias", "last.weight", "last.bias"),
    }
    assert values["first.weight"].shape == (16, 2, 3, 3)  # as PyTorch has it
    first, again = (jax_ddpm.sample(model, num_images=2, seed=3) for _ in range(2))
    assert first.shape == (2, 8, 8, 1) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


def test_without_registration_its_file_is_refused_by_name(registered, tmp_path):
    folder = jax_ddpm.train(replace(small(steps=1), network=PlainConfig()), tmp_path / "run", log=quiet)
    NETWORKS.pop("plain")
    with pytest.raises(
        UserError, match=r"'plain', which is not registered here.\nGive the file that registers it: import that file"
    ):
        jax_ddpm.load_model(folder)


def test_a_name_is_registered_once(registered):
    jax_ddpm.register(PlainConfig, Plain)  # again, as notebooks do

    @dataclass(frozen=True)
    class Other(jax_ddpm.NetworkConfig):
        name: Literal["conv_block"] = "conv_block"

    with pytest.raises(UserError, match="exists already"):
        jax_ddpm.register(Other, Plain)


def test_networks_that_are_no_pure_function_are_refused(registered, tmp_path):
    jax_ddpm.register(PlainConfig, WithCounter)
    with pytest.raises(UserError, match=r"neither parameters nor buffers: counter"):
        jax_ddpm.train(replace(small(), network=PlainConfig()), tmp_path / "run", log=quiet)


@pytest.mark.parametrize(
    ("attributes", "call", "said"),
    [
        ({"self_condition": True}, lambda self, x, t: x, "self_condition = True, but its call takes no argument"),
        ({}, lambda self, x, t, x_self_cond=None: x, "does not say whether the samplers should give it"),
    ],
)
def test_self_conditioning_fits_the_call(attributes, call, said):
    with pytest.raises(UserError, match=said):
        check_self_condition(type("Net", (), attributes)(), partial(call, None))
    fitting = {"self_condition": "x_self_cond" in inspect.signature(call).parameters}
    check_self_condition(type("Net", (), fitting)(), partial(call, None))
