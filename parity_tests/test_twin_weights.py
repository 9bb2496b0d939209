"""torch_ref's weights and files are those of jax_ddpm."""

import jax
import numpy as np
import pytest
import torch

import jax_ddpm
import jax_ddpm.unets
import jax_ddpm.weights
import torch_ref
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.write_model import write_model
from parity_tests.twins import DTYPES, NETWORK_SETTINGS, networks

INFO = ModelInfo(
    network=ConvBlockConfig(**NETWORK_SETTINGS), image_shape=(4, 4, 3), diffusion=DiffusionConfig(objective="v")
)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_initial_weights_are_equal(seed):
    config = ConvBlockConfig(widths=(32, 64, 128), time_width=32)
    theirs, ours = jax_ddpm.unets.build(config, 3), torch_ref.unets.build(config, 3)
    jax_ddpm.weights.initialise(theirs, seed)
    torch_ref.weights.initialise(ours, seed)
    values = jax_ddpm.weights.state_dict(theirs)
    assert set(ours.state_dict()) == set(values)
    for name, value in torch_ref.weights.state_dict(ours).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, values[name], err_msg=name)


def test_initial_weights_are_within_the_bounds_of_pytorch():
    """The largest of the numbers that PyTorch itself draws, and of ours, for layers of every kind."""
    settings = ConvBlockConfig(widths=(32, 64), time_width=32)
    fresh, ours = torch_ref.unets.build(settings, 3), torch_ref.unets.build(settings, 3)
    torch_ref.weights.initialise(ours, 1)
    for (name, a), b in zip(fresh.named_parameters(), ours.parameters(), strict=True):
        if a.numel() > 1000:
            torch.testing.assert_close(b.abs().max(), a.abs().max(), rtol=0.02, atol=0, msg=name)
            torch.testing.assert_close(b.std(), a.std(), rtol=0.1, atol=0, msg=name)
        elif ".1.weight" in name and "seq" in name:
            assert torch.equal(b, torch.ones_like(b)), name


@DTYPES
def test_weights_go_round(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        values = torch_ref.weights.state_dict(ours)
        jax_ddpm.weights.load_state_dict(theirs, values, dtype)
        back = jax_ddpm.weights.state_dict(theirs)
    assert set(back) == set(values)
    for name in values:
        assert back[name].dtype == values[name].dtype == dtype
        np.testing.assert_array_equal(back[name], values[name], err_msg=name)


def test_wrong_weights_are_all_named_in_the_same_words():
    ours, theirs = networks()
    values = torch_ref.weights.state_dict(ours)
    before = torch_ref.weights.state_dict(ours)
    del values["output.bias"]
    values["extra"] = np.zeros((2, 3), np.float32)
    values["output.weight"] = values["output.weight"][:1]
    values["time_emb.1.bias"] = values["time_emb.1.bias"].copy()
    values["time_emb.1.bias"][3] = np.nan
    with pytest.raises(UserError) as error:
        torch_ref.weights.load_state_dict(ours, values)
    with pytest.raises(UserError) as their_error:
        jax_ddpm.weights.load_state_dict(theirs, values)
    for said in (
        "missing: output.bias (3,)",
        "unexpected: extra (2, 3)",
        "shape: output.weight is (1, 32, 1, 1), expected (3, 32, 1, 1)",
        "not finite: time_emb.1.bias",
    ):
        assert said in str(error.value)
    faults, their_faults = (str(e.value).partition(": ")[2].rstrip(".").split("; ") for e in (error, their_error))
    assert len(faults) == 4 and sorted(faults) == sorted(their_faults)
    for name, value in torch_ref.weights.state_dict(ours).items():
        np.testing.assert_array_equal(value, before[name], err_msg="changed by a refused state dict")


def test_layers_without_initial_values_are_refused():
    with pytest.raises(UserError, match="No initial values are known for 0, a InstanceNorm2d"):
        torch_ref.weights.initialise(torch.nn.Sequential(torch.nn.InstanceNorm2d(3, affine=True)), 0)


def test_model_files_are_read_by_both(tmp_path):
    ours, _ = networks()
    values = torch_ref.weights.state_dict(ours)
    write_model(tmp_path / "model.safetensors", values, INFO)
    prefixed = {f"module.model.{name}": torch.from_numpy(value) for name, value in values.items()}
    torch.save({"model_state_dict": {"step": 3}, "ema": prefixed}, tmp_path / "stranger.pt")
    torch.save({name: value.bfloat16() for name, value in prefixed.items()}, tmp_path / "half.pth")
    for name in (".", "model.safetensors", "stranger.pt"):
        a = torch_ref.load_model(tmp_path / name, image_size=4)
        b = jax_ddpm.load_model(tmp_path / name, image_size=4)
        assert not a.training
        assert a.info == b.info
        assert torch_ref.weights.num_parameters(a) == b.num_parameters
        for key, value in jax_ddpm.weights.state_dict(b.network).items():
            np.testing.assert_array_equal(torch_ref.weights.state_dict(a)[key], value, err_msg=key)
    half = torch_ref.load_model(tmp_path / "half.pth", image_size=4, precision="float64", timesteps=9)
    assert half.info.diffusion.timesteps == 9
    assert torch.equal(half.output.weight, ours.output.weight.detach().bfloat16().double())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("model.onnx", b"x", "is not a model file"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read as safetensors"),
        ("cut.pt", b"PK\x03\x04", "cannot be read as a PyTorch checkpoint"),
        ("", None, "has no model.safetensors"),
    ],
)
def test_files_that_are_no_models_are_refused_in_the_same_words(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        torch_ref.load_model(tmp_path / name)
    with pytest.raises(UserError) as their_error:
        jax_ddpm.load_model(tmp_path / name)
    assert str(error.value) == str(their_error.value)


def test_contradictions_and_unknown_precisions_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model(path, torch_ref.weights.state_dict(networks()[0]), INFO)
    with pytest.raises(UserError, match="objective = eps was given, but the model was trained with v"):
        torch_ref.load_model(path, objective="eps")
    assert torch_ref.load_model(path, clip="state").info.diffusion.clip == "state"
    with pytest.raises(UserError, match="precision = half: expected one of float32, tf32, bfloat16, float64"):
        torch_ref.load_model(path, precision="half")
