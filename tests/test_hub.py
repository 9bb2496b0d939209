"""Models of the Hugging Face Hub: in its cache, downloaded, or named in a message. No test uses the network."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from jax_ddpm import unets, weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.hub import local_path
from jax_ddpm.spec.model_files import read_model
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig
from jax_ddpm.spec.write_model import save_model

NAME, FOLDER = "somebody/some-ddpm_v1.0", "models--somebody--some-ddpm_v1.0"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A diffusers folder, as the Hub has it."""
    network = DDPMConfig(
        widths=(8,), layers_per_block=1, down_attention=(False,), up_attention=(False,), norm_num_groups=4
    )
    module = unets.build(network, 1)
    weights.initialise(module, 1)
    info = ModelInfo(network=network, image_shape=(4, 4, 1), diffusion=DiffusionConfig(timesteps=7))
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, weights.state_dict(module), info, diffusers=True)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, a working folder without files, and no huggingface_hub."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "hub"


def add_snapshot(cache, model, commit, names=None) -> Path:
    """A snapshot with files of `model`, as links to blobs."""
    snapshot = cache / FOLDER / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        if names is None or file.name in names:
            (snapshot / file.name).symlink_to(file)
    return snapshot


def test_a_cached_snapshot_is_found_by_name_and_by_folder(cache, model, capsys):
    snapshot = add_snapshot(cache, model, "abc")
    for path in (NAME, cache / FOLDER, snapshot.parent, snapshot):
        _, info = read_model(path)
        assert info.diffusion.timesteps == 7 and info.image_shape == (4, 4, 1)
        said = capsys.readouterr().out
        assert {NAME: str(snapshot), snapshot: ""}.get(path, "its snapshot abc") in said


def test_the_main_branch_chooses_among_snapshots(cache, model):
    older, newer = add_snapshot(cache, model, "older"), add_snapshot(cache, model, "newer")
    assert local_path(NAME, print) in (older, newer)
    for snapshot in (older, newer):
        main = cache / FOLDER / "refs" / "main"
        main.parent.mkdir(exist_ok=True)
        main.write_text(snapshot.name)
        assert local_path(NAME, print) == local_path(cache / FOLDER, print) == snapshot
    main.write_bytes(b"\xff\x00/../..")
    assert local_path(NAME, print) in (older, newer)


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        read_model(path)
    assert str(error.value).count("\n") <= 1
    return str(error.value)


def test_without_huggingface_hub_the_message_says_how_to_fetch_it(cache, model):
    assert "pip install 'jax-ddpm[hub]'" in refused(NAME)
    assert f"hf download {NAME} --local-dir some-ddpm_v1.0" in refused(NAME)
    add_snapshot(cache, model, "abc", ("config.json",))
    assert "pip install 'jax-ddpm[hub]'" in refused(NAME)  # no weights


def use_hub(monkeypatch, snapshot_download):
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))


@pytest.mark.parametrize("unet", ["", "unet/"])
def test_settings_and_weights_are_downloaded(cache, model, monkeypatch, unet):
    there = {f"{unet}config.json": "config.json", f"{unet}{WEIGHTS}": WEIGHTS, "README.md": "config.json"}
    there |= {("scheduler/" if unet else "") + "scheduler_config.json": "scheduler_config.json"}
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        snapshot = cache / FOLDER / "snapshots" / "abc"
        for path, source in there.items():
            if path in allow_patterns:
                (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / path).write_bytes((model / source).read_bytes())
        return str(snapshot)

    use_hub(monkeypatch, snapshot_download)
    assert read_model(NAME)[1].diffusion.timesteps == read_model(NAME)[1].diffusion.timesteps == 7
    assert asked == [NAME]  # the second time it is in the cache
    assert not list(cache.rglob("README.md"))


def test_a_failed_download_is_a_message(cache, monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route")

    use_hub(monkeypatch, snapshot_download)
    assert "failed: ConnectionError" in refused(NAME)
    unknown = type("RepositoryNotFoundError", (Exception,), {})
    use_hub(monkeypatch, Mock(side_effect=unknown))
    assert "failed: it has no public model of this name" in refused(NAME)
    use_hub(monkeypatch, lambda name, allow_patterns: str(cache))
    assert f"has no {WEIGHTS}" in refused(NAME)


def test_paths_are_not_looked_up(cache, monkeypatch):
    use_hub(monkeypatch, None)
    Path("runs").mkdir()
    for path in ("runs/none", "none", "a/b/c", "../none", "/none/there", "none/model.safetensors"):
        assert "does not exist" in refused(path)


OTHERS = {
    "a pipeline": (
        {"model_index.json": {"_class_name": "StableDiffusionPipeline", "vae": [], "unet": [], "scheduler": []}},
        "a pipeline of vae, unet, scheduler (StableDiffusionPipeline)",
    ),
    "a transformer": (
        {"model_index.json": {"_class_name": "DiTPipeline", "transformer": [], "vae": [], "scheduler": []}},
        "a pipeline of transformer, vae, scheduler (DiTPipeline)",
    ),
    "Flax": (
        {"config.json": {"_class_name": "FlaxUNet2DConditionModel"}, "diffusion_flax_model.msgpack": {}},
        "_class_name = 'FlaxUNet2DConditionModel' (expected UNet2DModel)",
    ),
    "Flax weights": (
        {"config.json": {"_class_name": "UNet2DModel"}, "diffusion_flax_model.msgpack": {}},
        "only Flax weights of diffusers, diffusion_flax_model.msgpack",
    ),
    "an autoencoder": ({"config.json": {"_class_name": "AutoencoderKL"}, WEIGHTS: {}}, "_class_name = 'AutoencoderKL'"),
    "a text encoder": (
        {"config.json": {"architectures": ["CLIPTextModel"], "model_type": "clip"}, "model.safetensors": {}},
        "a model of transformers, ['CLIPTextModel']",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_folders_of_other_models_are_refused_by_name(kind, tmp_path):
    files, named = OTHERS[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert named in refused(tmp_path)
