"""Runs that are killed, stopped, or out of disk: they end as if nothing had happened."""

import json
import random
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import jax_ddpm
import torch_ref
from tests.commands import refusal
from tests.killing import ended, start

FLAGS = ["--image-size", 8, "--widths", 32, "--time-width", 32, "--timesteps", 10, "--beta-end", 0.4, "--flip"]
FLAGS += ["--batch-size", 8, "--num-samples", 4, "--log-every", 5, "--validate-every", 9, "--checkpoint-every", 7]
FLAGS += ["--sample-every", 16, "--keep-best"]
STEPS = 40
BATCH = "jax_ddpm.training.feed:Feed.batches"
CHECKPOINT = "jax_ddpm.training.checkpoint:check_disk_space"
IN_CHECKPOINT = "jax_ddpm.training.checkpoint:checksums"
IN_EXPORT = "jax_ddpm.spec.write_model:save_file"
FINISH = "jax_ddpm.training.loop:finish"
IN_EVALUATION = "jax_ddpm.training.evaluate:score"
IN_CACHE = "jax_ddpm.data.cache:write_text"  # the array is there, what describes it is not


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a run on 36 pictures, in a folder whose name needs care."""
    folder = tmp_path_factory.mktemp("data") / "pictures, 'ünïcode'"
    folder.mkdir()
    for number in range(36):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), np.uint8)
        Image.fromarray(pixels[..., 0]).save(folder / f"{number}.png")
    return [*FLAGS, "--dataset", f"folder:{folder}"]


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(*flags, "--steps", STEPS, "--out", folder / "run", "--cache-dir", folder / "cache")[0] == 0
    return folder / "run"


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in lines]


def arrays(checkpoint):
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(checkpoint / "state")


def assert_same(folder, undisturbed, but=()):
    assert rows(folder) == rows(undisturbed)
    assert [row["step"] for row in rows(folder)] == sorted({row["step"] for row in rows(folder)})
    pictures = {path.name for path in (undisturbed / "samples").glob("*.png")} - set(but)
    assert {"grid.png", "step-0000032.png"} <= pictures
    assert {path.name for path in (folder / "samples").glob("*.png")} == pictures
    for name in ("model.safetensors", *(f"samples/{name}" for name in pictures)):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == names
    ours, theirs = (arrays(folder / "checkpoints" / str(STEPS)) for folder in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes(), name
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "drafts were left"


def resumed(flags, folder, *more, **settings):
    """The run once more: from its beginning if it was not begun."""
    arguments = ["--resume"] if (folder / "config.json").exists() else [*flags, "--steps", STEPS]
    return ended(*arguments, "--out", folder, "--cache-dir", folder.parent / "cache", *more, **settings)


def test_a_run_that_is_broken_off_again_and_again(flags, undisturbed, tmp_path):
    """Killed inside the cache, a checkpoint and the export; then told to stop in the middle of an epoch."""
    folder = tmp_path / "a run"
    for hook in ((IN_CACHE, 1), (IN_CHECKPOINT, 3), (IN_EXPORT, 2)):
        code, said = resumed(flags, folder, hooks=[(*hook, "SIGKILL")])
        assert code == -signal.SIGKILL, said
    code, said = resumed(flags, folder, hooks=[(BATCH, 4, "SIGTERM")])
    assert code == 128 + signal.SIGTERM, said
    assert f"jax-ddpm train --resume --out '{folder}'" in said and "Traceback" not in said
    newest = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert newest % 7 and newest < STEPS
    code, said = resumed(flags, folder)
    assert code == 0 and f"from step {newest}" in said, said
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(flags, undisturbed, tmp_path):
    """Started on one device, stopped, and resumed on four: the same order, timesteps and noise."""
    folder = tmp_path / "run"
    assert resumed(flags, folder, hooks=[(BATCH, 12, "SIGTERM")])[0] == 128 + signal.SIGTERM
    four, without_pictures = "--xla_force_host_platform_device_count=4", ("--sample-every", 0)
    code, said = resumed(flags, folder, *without_pictures, hooks=[(FINISH, 1, "skip")], XLA_FLAGS=four)
    assert code == 0 and "Devices: 4 x" in said, said
    ours, theirs = rows(folder), rows(undisturbed)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-5)


def test_a_second_signal_ends_a_run_at_once(flags, undisturbed, tmp_path):
    save = "jax_ddpm.training.checkpoint:Checkpoints.save"
    hooks = [(BATCH, 9, "SIGINT"), (save, 2, "SIGINT")]
    assert resumed(flags, tmp_path / "run", hooks=hooks)[0] == -signal.SIGINT
    # The checkpoint before is written in the background: whole, or still a draft, which is not read.
    assert [path.name.removeprefix(".") for path in (tmp_path / "run/checkpoints").iterdir()] == ["7"]


def test_a_disk_that_is_full_for_a_while(flags, undisturbed, tmp_path):
    code, said = resumed(flags, tmp_path / "run", hooks=[(CHECKPOINT, 3, 500), (BATCH, 31, -1)])
    assert code == 0, said
    assert "checkpoint of step 14 could not be saved" in said and "newest checkpoint is of step 9" in said, said
    assert "Traceback" not in said
    assert "metrics.jsonl could not be written" in said
    assert "The sample grid could not be written" in said
    assert_same(tmp_path / "run", undisturbed, but=["step-0000016.png"])


@pytest.mark.slow
def test_a_run_that_is_read_while_it_trains_and_a_home_that_cannot_be_written(flags, tmp_path):
    """Whoever loads its model or samples from it always has a whole one; caches are done without."""
    (tmp_path / "home").touch()
    home = {name: str(tmp_path / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    often = ["--steps", STEPS, "--checkpoint-every", 1, "--validate-every", STEPS, "--no-keep-best"]
    process = start(*flags, *often, "--out", tmp_path / "run", **home)
    try:
        wait_for(tmp_path / "run" / "model.safetensors", process)
        steps = []
        while process.poll() is None:
            for load in (jax_ddpm.load_model, torch_ref.load_model):
                steps.append(load(tmp_path / "run").info.step)
        assert steps == sorted(steps) and len(set(steps)) > 3, steps
        assert jax_ddpm.load_model(tmp_path / "run").info.step == STEPS
        said = process.communicate()[0]
        assert process.returncode == 0 and "Traceback" not in said, said
    finally:
        process.kill()


def test_a_folder_is_one_process_own(flags, tmp_path, capsys, monkeypatch):
    first = start(*flags, "--steps", 10**6, "--out", tmp_path / "run", "--cache-dir", tmp_path)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl", first)
        first.send_signal(signal.SIGSTOP)
        assert "Another process" in refusal(capsys, monkeypatch, "train_jax.py", "--resume", "--out", tmp_path / "run")
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        assert "--resume" in first.communicate(timeout=120)[0] and first.returncode == 143
    finally:
        first.kill()


def wait_for(path, process):
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_is_killed_in_an_evaluation(flags, tmp_path):
    evaluated = ["--evaluate-every", 16, "--evaluate-images", 9, "--evaluate-steps", 5]
    assert resumed([*flags, *evaluated], tmp_path / "whole")[0] == 0
    scored = [row["step"] for row in rows(tmp_path / "whole") if "fid_pixels" in row]
    assert scored == [16, 32, 40]
    code, said = resumed([*flags, *evaluated], tmp_path / "run", hooks=[(IN_EVALUATION, 2, "SIGKILL")])
    assert code == -signal.SIGKILL, said
    code, said = resumed(flags, tmp_path / "run")
    assert code == 0, said
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_thirty_kills(flags, undisturbed, tmp_path):
    """SIGKILL at random moments of runs that are resumed until they are done."""
    moments, kills, number = random.Random(0), 0, 0
    began = time.perf_counter()
    assert resumed(flags, tmp_path / "whole")[0] == 0
    duration = time.perf_counter() - began
    while kills < 30:
        number += 1
        folder, done = tmp_path / str(number) / "run", False
        while not done:
            arguments = ["--resume"] if (folder / "config.json").exists() else [*flags, "--steps", STEPS]
            process = start(*arguments, "--out", folder, "--cache-dir", folder.parent)
            try:
                process.communicate(timeout=moments.uniform(0.2, 1) * duration)
                assert process.returncode == 0
                done = True
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert_same(folder, undisturbed)
