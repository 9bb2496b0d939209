"""Weights of a run's checkpoints: EMA and raw, of any step, sampled, converted and reported."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import jax_ddpm
import torch_ref
from jax_ddpm import weights
from jax_ddpm.layers import Buffer
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.training.run_page import drawn_with
from tests.commands import refusal, succeed
from tests.small import small
from tests.test_runs import quiet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jax_ddpm.train(small(steps=16, keep_checkpoints=9), tmp_path_factory.mktemp("runs") / "run", log=quiet)


def values_of(path, **settings):
    said = []
    model = jax_ddpm.load_model(path, log=said.append, **settings)
    return weights.state_dict(model.network), model.info, said


def test_the_last_checkpoint_has_the_weights_of_the_run(run):
    exported, info = read_file(run)
    for path, settings in ((run / "checkpoints" / "16", {}), (run, {"step": 16}), (run / "checkpoints", {})):
        values, found, said = values_of(path, **settings)
        assert found == info and said == [f"Took the EMA weights of {run / 'checkpoints' / '16'}."]
        for name, value in exported.items():
            np.testing.assert_array_equal(values[name], value, err_msg=name)


def test_raw_weights_and_earlier_steps_are_others(run):
    seen = {}
    for step in (8, 16):
        for kind in ("ema", "raw"):
            values, info, said = values_of(run, step=step, weights=kind)
            assert info.step == step and said[0].startswith(f"Took the {'EMA' if kind == 'ema' else 'raw'} weights")
            seen[step, kind] = values["output.weight"]
    assert len({value.tobytes() for value in seen.values()}) == 4
    newest, _, said = values_of(run, weights="raw")
    np.testing.assert_array_equal(newest["output.weight"], seen[16, "raw"])
    assert said == [f"Took the raw weights of {run / 'checkpoints' / '16'}."]


def test_runs_without_ema(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["training"]["ema"] = False
    (folder / "config.json").write_text(json.dumps(config))
    values, _, said = values_of(folder / "checkpoints" / "8")
    assert said == [f"Took the raw weights of {folder / 'checkpoints' / '8'}."]
    np.testing.assert_array_equal(values["output.weight"], values_of(run, step=8, weights="raw")[0]["output.weight"])
    assert values_of(folder, weights="raw")[2] == [] == values_of(folder)[2]
    for settings in ({}, {"step": 8}):
        with pytest.raises(UserError, match="was trained without EMA"):
            values_of(folder, weights="ema", **settings)


def test_what_is_taken_of_a_run_is_said(run):
    line = (
        f"Took the EMA weights in {run / 'model.safetensors'}. The newest checkpoint has the raw ones: weights='raw'."
    )
    assert values_of(run)[2][0].startswith(line)
    assert values_of(run, weights="ema")[2] == []


def test_steps_and_files_that_do_not_exist(run, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint of step 9: expected one of 8, 16"):
        values_of(run, step=9)
    with pytest.raises(UserError, match=r"holds EMA weights\. For the raw ones, name the folder of the run"):
        values_of(run / "model.safetensors", weights="raw")
    shutil.copy(run / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="has no checkpoint of step 8: it has none"):
        values_of(tmp_path, step=8)
    with pytest.raises(UserError, match="weights = best: expected one of ema, raw"):
        values_of(run, weights="best")


def test_damaged_checkpoints(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "8"
    state = max(
        (path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"The checkpoint .*8 is damaged: .* has changed"):
        values_of(folder)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["network"]["widths"] = [64]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not hold ema weights of the network in"):
        values_of(tmp_path / "run", step=16)


def test_torch_ref_says_how_to_convert(run):
    for path, settings in ((run, {"weights": "raw"}), (run / "checkpoints" / "16", {"weights": "raw"})):
        with pytest.raises(UserError, match=r"jax-ddpm convert .*16 model\.safetensors --weights raw"):
            torch_ref.load_model(path, **settings)


def test_commands(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    out = tmp_path / "raw.safetensors"
    said = succeed(capsys, monkeypatch, "convert.py", folder / "checkpoints" / "8", out, "--weights", "raw")
    assert "Took the raw weights" in said
    assert torch_ref.load_model(out).info.step == 8
    x = {}
    for name, flags in {"file": (out,), "step": (folder, "--step", 8, "--weights", "raw")}.items():
        arguments = ("--num-images", 2, "--num-steps", 2, "--out", tmp_path / f"{name}.npz")
        succeed(capsys, monkeypatch, "sample.py", "--model", *flags, *arguments)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            x[name] = arrays["x0"]
    np.testing.assert_array_equal(x["file"], x["step"])
    assert "NAME=VALUE" in refusal(capsys, monkeypatch, "convert.py", out, tmp_path / "b.pt", "--network-setting", "4")


def test_reports(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert drawn_with(folder) == (16, False)
    said = succeed(capsys, monkeypatch, "report.py", folder / "checkpoints" / "8", "--weights", "raw")
    assert "Took the raw weights" in said and "Drawing the final pictures" in said
    assert drawn_with(folder) == (8, True)
    assert "8 (raw, not EMA)" in (folder / "report.html").read_text()
    assert "Drawing" not in succeed(capsys, monkeypatch, "report.py", folder, "--step", 8, "--weights", "raw")


def test_buffers_come_from_the_checkpoint(run):
    """The frequencies of the time embedding are not trained, and belong to the weights."""
    model = jax_ddpm.load_model(run, step=8, log=quiet)
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(model.network, Buffer)),
        jax.tree.leaves(nnx.state(jax_ddpm.load_model(run, log=quiet).network, Buffer)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
