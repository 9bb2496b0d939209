"""State dicts of UNet2DModel without a folder of their own, and folders with an average beside: no silent guess."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from diffusers import UNet2DModel

import jax_ddpm
import torch_ref
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import initial_weights
from jax_ddpm.spec.network_config import DDPMConfig
from parity_tests.diffusers_models import package_model

torch.set_num_threads(1)
NAME = "the package's choices"
SETTINGS = {  # those of NAME that shapes do not show
    **{"attention_head_dim": 8, "norm_num_groups": 4, "norm_eps": 1e-5, "downsample_padding": 1},
    **{"flip_sin_to_cos": True, "freq_shift": 0},
}


def load(path, package=torch_ref, **settings):
    said = []
    return package.load_model(path, log=said.append, **settings), said


def rms_error(model, reference) -> float:
    """Root mean square of the differences of two networks' predictions, as a share of the reference's."""
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 500])
    with torch.no_grad():
        expected, found = reference(x, t).sample, model(x, t)
    return float(((found - expected) ** 2).mean().sqrt() / (expected**2).mean().sqrt())


@pytest.fixture
def bare(tmp_path):
    """A bare state dict, and the model that it is of."""
    model = package_model(NAME)
    torch.save(model.state_dict(), tmp_path / "unet.pt")
    return tmp_path / "unet.pt", model


def test_a_config_beside_the_file_is_read(bare, folders):
    path, reference = bare
    shutil.copy(folders[NAME] / "config.json", path.parent)
    model, said = load(path)
    assert asdict(model.info.network).items() >= SETTINGS.items() and model.info.image_shape == (8, 8, 3)
    assert rms_error(model, reference) < 1e-5
    assert load(path, jax_ddpm)[0].info == model.info and load(path, jax_ddpm)[1] == said
    assert said[0].endswith("The network's settings are those of config.json beside it.")
    assert "network_settings" not in said[1] and "image_size" not in said[1] and "timesteps=1000" in said[1]
    values = initial_weights(path, model.info.network, log=said.append)
    assert set(values) == set(reference.state_dict())


def test_without_it_the_assumed_settings_are_named_and_can_be_given(bare):
    path, reference = bare
    with pytest.raises(UserError, match=r"Nearest: ddpm.* expected multiples of norm_num_groups, 32"):
        load(path)
    model, said = load(path, network_settings={"norm_num_groups": 4})
    assert rms_error(model, reference) > 0.1
    for name in {*SETTINGS, "act_fn"} - {"norm_num_groups"}:
        assert f"{name}=" in said[1]
    model, said = load(path, network_settings=SETTINGS | {"act_fn": "silu"}, image_size=8)
    assert rms_error(model, reference) < 1e-5
    assert "center_input_sample=False, attn_norm_num_groups=None (network_settings=" in said[1]
    assert "norm_eps" not in said[1]


def test_a_config_of_another_network_is_not_used(bare, folders):
    path, _ = bare
    shutil.copy(folders["three levels, narrow in the middle"] / "config.json", path.parent)
    model, said = load(path, network_settings={"norm_num_groups": 4})
    assert said[0].endswith("config.json is of another network and is not used.")
    assert model.info.network.norm_eps == DDPMConfig().norm_eps
    (path.parent / "config.json").write_text("{")
    assert len(load(path, network_settings={"norm_num_groups": 4})[1]) == 2


def test_settings_that_contradict_a_config(bare, folders):
    path, _ = bare
    shutil.copy(folders[NAME] / "config.json", path.parent)
    with pytest.raises(UserError, match="norm_eps = 1e-06 was given, but the weights or their settings say 1e-05"):
        load(path, network_settings={"norm_eps": 1e-6})


def test_a_file_in_half_precision_beside_its_config(tmp_path):
    package_model(NAME).half().save_pretrained(tmp_path, variant="fp16")
    reference = package_model(NAME).half().float()
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.fp16.safetensors"):
        assert rms_error(load(path)[0], reference) < 1e-5


def test_a_model_in_several_files(tmp_path):
    package_model(NAME).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert rms_error(load(tmp_path)[0], package_model(NAME)) < 1e-5


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint's folder of diffusers' training script, with raw weights and an average."""
    for name, factor in (("unet", 1.0), ("unet_ema", 1.01)):
        model = UNet2DModel.from_config(package_model(NAME).config)
        model.load_state_dict({key: factor * value for key, value in package_model(NAME).state_dict().items()})
        model.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "unet_ema" / "config.json").read_text())
    averaging = {"decay": 0.9999, "optimization_step": 100, "inv_gamma": 1.0, "power": 0.75, "use_ema_warmup": True}
    (tmp_path / "unet_ema" / "config.json").write_text(json.dumps(config | averaging))
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    torch.save({"a": 1}, tmp_path / "random_states_0.pkl")
    return tmp_path


def test_the_average_of_a_folder(checkpoint):
    raw = package_model(NAME).state_dict()["conv_in.weight"]
    for weights, factor, kind in ((None, 1.01, "EMA"), ("ema", 1.01, "EMA"), ("raw", 1.0, "raw")):
        model, said = load(checkpoint, weights=weights)
        torch.testing.assert_close(model.state_dict()["conv_in.weight"], factor * raw, rtol=0, atol=0)
        assert said[0].startswith(f"Took the {kind} weights in {checkpoint / ('unet' if factor == 1 else 'unet_ema')}")
        assert f"({'raw' if kind == 'EMA' else 'EMA'} weights)" in said[0]


def test_weights_that_are_not_those_of_config_json(folders, tmp_path):
    shutil.copytree(folders[NAME], tmp_path / "copy")
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copy(folders["attention at all levels"] / weights, tmp_path / "copy" / weights)
    with pytest.raises(UserError, match=r"another network than config\.json says: down_attention"):
        load(tmp_path / "copy")
