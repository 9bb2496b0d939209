"""The commands across frameworks: conversion in every direction, the same training, the same pictures."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import jax_ddpm
import torch_ref
from jax_ddpm import weights
from jax_ddpm.spec.ema_snapshots import find_snapshots
from jax_ddpm.training.run_folder import load_config
from tests.commands import FLAGS, command, refusal, succeed
from tests.small import small


@pytest.fixture(scope="module")
def runs(command_run, tmp_path_factory):
    """The same run in JAX and in PyTorch, in a folder with both."""
    folder = tmp_path_factory.mktemp("runs")
    result = command("train_torch.py", *FLAGS, "--out", folder / "torch", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    (folder / "jax").symlink_to(command_run[0])
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_both_trainers_take_the_same_steps(runs):
    ours, theirs = rows(runs / "jax"), rows(runs / "torch")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [2, 4, 6]
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in set(a) - {"images_per_second"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    assert load_config(runs / "jax") == load_config(runs / "torch")
    assert (runs / "torch" / "samples" / "grid.png").is_file()


def test_both_trainers_store_the_same_averages(runs):
    ours, theirs = (find_snapshots(runs / framework) for framework in ("jax", "torch"))
    assert [each.path.name for each in ours] == [each.path.name for each in theirs] and len(ours) == 6
    read = [[load_file(each.path) for each in snapshots] for snapshots in (ours, theirs)]

    def apart(one, two):
        assert one.keys() == two.keys()
        return np.sqrt(sum(np.sum((one[name] - two[name]) ** 2) for name in one))

    for number in range(2, 6):  # at step 2, the widths differ less than the frameworks
        assert np.argmin([apart(one, read[1][number]) for one in read[0]]) == number


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_same_seed_ends_in_the_same_picture(runs, tmp_path, precision, capsys, monkeypatch):
    arrays = {}
    for framework in ("jax", "torch"):
        out = tmp_path / f"{framework}.npz"
        flags = ["--model", runs / "torch", "--num-images", 6, "--seed", 5, "--precision", precision, "--out", out]
        succeed(capsys, monkeypatch, "sample.py", *flags, "--framework", framework)
        with np.load(out) as file:
            arrays[framework] = file["images"].astype(int)
    difference = np.abs(arrays["jax"] - arrays["torch"])
    assert difference.max() <= (0 if precision == "float64" else 1)
    assert np.mean(difference == 0) >= 0.999


def test_conversion_in_every_direction(runs, tmp_path, capsys, monkeypatch):
    """Run folder to .pt to folder to .pth to .safetensors: the same bits, the same settings."""
    places = [runs / "jax", *(tmp_path / name for name in ("a.pt", "folder", "b.pth", "c.safetensors"))]
    for source, target in itertools.pairwise(places):
        said = succeed(capsys, monkeypatch, "convert.py", source, target)
        assert "conv_block" in said and "parameters" in said and str(target) in said
    assert (runs / "jax" / "model.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    first = jax_ddpm.load_model(places[0])
    values = weights.state_dict(first.network)
    for place in places:
        model = torch_ref.load_model(place)
        assert not model.training
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), values[name], err_msg=name)
        assert model.info.step == 6 and model.info.diffusion.timesteps == 20
    assert jax_ddpm.load_model(tmp_path / "a.pt").info == first.info


def test_a_strangers_file_becomes_a_whole_model(runs, tmp_path):
    tensors = torch_ref.load_model(runs / "jax").state_dict()
    torch.save({"ema": {f"module.{name}": t.double() for name, t in tensors.items()}}, tmp_path / "theirs.pt")
    flags = ("--image-size", 8, "--timesteps", 20, "--beta-end", 0.4)
    result = command("convert.py", tmp_path / "theirs.pt", tmp_path / "ours.safetensors", *flags)
    assert result.returncode == 0, result.stderr
    info = jax_ddpm.load_model(tmp_path / "ours.safetensors").info
    assert info.diffusion == small().diffusion and info.image_shape == (8, 8, 1)


BAD_CONVERSIONS = {
    "unknown format": (["model", "out.onnx"], ".onnx"),
    "missing": (["missing.pt", "out.pt"], "does not exist"),
    "unwritable": (["model", "/proc/x/out.pt"], "cannot be created"),
    "contradiction": (["model", "out.pt", "--timesteps", "7"], "trained with 20"),
}


@pytest.mark.parametrize("kind", BAD_CONVERSIONS)
def test_bad_conversions(kind, runs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(runs / "jax")
    arguments, expected = BAD_CONVERSIONS[kind]
    assert expected in refusal(capsys, monkeypatch, "convert.py", *arguments)
    assert not list(tmp_path.glob("out.*"))


def test_a_missing_network_is_named_in_torch_too(capsys, monkeypatch, tmp_path):
    torch.save({"some.weight": torch.ones(3)}, tmp_path / "other.pt")
    said = refusal(capsys, monkeypatch, "sample.py", "--framework", "torch", "--model", tmp_path / "other.pt")
    assert "holds no complete network that is known here" in said and "some.weight" in said


def test_the_twin_says_that_it_cannot_resume(runs, capsys, monkeypatch):
    assert "cannot resume" in refusal(capsys, monkeypatch, "train_torch.py", "--resume", "--out", runs / "torch")
    assert "does not evaluate" in refusal(capsys, monkeypatch, "train_torch.py", "--evaluate-every", 5)
