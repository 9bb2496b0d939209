"""Somebody's PyTorch file of a network of the user's own, loaded into both frameworks."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import jax_ddpm
import torch_ref
from jax_ddpm import layers, unets, weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_gradients, make_optimizer
from jax_ddpm.unets.flax_layers import adapt, check_training
from tests.registry import restored
from tests.small import jit, small

with restored():
    from tests import own_unet

WIDE = own_unet.OwnConfig(width=16, heads=4)


@pytest.fixture(autouse=True)
def registered():
    with restored():
        jax_ddpm.register(own_unet.OwnConfig, own_unet.OwnUNet)
        torch_ref.register(own_unet.OwnConfig, own_unet.TorchOwnUNet)
        yield


@pytest.fixture
def file(tmp_path):
    """A training script's file: raw weights and their average of a module for three channels, under a prefix."""
    torch.manual_seed(0)
    values = own_unet.TorchOwnUNet(3, 16, 4).state_dict()
    content = {
        "epoch": 3,
        "model": {f"module.{name}": value for name, value in values.items()},
        "ema": {f"module.{name}": 0.9 * value for name, value in values.items()},
    }
    torch.save(content, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def load_both(file, **settings):
    said = []
    models = [package.load_model(file, 8, log=said.append, **settings) for package in (jax_ddpm, torch_ref)]
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    return *models, said[: len(said) // 2]


def test_a_bare_file_loads_into_the_given_network_of_both_frameworks(file):
    ours, theirs, said = load_both(file, network=WIDE, timesteps=4)
    assert ours.info.network == theirs.info.network == WIDE and ours.info.image_shape == (8, 8, 3)
    assert said[0].startswith(f'Took the EMA weights in {file}["ema"] under "module.". Left out: ["model"]')
    assert said[1].startswith("Assumed, as the file does not say it: schedule=") and len(said) == 2
    x, t = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32), np.array([3, 999])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t)).permute(0, 2, 3, 1).numpy()
    graph, state = nnx.split(ours.network)
    y = jit(lambda state: nnx.merge(graph, state)(x, t))(state)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    values = torch.load(file, weights_only=True)["ema"]
    for name, value in weights.state_dict(ours.network).items():
        np.testing.assert_array_equal(value, values[f"module.{name}"].numpy())


def test_it_is_recognised_with_the_settings_that_shapes_show(file):
    assert jax_ddpm.load_model(file, 8, network_settings={"width": 16, "heads": 4}).info.network == WIDE
    said = []
    raw = jax_ddpm.load_model(file, 8, network_settings={"width": 16}, weights="raw", log=said.append)
    assert "raw weights" in said[0] and "heads=2 (network_settings={'heads': VALUE})" in said[1]
    name = "blocks.0.conv.weight"
    expected = torch.load(file, weights_only=True)["model"][f"module.{name}"]
    np.testing.assert_array_equal(weights.state_dict(raw.network)[name], expected)


