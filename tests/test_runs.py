"""Whole runs: what is in the folder, resuming, and what may not be resumed."""

import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import jax_ddpm
from jax_ddpm.commands.train import parse_run
from jax_ddpm.data import shards
from jax_ddpm.sampling import samplers
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.training import checkpoint, evaluate, feed, loop, prepare, progress, run_charts, trackers
from jax_ddpm.training.loop import train
from jax_ddpm.training.replay import replay
from jax_ddpm.training.run_folder import load_config
from jax_ddpm.weights.model import load_model
from tests.events import pictures, scalars
from tests.small import small


def quiet(line):
    pass


def rows(folder):
    timings = ("images_per_second",)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(small(), tmp_path_factory.mktemp("runs") / "finished", log=quiet)


def test_a_run_leaves_what_it_promises(finished):
    assert load_config(finished) == small()
    assert {path.name for path in (finished / "samples").iterdir()} == {
        *(f"{name}.png" for name in ("grid", "data", "forward", "reverse", "x0", "nearest")),
        *(f"{name}.png" for name in ("loss", "timesteps", "histogram", "step-0000024")),
        "closing.npz",
    }
    assert (finished / "report.html").is_file()
    assert sorted(int(path.name) for path in (finished / "checkpoints").iterdir()) == [16, 24]
    assert [row["step"] for row in rows(finished)] == [4, 8, 12, 16, 20, 24]
    assert all({"epoch", "loss", "learning_rate", "grad_norm"} <= set(row) for row in rows(finished))
    assert [row["step"] for row in rows(finished) if "validation_loss" in row] == [12, 24]
    first = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert first["images_per_second"] > 0


def test_the_model_is_ready_to_use(finished):
    model = jax_ddpm.load_model(finished)
    assert model.info.step == 24 and model.info.image_shape == (8, 8, 1)
    assert model.info.diffusion == small().diffusion and model.info.network == small().network
    x = jax_ddpm.sample(model, num_images=4, seed=0)
    assert x.shape == (4, 8, 8, 1) and x.dtype == np.float32
    with Image.open(finished / "samples" / "grid.png") as grid:
        assert grid.mode == "L"
        tile = np.asarray(grid)[2:50:6, 2:50:6]  # each pixel six times as large, after a gap of two
    np.testing.assert_array_equal(tile, np.rint((np.clip(x[0, ..., 0], -1, 1) + 1) * 127.5).astype(np.uint8))


class Stop(Exception):
    pass


@pytest.fixture
def without_pictures(monkeypatch):
    """For runs whose final pictures and page nobody looks at."""
    monkeypatch.setattr(prepare.Pictures, "save_final", lambda *_: [])
    monkeypatch.setattr(trackers.TensorBoard, "picture", lambda *_: None)
    monkeypatch.setattr(loop, "write_page", lambda folder: None)


def stop_after(monkeypatch, step):
    """Make the next run break off once the metrics of `step` were read."""
    update = progress.Progress.update

    def breaking(self, first, n, metrics):
        update(self, first, n, metrics)
        if first + n >= step:
            raise Stop

    monkeypatch.setattr(progress.Progress, "update", breaking)


