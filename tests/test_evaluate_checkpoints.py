"""`jax-ddpm evaluate RUN --checkpoints`: scores over the training."""

import json
import re
import shutil
import tarfile

import pytest
from PIL import Image

from jax_ddpm.evaluation import as_columns, read_results
from tests.commands import refusal, succeed
from tests.test_older_runs import ARCHIVE

FLAGS = ("--features", "pixels", "--num-images", 6, "--sampler", "ddim", "--num-steps", 3)


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints 10 and 20, which hold the same weights."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "10", tmp_path / "run" / "checkpoints" / "20")
    return tmp_path / "run"


def test_a_table_a_curve_and_results(run, tmp_path, capsys, monkeypatch):
    flags = (*FLAGS, "--cache-dir", tmp_path / "cache")
    said = succeed(
        capsys, monkeypatch, "evaluate.py", run, "--checkpoints", "all", *flags, "--out", tmp_path / "a.json"
    )
    lines = {line.split("  ")[0]: re.split(r"  +", line)[1:] for line in said.splitlines()}
    assert lines["10"] == lines["20"] and lines["10"] != lines["real images"]
    assert lines["step"][:2] == ["FID", "KID"]
    first, second = json.loads((tmp_path / "a.json").read_text())
    assert (first["step"], second["step"]) == (10, 20) and lines["10"][0].startswith(f"{first['fid']:.4g} [")
    columns = as_columns(read_results(run))
    assert columns["step"] == [10, 20] and columns["weights"] == ["ema", "ema"]
    assert columns["scores.fid"] == [first["fid"], second["fid"]] and columns["sampler.num_steps"] == [3, 3]
    with Image.open(run / "evaluation" / "curve.png") as curve:
        assert curve.width > 500
    (manifest,) = run.glob("checkpoints/20/manifest.json")
    manifest.write_text("{}}")
    said = succeed(capsys, monkeypatch, "evaluate.py", run, "--checkpoints", "20,10", *flags)
    assert "Step 20 is left out: " in said and "damaged" in said
    assert as_columns(read_results(run))["scores.fid"] == [first["fid"]] * 3  # from the samples that were there


def test_what_cannot_be_evaluated(run, tmp_path, capsys, monkeypatch):
    def said(*flags):
        return refusal(capsys, monkeypatch, "evaluate.py", *flags, *FLAGS, "--cache-dir", tmp_path / "cache")

    assert "no checkpoint of step 15: expected one of 10, 20" in said(run, "--checkpoints", "10,15")
    assert "checkpoints = some: expected all, or steps such as 10,20" in said(run, "--checkpoints", "some")
    assert "--checkpoints and --step do not go together" in said(run, "--checkpoints", "all", "--step", 10)
    assert "Give a .json" in said(run, "--checkpoints", "all", "--out", tmp_path / "x.npz")
    shutil.copy(run / "model.safetensors", tmp_path)
    for path in run.glob("model.*"):
        path.unlink()
    assert "Its checkpoints: 10, 20." in said(run)
    lone = (tmp_path / "model.safetensors", "--reference", "train:digits", "--checkpoints", "all")
    assert "is no run" in said(*lone)
