"""`jax-ddpm push`: the folder and its card, what is uploaded, and loading it by its name. No test uses the network."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import jax_ddpm
from jax_ddpm.evaluation.results import results_file
from jax_ddpm.spec.errors import messages_of_commands
from jax_ddpm.spec.run_config import DataConfig, RunConfig
from jax_ddpm.training.hub_folder import without_paths, write_hub_folder
from tests.commands import refusal, succeed

NAME = "somebody/digits-ddpm"
SETTINGS = {"sampler": "ddim", "num_steps": 2}


@pytest.fixture(scope="module")
def folder(command_run, tmp_path_factory):
    """What is uploaded of a run that was evaluated."""
    run = tmp_path_factory.mktemp("push") / "digits"
    shutil.copytree(command_run[0], run)
    results_file(run).parent.mkdir()
    reference = {"name": "train:folder:/home/me/My Photos", "fingerprint": "def"}
    scores = {"fid": 12.5, "num_images": 100, "extractor": {"name": "classifier", "fingerprint": "abc"}}
    scores |= {"num_reference": 90, "reference": reference}
    sampler = {"sampler": "ddim", "num_steps": 2}
    line = {"step": 6, "weights": "ema", "sampler": sampler, "seed": 0, "scores": scores}
    results_file(run).write_text(json.dumps(line | {"seconds": 1.0, "date": "2026-01-01"}) + "\n")
    write_hub_folder(run, run.with_name("files"), NAME, log=lambda line: None)
    return run.with_name("files")


def test_the_folder_and_its_card(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "grid.png", "reverse.png", "loss.png")
    }
    _, front, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "jax_ddpm",
        "tags": ["diffusion", "ddpm", "jax", "flax"],
        "pipeline_tag": "unconditional-image-generation",
    }
    assert "# license: " in front  # the user's choice
    assert f"jax-ddpm sample --model {NAME} --num-images 16" in text and f'jax_ddpm.sample("{NAME}", 16)' in text
    assert "![Samples](grid.png)" in text and "Drawn with the sampler dpmpp in 9 steps." in text
    assert "| steps of the weights | 6 |" in text and "| learning rate | 0.001, cosine |" in text
    assert "| FID by classifier to train:folder:My Photos | 12.5 |" in text
    assert "/" not in json.dumps(json.loads((folder / "config.json").read_text()))  # no path, no command


def test_paths_stay_at_home():
    places = {"folder:/home/me/My Photos": "folder:My_Photos", "/a/b.npz": "b.npz", "mnist": "mnist"}
    for dataset, public in places.items():
        config = RunConfig(data=DataConfig(dataset, data_dir="/x", cache_dir="/y"))
        assert without_paths(config).data == DataConfig(public)


class Hub:
    """Stands for huggingface_hub, with one model."""

    def __init__(self, cache, monkeypatch, files=()):
        self.snapshot, self.files = cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / "abc", set(files)
        self.created, self.patterns = None, []
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        monkeypatch.setitem(sys.modules, "huggingface_hub", self)
        self.HfApi = lambda: self

    def create_repo(self, name, **settings):
        self.created = (name, settings)
        return f"https://hub/{name}"

    def file_exists(self, name, file):
        return file in self.files

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        assert repo_id == NAME
        self.content = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.uploaded = self.content.keys() - set(ignore_patterns or ())
        self.files |= self.uploaded

    def snapshot_download(self, name, allow_patterns):
        self.snapshot.mkdir(parents=True, exist_ok=True)
        self.patterns.append(allow_patterns)
        for file in self.files & set(allow_patterns):
            (self.snapshot / file).write_bytes(self.content[file])
        return str(self.snapshot)


def test_upload_and_load_by_name(command_run, tmp_path, monkeypatch, capsys):
    run, _ = command_run
    monkeypatch.chdir(tmp_path)
    hub = Hub(tmp_path / "cache", monkeypatch)
    said = succeed(capsys, monkeypatch, "push.py", run, NAME)
    assert hub.created == (NAME, {"private": False, "exist_ok": True})
    assert {"README.md", "config.json", "model.safetensors", "grid.png"} <= hub.files
    assert f"Published: https://hub/{NAME}" in said and "Choose a license" in said
    model = jax_ddpm.load_model(NAME, log=lambda line: None)
    assert not {"README.md", "grid.png"} & {path.name for path in hub.snapshot.iterdir()}
    wanted = jax_ddpm.sample(run, 2, **SETTINGS)
    np.testing.assert_array_equal(jax_ddpm.sample(model, 2, **SETTINGS), wanted)
    asked = len(hub.patterns)
    np.testing.assert_array_equal(jax_ddpm.sample(NAME, 2, **SETTINGS), wanted)  # from the cache
    assert len(hub.patterns) == asked


def test_a_card_that_is_there_stays(command_run, tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path, monkeypatch, ["README.md"])
    said = succeed(capsys, monkeypatch, "push.py", command_run[0], NAME, "--private")
    assert hub.created[1]["private"] and "README.md stays as it was" in said
    assert "model.safetensors" in hub.uploaded and "README.md" not in hub.uploaded


def test_only_the_folder(command_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = succeed(capsys, monkeypatch, "push.py", command_run[0], NAME, "--folder", tmp_path / "new")
    assert "Nothing was uploaded" in said and (tmp_path / "new" / "README.md").is_file()
    assert jax_ddpm.load_model(tmp_path / "new").info.step == 6
    assert "is not empty" in refusal(capsys, monkeypatch, "push.py", command_run[0], NAME, "--folder", tmp_path / "new")
    assert "pip install 'jax-ddpm[hub]'" in refusal(capsys, monkeypatch, "push.py", command_run[0], NAME)


def test_mistakes(command_run, tmp_path, monkeypatch, capsys):
    run, _ = command_run
    assert "expected OWNER/NAME" in refusal(capsys, monkeypatch, "push.py", run, "digits")
    assert "is no run" in refusal(capsys, monkeypatch, "push.py", tmp_path, NAME)
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert "was interrupted before it wrote" in refusal(capsys, monkeypatch, "push.py", tmp_path, NAME)

    def refuse(*_, **__):
        raise PermissionError("401 Client Error")

    api = SimpleNamespace(create_repo=refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: api))
    with messages_of_commands():
        said = refusal(capsys, monkeypatch, "push.py", run, NAME)
    assert "PermissionError: 401 Client Error" in said and "hf auth login" in said