@pytest.mark.parametrize(  # after one checkpoint, after two, before the first
    "step", [11, pytest.param(18, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_in_the_same_bits(finished, tmp_path, monkeypatch, step):
    config = small(log_every=5)
    whole = train(config, tmp_path / "whole", log=quiet)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        patch.setattr(checkpoint, "check_disk_space", lambda *_: time.sleep(0.2))  # it breaks off while one is written
        with pytest.raises(Stop):
            train(config, tmp_path / "broken", log=quiet)
    broken = train(config, tmp_path / "broken", resume=True, log=quiet)
    for name in ("model.safetensors", "samples/grid.png", "samples/reverse.png"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert rows(whole) == rows(broken)
    for folder in (whole, broken):
        seen = [{"step": row["step"], "loss": row["loss"]} for row in scalars(folder)]
        assert seen == [{"step": row["step"], "loss": float(np.float32(row["loss"]))} for row in rows(whole)]
    assert [row["step"] for row in rows(broken)] == [5, 10, 12, 15, 20, 24]


def test_a_loss_that_springs_up_is_told(tmp_path, monkeypatch, without_pictures):
    """A hundred times the loss at step 6, and nothing said of the others."""
    update = progress.Progress.update

    def springing(self, step, n, metrics):
        loss = np.array(metrics["loss"], float)
        loss[:n] *= np.where(np.arange(step + 1, step + n + 1) == 6, 100, 1)
        update(self, step, n, {**metrics, "loss": loss})

    monkeypatch.setattr(progress.Progress, "update", springing)
    said = []
    train(small(steps=8), tmp_path / "run", log=said.append)
    (line,) = [line for line in said if "times its recent mean" in line]
    assert line.startswith("Step 6: the loss, ")


@pytest.mark.parametrize(
    ("chosen", "writing", "expected"),
    [
        ({}, False, [4, 16, 24]),
        ({}, True, [24]),
        ({"keep_every": 12}, False, [4, 12, 24]),
        ({"checkpoint_every": 8}, True, [8, 16, 24]),
    ],
)
def test_checkpoints_that_take_long_are_made_seldom(tmp_path, monkeypatch, without_pictures, chosen, writing, expected):
    """One takes as long as a step; six short epochs end in one. The last and what the user chose is always made."""
    monkeypatch.setattr(progress, "MIN_DEFAULT_INTERVAL", 4)
    monkeypatch.setattr(prepare, "count_steps", lambda config, num_images: (4, 24))
    monkeypatch.setattr(checkpoint.Checkpoints, "is_saving", writing)
    made, spent, run_, save_ = [], [0.0], feed.Feed.run, checkpoint.Checkpoints.save
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: spent[0]))

    def run(self, dispatch, state, step, n):
        spent[0] += n
        return run_(self, dispatch, state, step, n)

    def save(self, step, *rest):
        spent[0] += 1
        made.append(step)
        save_(self, step, *rest)

    monkeypatch.setattr(feed.Feed, "run", run)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    train(small(**{"checkpoint_every": 0, **chosen}), tmp_path / "run", log=quiet)
    assert made == expected


def test_resume_may_go_on_for_longer(finished, tmp_path, without_pictures):
    folder = train(small(), tmp_path / "run", log=quiet)
    train(small(steps=32, log_every=8), folder, resume=True, log=quiet)
    assert [row["step"] for row in rows(folder)][-1] == 32
    assert load_model(folder).info.step == 32
    assert load_config(folder).training.steps == 32


def test_resuming_a_finished_run_changes_no_weights(finished):
    before = (finished / "model.safetensors").read_bytes()
    train(small(), finished, resume=True, log=quiet)
    assert (finished / "model.safetensors").read_bytes() == before
    assert [row["step"] for row in rows(finished)] == [4, 8, 12, 16, 20, 24]


def test_what_may_not_be_resumed(finished, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        train(small(), finished, log=quiet)
    with pytest.raises(UserError, match=r"seed was 0, now 4.*"):
        train(small(seed=4), finished, resume=True, log=quiet)
    with pytest.raises(UserError, match="steps was 24, now 8"):
        train(small(steps=8), finished, resume=True, log=quiet)
    with pytest.raises(UserError, match="no run to resume"):
        train(small(), tmp_path / "nothing", resume=True, log=quiet)
    assert not (tmp_path / "nothing").exists()


def replayed(folder, number):
    said = []
    replay(load_config(folder), folder, number, log=said.append)
    return said


def test_a_diverging_run_skips_and_then_stops(tmp_path, without_pictures):
    said = []
    config = small(learning_rate=1e30, lr_schedule="constant", max_skipped=6, checkpoint_every=2, log_every=2)
    with pytest.raises(
        UserError, match=r"(?s)last 6 steps, up to (\d+), were skipped: loss .*jax-ddpm train --replay-step \1 shows"
    ):
        train(config, tmp_path / "run", log=said.append)
    lines = [line for line in said if "was skipped" in line]
    assert len(lines) == 6 and all("gradient norm" in line and "t = " in line for line in lines)
    found = rows(tmp_path / "run")
    assert found[-1]["skipped"] == 2 and found[-1]["loss"] is None
    values = read_file(tmp_path / "run")[0]
    assert all(np.isfinite(value).all() for value in values.values())
    said = replayed(tmp_path / "run", 3)
    assert any("not finite" in line for line in said)
    assert said[-1].startswith("First operation that gave nan or inf: invalid value")
    assert re.search(r"/jax_ddpm/[\w/]+\.py:\d+", said[-1])


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    """Losses that fall and then rise: the weights of step 12, also after a resume, and their checkpoint stays."""
    invented = {4: 3.0, 8: 2.0, 12: 1.0, 16: 1.5, 20: 1.0, 24: 4.0}
    monkeypatch.setattr(feed.Validation, "__call__", lambda self, state: invented[int(state.step)])
    config = small(keep_best=True, validate_every=4, keep_checkpoints=1, gif_frames=5)
    said = []
    whole = train(config, tmp_path / "whole", log=said.append)
    assert any("step 12" in line for line in said)
    assert sorted(int(path.name) for path in (whole / "checkpoints").iterdir()) == [12, 24]
    assert jax_ddpm.load_model(whole).info.step == 12
    with monkeypatch.context() as patch:
        stop_after(patch, 19)
        with pytest.raises(Stop):
            train(config, tmp_path / "broken", log=quiet)
    broken = train(config, tmp_path / "broken", resume=True, log=quiet)
    for name in ("model.safetensors", "samples/grid.png", "samples/reverse.gif"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert rows(whole) == rows(broken)


def test_a_step_is_replayed(tmp_path, without_pictures):
    folder = train(small(log_every=1), tmp_path / "run", log=quiet)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for number, start in ((3, 0), (20, 16)):
        row, said = rows(folder)[number - 1], replayed(folder, number)
        assert row["step"] == number
        assert any(line.startswith(f"Repeating the steps after step {start} ") for line in said)
        (line,) = [line for line in said if line.startswith(f"Step {number}: loss ")]
        loss, norm = map(float, re.match(r"Step \d+: loss (\S+), gradient norm (\S+): finite", line).groups())
        np.testing.assert_allclose((loss, norm), (row["loss"], row["grad_norm"]), rtol=1e-4)
        assert any(line.startswith("  gradient norm of enc_convs.0: ") for line in said)
        assert not any(line.startswith("  gradient norm of time_emb.0: ") for line in said), "a buffer has none"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="expected 1 to 24"):
        replayed(folder, 25)


def test_two_fresh_runs_and_one_from_a_config_file_end_in_the_same_bits(finished, tmp_path):
    again = train(small(), tmp_path / "again", log=quiet)
    repeated = train(
        parse_run(["--config", str(finished / "config.json")], "train").config, tmp_path / "repeated", log=quiet
    )
    for folder in (again, repeated):
        assert rows(folder) == rows(finished)
        for name in ("model.safetensors", "samples/grid.png"):
            assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_several_steps_per_dispatch_and_a_resume_in_the_middle(finished, tmp_path, monkeypatch):
    """As on a GPU: a run stopped at a step within a dispatch of others, and one that never was."""
    monkeypatch.setattr(feed, "STEPS_PER_DISPATCH", 3)
    monkeypatch.setattr(feed, "MAX_DISPATCH_SECONDS_ON_CPU", 1e9)
    whole = train(small(), tmp_path / "whole", log=quiet)
    with monkeypatch.context() as patch:
        stop_after(patch, 19)
        with pytest.raises(Stop):
            train(small(), tmp_path / "broken", log=quiet)
    broken = train(small(), tmp_path / "broken", resume=True, log=quiet)
    assert rows(whole) == rows(broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    np.testing.assert_allclose([r["loss"] for r in rows(whole)], [r["loss"] for r in rows(finished)], rtol=1e-4)


def test_config_tells_how_the_run_was_started(finished):
    start = json.loads((finished / "config.json").read_text())["starts"][0]  # resumed in other tests
    assert start["versions"]["jax"] and start["devices"] and start["command"] and start["time"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluate_every": -1}, "evaluate_every = -1: expected 0 or more"),
        ({"evaluate_images": 1}, "evaluate_images = 1: expected at least 2"),
        ({"evaluate_steps": 0}, "evaluate_steps = 0: expected at least 1"),
        ({"evaluate_features": "file.py:run"}, "evaluate_features = file.py:run: expected classifier, pixels or incep"),
    ],
)
def test_wrong_settings_of_evaluations(settings, said):
    with pytest.raises(UserError, match=said):
        small(**settings).check()


def test_a_classifier_needs_labels(tmp_path):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match=r"evaluate_features = classifier: .* has no labels; expected pixels or"):
        train(small(evaluate_every=5, evaluate_features="classifier"), tmp_path / "run", log=quiet, images=images)


@pytest.mark.slow
def test_evaluations_change_nothing_and_resume_in_the_same_bits(finished, tmp_path, monkeypatch, without_pictures):
    config = small(evaluate_every=10, evaluate_images=12, evaluate_steps=5, evaluate_features="pixels")
    said = []
    whole = train(config, tmp_path / "whole", log=said.append)
    assert any(line.startswith("Evaluation every 10 steps: 12 samples (ddim, 5 steps)") for line in said)
    scores = ("fid", "kid", "precision", "recall")
    names = {*(f"{name}_pixels" for name in scores), "fid_pixels_floor", "kid_pixels_floor"}
    scored = [row for row in rows(whole) if names & set(row)]
    assert [row["step"] for row in scored] == [10, 20, 24] and all(names <= set(row) for row in scored)
    assert len({row["fid_pixels"] for row in scored}) == 3 and len({row["fid_pixels_floor"] for row in scored}) == 1
    without = [{key: value for key, value in row.items() if key not in names} for row in rows(whole)]
    assert [row for row in without if row["step"] not in (10, 12)] == [r for r in rows(finished) if r["step"] != 12]
    assert (whole / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        stop_after(patch, 18)
        with pytest.raises(Stop):
            train(config, tmp_path / "broken", log=quiet)
    broken = train(config, tmp_path / "broken", resume=True, log=quiet)
    assert rows(broken) == rows(whole)
    seen = [row["fid_pixels"] for row in scalars(broken) if "fid_pixels" in row]
    assert seen == [float(np.float32(row["fid_pixels"])) for row in scored]
    charts = {chart["title"]: chart for chart in run_charts.training_charts(rows(whole))}
    lines = {line["name"]: line for line in charts["FID (pixels)"]["series"]}
    assert lines["samples"]["x"] == [10, 20, 24] and set(lines) == {"samples", "held-out images"}
    assert "Precision and recall (pixels)" in charts


def test_scores_are_in_the_rows_and_samples_without_any_do_not_end_a_run(tmp_path, monkeypatch, without_pictures):
    """The second evaluation gets a single image."""
    drawn = iter([np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)])
    monkeypatch.setattr(evaluate, "draw_samples", lambda *_, **__: next(drawn))
    config, said = small(steps=4, log_every=1, evaluate_every=2, evaluate_features="pixels"), []
    folder = train(config, tmp_path / "run", log=said.append)
    first, second, third, fourth = rows(folder)
    assert first.keys() == third.keys() and "fid_pixels" not in first
    assert second["fid_pixels"] > second["fid_pixels_floor"] > 0 and {"kid_pixels", "recall_pixels"} <= second.keys()
    assert fourth["fid_pixels"] is None and "validation_loss" in fourth
    assert any(line.startswith("Step 4: the samples cannot be scored: ") for line in said)


def test_init_from_starts_with_other_weights(finished, tmp_path, without_pictures):
    config = small(init_from=str(finished), steps=1, learning_rate=1e-6)
    folder = train(config, tmp_path / "run", log=quiet)
    old, new = read_file(finished)[0], read_file(folder)[0]
    fresh = read_file(train(small(steps=1, learning_rate=1e-6), tmp_path / "fresh", log=quiet))[0]
    name = "enc_convs.0.seq1.0.weight"
    np.testing.assert_allclose(new[name], old[name], rtol=0, atol=2e-6)
    assert np.abs(fresh[name] - old[name]).max() > 1e-3


def test_large_data_sets_are_fed_in_parts(finished, tmp_path, monkeypatch, without_pictures):
    monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", 1000)
    monkeypatch.setattr(shards, "MAX_IN_MEMORY", 0)  # they are no array in memory either
    folder = train(small(), tmp_path / "run", log=quiet)
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_colour_bfloat16_pure_noise_and_grids_along_the_way(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    config = small(
        dataset=f"folder:{tmp_path}/pictures",
        precision="bfloat16",
        objective="v",
        schedule="scaled_linear",
        zero_terminal_snr=True,
        sample_every_epochs=1,
        steps=5,
        batch_size=8,
        flip=True,
        cache_dir=str(tmp_path / "cache"),
    )
    compiled = samplers._sample._cache_size()
    folder = train(config, tmp_path / "run", log=quiet)
    assert {"step-0000002.png", "step-0000004.png"} <= {path.name for path in (folder / "samples").iterdir()}
    assert samplers._sample._cache_size() <= compiled + 2, "for the grids during the training, and for the final one"
    shown = [(tag, step) for tag, step, _ in pictures(folder)]
    assert shown == [("samples", 2), ("samples", 4), ("final samples", 5)]
    with Image.open(folder / "samples" / "grid.png") as grid:
        assert grid.mode == "RGB"
    info = jax_ddpm.load_model(folder).info
    assert info.image_shape == (8, 8, 3) and info.diffusion == config.diffusion
    log_snr = np.load(folder / "samples" / "closing.npz")["frames_log_snr"]
    assert log_snr[0] == -np.inf and np.isfinite(log_snr[1:]).all()
    with pytest.raises(UserError, match="objective = eps: at zero terminal SNR"):
        train(small(zero_terminal_snr=True), tmp_path / "refused", log=quiet)
