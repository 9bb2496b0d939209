"""Files of weights: whole, strict, and other people's."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from safetensors.numpy import save_file

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.weights.model import load_model

CONFIG = ConvBlockConfig(widths=(32, 64), time_width=32)
INFO = ModelInfo(network=CONFIG, image_shape=(16, 16, 3), diffusion=DiffusionConfig(timesteps=50, clip="state"), step=7)


@pytest.fixture(scope="module")
def values():
    network = unets.build(CONFIG, 3)
    weights.initialise(network, 1)
    return weights.state_dict(network)


def check(path, values, atol=0):
    model = load_model(path)
    loaded = weights.state_dict(model.network)
    assert set(loaded) == set(values)
    for name, value in values.items():
        np.testing.assert_allclose(loaded[name], value, rtol=0, atol=atol, err_msg=name)
    return model


def test_round_trip_is_exact(values, tmp_path):
    write_model(tmp_path / "model.safetensors", values, INFO)
    assert check(tmp_path / "model.safetensors", values).info == INFO
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_are_on_the_device_once_and_for_all(values, tmp_path):
    """NumPy arrays would travel to a GPU at every call."""
    write_model(tmp_path / "model.safetensors", values, INFO)
    network = load_model(tmp_path / "model.safetensors").network
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(network)))


def tensors(values, prefix="", dtype=torch.float32):
    return {prefix + name: torch.from_numpy(value).to(dtype) for name, value in values.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "network.", "model.", "module._orig_mod."])
def test_prefixes(values, tmp_path, prefix):
    torch.save(tensors(values, prefix), tmp_path / "model.pt")
    model = check(tmp_path / "model.pt", values)
    assert model.info.network == CONFIG and model.info.image_shape == (32, 32, 3)


@pytest.mark.parametrize("load_model", [jax_ddpm.load_model, torch_ref.load_model])
def test_weights_that_are_not_finite_are_refused_by_name(values, tmp_path, load_model):
    broken = {name: value.copy() for name, value in values.items()}
    broken["enc_convs.0.seq1.0.weight"][0, 0, 1, 1] = np.nan
    broken["output.bias"][0] = -np.inf
    write_model(tmp_path / "model.safetensors", broken, INFO)
    torch.save(tensors(broken, "module."), tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        with pytest.raises(ValueError, match=r"not finite: enc_convs\.0\.seq1\.0\.weight") as error:
            load_model(tmp_path / name)
        assert "output.bias" in str(error.value)


@pytest.mark.parametrize("holder", ["model_state_dict", "state_dict", "ema", "ema_model"])
def test_holders(values, tmp_path, holder):
    torch.save({"epoch": 3, holder: tensors(values)}, tmp_path / "model.pth")
    check(tmp_path / "model.pth", values)


def test_ema_wins_over_raw_weights(values, tmp_path):
    raw = {name: tensor + 1 for name, tensor in tensors(values).items()}
    torch.save({"model_state_dict": raw, "ema": tensors(values)}, tmp_path / "a.pt")
    check(tmp_path / "a.pt", values)
    torch.save({**raw, **tensors(values, "ema_model.")}, tmp_path / "b.pt")
    check(tmp_path / "b.pt", values)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 0), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)])
def test_other_precisions(values, tmp_path, dtype, error):
    torch.save(tensors(values, dtype=dtype), tmp_path / "model.pt")
    check(tmp_path / "model.pt", values, error)
    safetensors.torch.save_file(tensors(values, dtype=dtype), tmp_path / "model.safetensors")
    check(tmp_path / "model.safetensors", values, error)


def refused(values, match):
    network = unets.build(CONFIG, 3)
    with pytest.raises(UserError, match=match):
        weights.load_state_dict(network, values)


def test_every_fault_is_listed(values):
    wrong = dict(values)
    del wrong["output.bias"], wrong["deconvs.0.weight"]
    wrong["extra.weight"] = np.ones(2)
    wrong["output.weight"] = np.ones((3, 32))
    wrong["time_emb.1.bias"] = values["time_emb.1.bias"] * np.nan
    for name in ("output.bias", "deconvs.0.weight", "extra.weight", "output.weight", "time_emb.1.bias"):
        refused(wrong, name)


def test_duplicates_are_refused(values, tmp_path):
    torch.save({**tensors(values), "module.output.bias": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"Unexpected: module\.output\.bias"):
        load_model(tmp_path / "model.pt")


def test_strange_metadata_is_refused(values, tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in ("{}", "[]", "no json", '{"format_version": 99}', '{"format_version": 1, "network": 3}'):
        save_file(values, path, metadata={"jax_ddpm": metadata})
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_model(path)


def test_truncated_files_are_refused(values, tmp_path):
    write_model(tmp_path / "model.safetensors", values, INFO)
    torch.save(tensors(values), tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(UserError, match=name):
                load_model(tmp_path / name)


def test_bare_files_take_what_is_given(values, tmp_path):
    save_file(values, tmp_path / "bare.safetensors")
    info = load_model(tmp_path / "bare.safetensors", 16, timesteps=50, objective="v").info
    assert info.image_shape == (16, 16, 3) and info.diffusion == DiffusionConfig(timesteps=50, objective="v")


def test_only_the_way_of_sampling_overrules_what_a_file_tells(values, tmp_path):
    path = tmp_path / "model.safetensors"
    write_model(path, values, INFO)
    assert load_model(path, clip="none", variance="posterior", timesteps=50).info.diffusion.clip == "none"
    with pytest.raises(UserError, match="timesteps = 60 was given, but the model was trained with 50"):
        load_model(path, timesteps=60)


def test_unfilled_networks_cannot_go_unnoticed():
    network = unets.build(CONFIG, 3)
    assert np.isnan(network(np.zeros((1, 16, 16, 3), np.float32), np.zeros(1, np.int32))).all()
