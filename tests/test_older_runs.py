"""A run of an older version, commit 228b0de, still loads, samples and resumes.

`fixtures/run-228b0de.tar.xz` holds what that version left of 20 steps on digits (its config.json tells how): weights
after step 20, the same as .pt, the checkpoint of step 10, metrics.jsonl, and the pictures 0 to 3 that it drew of
seed 3. Only paths in config.json and in a text of Orbax were changed by hand.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import jax_ddpm
import torch_ref
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.training.loop import train
from jax_ddpm.training.run_folder import load_config

ARCHIVE = Path(__file__).parent / "fixtures" / "run-228b0de.tar.xz"
SAME_PICTURE = 1e-5  # what 20 steps in float32 leave of another CPU's or framework's rounding; measured: 5e-7
SAME_WEIGHTS = 1e-6  # the same of 10 training steps; measured with plain operations instead of the CPU routes: 3e-8
CHANCE = ("seq1.0.bias", "seq2.0.bias")  # GroupNorm removes them: their gradient is rounding, its sign Adam's step


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("package", [jax_ddpm, torch_ref])
@pytest.mark.parametrize("name", [".", "model.safetensors", "model.pt"])
def test_its_weights_load_and_draw_the_same_pictures(folder, package, name):
    model = package.load_model(folder / name)
    assert model.info.step == 20 and model.info.image_shape == (8, 8, 1) and model.info.diffusion.timesteps == 20
    drawn = package.sample(model, 4, seed=3)
    np.testing.assert_allclose(drawn, np.load(folder / "samples_of_seed_3.npy"), rtol=0, atol=SAME_PICTURE)


def test_its_checkpoint_loads(folder):
    raw, ema = (jax_ddpm.load_model(folder, step=10, weights=kind, log=lambda line: None) for kind in ("raw", "ema"))
    assert raw.info.step == 10 and raw.info.image_shape == (8, 8, 1)
    x, t = np.ones((1, 8, 8, 1), np.float32), np.array([3])
    assert np.isfinite(np.asarray(raw(x, t))).all() and not np.allclose(raw(x, t), ema(x, t))


def test_it_is_resumed_and_ends_as_it_did(folder):
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    expected, _ = read_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    said = []
    train(load_config(folder), folder, resume=True, log=said.append)
    assert any(line.endswith("from step 10.") for line in said), said
    losses = [
        [json.loads(row)["loss"] for row in r] for r in (rows, (folder / "metrics.jsonl").read_text().splitlines())
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    found, info = read_file(folder / "model.safetensors")
    assert info.step == 20 and found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith(CHANCE):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=SAME_WEIGHTS, err_msg=name)
