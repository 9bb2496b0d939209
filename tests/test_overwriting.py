"""What commands replace without being asked, and what only with --overwrite."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import refusal, succeed


@pytest.fixture
def place(command_run, tmp_path, monkeypatch):
    """The current folder, with a model."""
    shutil.copy(command_run[0] / "model.safetensors", tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    images = np.zeros((3, 8, 8, 1))
    monkeypatch.setattr("jax_ddpm.commands.drawing.draw_images", lambda flags, *_: (images[: flags.num_images], {}))
    return tmp_path


def test_convert_replaces_what_it_wrote_and_asks_for_the_rest(place, command_run, capsys, monkeypatch):
    shutil.copytree(command_run[0], place / "run")
    for _ in range(2):
        for output in ("b.safetensors", "b.pt", "folder"):
            succeed(capsys, monkeypatch, "convert.py", "a.safetensors", output)
    torch.save({"x": torch.ones(2)}, "theirs.pt")
    (place / "text.safetensors").write_text("no model")
    kept = {"run": "weights of a run", "run/model.safetensors": "weights of a run", "theirs.pt": "not written by this"}
    for output, problem in (kept | {"text.safetensors": "not written by this"}).items():
        said = refusal(capsys, monkeypatch, "convert.py", "a.safetensors", output)
        assert problem in said and "--overwrite" in said
        succeed(capsys, monkeypatch, "convert.py", "a.safetensors", output, "--overwrite")


def test_sample_asks_before_it_mixes_or_replaces(place, capsys, monkeypatch):
    def flags(out, count=2):
        return ["sample.py", "--model", "a.safetensors", "--num-images", count, "--out", out]

    for out in ("x.png", "x.npz"):
        for _ in range(2):
            succeed(capsys, monkeypatch, *flags(out))
    succeed(capsys, monkeypatch, *flags("folder", 3))
    (place / "folder" / "photo.png").touch()
    np.savez("data.npz", images=np.zeros(3))
    (place / "text.png").write_text("no picture")
    for out in ("folder", "data.npz", "text.png"):
        said = refusal(capsys, monkeypatch, *flags(out))
        assert f"{out} " in said and "--overwrite" in said
        succeed(capsys, monkeypatch, *flags(out), "--overwrite")
    assert {path.name for path in (place / "folder").iterdir()} == {"00000.png", "00001.png", "photo.png"}


def test_an_edited_image_is_not_replaced(place, capsys, monkeypatch):
    Image.new("L", (8, 8)).save("x.png")
    flags = ["--model", "a.safetensors", "--image", "x.png", "--start-t", 1, "--num-images", 1, "--out", "./x.png"]
    assert "would replace the file of --image" in refusal(capsys, monkeypatch, "sample.py", *flags)
    succeed(capsys, monkeypatch, "sample.py", *flags, "--overwrite")