def test_what_does_not_fit_is_named(file):
    with pytest.raises(UserError) as refused:
        jax_ddpm.load_model(file)
    assert "Nearest: own_unet in" in str(refused.value) and "network=MyConfig(NAME=VALUE)" in str(refused.value)
    with pytest.raises(UserError, match=r"no complete network 'own_unet' with the given settings(.|\n)*Other shapes"):
        torch_ref.load_model(file, network=own_unet.OwnConfig(width=8))
    content = torch.load(file, weights_only=True)["model"]
    del content["module.out.bias"]
    torch.save(content, file)
    with pytest.raises(UserError, match=r"Missing: module.out.bias \(3,\)"):
        jax_ddpm.load_model(file, network=WIDE)
    torch.save({"a.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="No name is that of a known network"):
        jax_ddpm.load_model(file, network=WIDE)


def test_only_settings_of_registered_networks_are_taken(file):
    @dataclass(frozen=True)
    class Other(jax_ddpm.NetworkConfig):
        name: Literal["other"] = "other"

    for wrong, said in ((Other(), "Other is not registered"), ("own_unet", "expected settings of a network")):
        with pytest.raises(UserError, match=said):
            jax_ddpm.load_model(file, network=wrong)
    torch_ref.register(Other, own_unet.TorchOwnUNet)
    with pytest.raises(UserError, match=r"no Flax module here. Call jax_ddpm.register\(Other"):
        unets.build(Other())


def test_a_file_of_another_network_than_the_given_one_is_refused(tmp_path, file):
    from jax_ddpm.spec.write_model import save_model

    model = jax_ddpm.load_model(file, 8, network=WIDE)
    saved = save_model(tmp_path / "mine.safetensors", weights.state_dict(model.network), model.info)
    assert jax_ddpm.load_model(saved, network=WIDE).info == model.info
    with pytest.raises(UserError, match=r"another network than the one that was given: width = 16 \(expected 8\)"):
        jax_ddpm.load_model(saved, network=own_unet.OwnConfig())


def test_a_built_in_network_can_be_given_too(tmp_path):
    config = jax_ddpm.ConvBlockConfig(widths=(32,), time_width=32)
    network = torch_ref.build(config, 3)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    assert jax_ddpm.load_model(tmp_path / "weights.pt", 8, network=config).info.network == config


class Names(nnx.Module):
    """A module in a module, an array of its own, and a layer without a name in PyTorch."""

    TORCH_NAMES: ClassVar = {
        "net.{}.mlp": "blocks.{}",
        "": "head",
        "net.1.mlp.extra": "blocks.1.first",
        "table": "position.value",
    }

    def __init__(self):
        self.blocks = nnx.List([layers.Linear(2, 2) for _ in range(2)])
        self.blocks[1] = nnx.Dict(first=layers.Linear(2, 3))
        self.head = layers.Linear(2, 4)
        self.position = nnx.Dict(value=nnx.Param(np.zeros((5, 2), np.float32)))


def test_a_table_renames_modules_and_what_is_in_them():
    assert set(weights.state_dict(Names())) == {
        *("net.0.mlp.weight", "net.0.mlp.bias", "net.1.mlp.extra.weight", "net.1.mlp.extra.bias"),
        *("weight", "bias", "table"),
    }


def test_two_arrays_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(Names, "TORCH_NAMES", {"x": "head", "x.weight": "position.value"})
    with pytest.raises(UserError, match=r"several arrays with the PyTorch name x.weight: see its TORCH_NAMES"):
        weights.state_dict(Names())


def test_files_with_the_earlier_names_of_flaxs_layers_load():
    network = unets.build(WIDE, 1)
    new, old = weights.state_dict(network), {}
    for keys, variable in nnx.to_flat_state(nnx.state(network)):
        old[".".join(map(str, keys))] = np.asarray(variable[...])
    assert {"body.0.kernel", "attention.query.kernel"} <= set(old)
    again = unets.build(WIDE, 1)
    weights.load_state_dict(again, {name: value + 1 for name, value in old.items()})
    for name, value in weights.state_dict(again).items():
        np.testing.assert_array_equal(value, new[name] + 1)


class WithBatchNorm(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, channels, 1))

    def forward(self, x, t):
        return super().forward(x)


class FlaxBatchNorm(nnx.Module):
    TORCH_NAMES: ClassVar = {"0": "first", "1": "norm", "2": "last"}

    def __init__(self, image_channels, dtype=None):
        self.first, self.last = layers.Conv(image_channels, 4, 1), layers.Conv(4, image_channels, 1)
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x, t):
        return self.last(self.norm(self.first(x)))


@dataclass(frozen=True)
class BatchNormConfig(jax_ddpm.NetworkConfig):
    name: Literal["batch_norm"] = "batch_norm"


def test_batchnorm_is_loaded_and_sampled_but_not_trained(tmp_path):
    jax_ddpm.register(BatchNormConfig, FlaxBatchNorm)
    torch_ref.register(BatchNormConfig, WithBatchNorm)
    torch.manual_seed(0)
    module = WithBatchNorm(1)
    for _ in range(3):
        module(3 + torch.randn(4, 1, 5, 5), 0)  # moves the statistics
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    ours, theirs, _ = load_both(tmp_path / "mine.pt", timesteps=4, beta_end=0.4)
    drawn = [package.sample(model, 2) for package, model in ((jax_ddpm, ours), (torch_ref, theirs))]
    np.testing.assert_allclose(*drawn, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"norm is an nnx.BatchNorm. It can be converted and sampled"):
        check_training(ours.network)
    module.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in weights.state_dict(ours.network).items()})


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda r: nnx.MultiHeadAttention(2, 4, dropout_rate=0.1, rngs=r), "with dropout_rate"),
        (lambda r: nnx.Dropout(0.5, broadcast_dims=(1,), rngs=r), "with broadcast_dims"),
    ],
)
def test_dropout_that_training_does_not_apply_is_refused(layer, said):
    with pytest.raises(UserError, match=said):
        check_training(nnx.Dict(layer=layer(nnx.Rngs(0))))


def test_dropout_of_flax_has_masks_of_its_own_whatever_the_split():
    """Gradients differ from those without dropout and from step to step, not with the parts of a batch."""
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)

    def losses(rate, accumulate=1):
        config = small(steps=2, batch_size=4, accumulate=accumulate, image_size=4)
        network = DropoutOnly(rate)
        adapt(network)
        graph, state = create_state(network, make_optimizer(config.training), False)
        gradients = make_gradients(graph, replace(config, network=own_unet.OwnConfig()))
        loss = jit(lambda state: gradients(state, images)[0])
        return loss(state), loss(replace(state, step=state.step + 1)), loss(state)

    first, second, again = losses(0.5)
    assert first == again and first != second
    np.testing.assert_allclose(losses(0.5, accumulate=2)[0], first, rtol=1e-6)


class DropoutOnly(nnx.Module):
    def __init__(self, rate):
        self.scale = nnx.Param(np.ones((), np.float32))
        self.first, self.second = nnx.Dropout(rate, rngs=nnx.Rngs(0)), nnx.Dropout(rate, rngs=nnx.Rngs(0))

    def __call__(self, x, t):
        return self.scale[...] * (self.first(x) - self.second(x)) + x
