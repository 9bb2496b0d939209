"""Trackers besides TensorBoard: a module stands for theirs; and Weights & Biases itself, without a network."""

import importlib.util
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.spec.errors import UserError, messages_of_commands
from jax_ddpm.spec.run_config import OutputConfig
from jax_ddpm.training.run_folder import MetricsLog
from jax_ddpm.training.trackers import check_trackers, chosen, open_trackers
from tests.small import small


class Package:
    """What the trackers use of wandb and of trackio, and what they were told."""

    def __init__(self):
        self.starts, self.logged, self.ends, self.refuses, self.online = [], [], [], False, 0
        self.Image = lambda path: ("picture", path)

    def init(self, **settings):
        if self.refuses:
            raise ConnectionError("no route")
        self.starts.append(settings)
        return SimpleNamespace(log=self.log, finish=lambda **end: self.ends.append(end), starting_step=self.online)

    def log(self, values, step):
        if self.refuses:
            raise ConnectionError("no route")
        self.logged.append((step, values))


@pytest.fixture(params=["wandb", "trackio"])
def package(request, monkeypatch):
    fake = Package()
    fake.__spec__ = importlib.util.spec_from_loader(request.param, None)
    monkeypatch.setitem(sys.modules, request.param, fake)
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    fake.name, fake.config = request.param, small(tracker=(request.param,))
    return fake


def row(step, **values):
    return {"step": step, "loss": step / 10, **values}


def test_rows_pictures_and_the_end(package, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grid.png")
    with open_trackers(package.config, tmp_path, 0, [], pytest.fail) as trackers:
        trackers.row(row(4, grad_norm=None))
        trackers.picture("final samples", tmp_path / "grid.png", 4)
        trackers.flush()
    picture = ("picture", str(tmp_path / "grid.png"))
    assert package.logged == [(4, {"loss": 0.4}), (4, {"final_samples": picture})]
    [start] = package.starts
    assert start["project"] == "jax_ddpm" and start["resume"] == "allow"
    assert start["config"]["training"]["steps"] == 24 and start["config"]["network"]["widths"] == [32]
    assert start["name"].startswith(tmp_path.name)
    assert package.ends == [{"exit_code": 0} if package.name == "wandb" else {}]


@pytest.mark.parametrize("end", ["by itself", "killed", "killed with a connection"])
def test_a_resumed_training_goes_on_in_the_same_run(package, tmp_path, end):
    """The first process ends after step 12; its last checkpoint is of step 8."""
    key = "id" if package.name == "wandb" else "name"
    trackers = open_trackers(package.config, tmp_path, 0, [], pytest.fail)
    for step in (4, 8, 12):
        trackers.row(row(step))
    if end == "by itself":
        trackers.__exit__(None)
    known = json.loads((tmp_path / "trackers.json").read_text())
    package.logged, package.online = [], 13 * (end == "killed with a connection")
    trackers = open_trackers(package.config, tmp_path, 8, [row(4), row(8), row(12)], pytest.fail)
    for step in (12, 16):
        trackers.row(row(step))
    lost = package.name == "wandb" and end == "killed"  # its file was in memory
    assert [step for step, _ in package.logged] == [4, 8, 12, 16] if lost else [16]
    assert [start[key] for start in package.starts] == [known[package.name]["id"]] * 2


def test_a_tracker_that_is_added_later_gets_the_earlier_rows(package, tmp_path):
    trackers = open_trackers(package.config, tmp_path, 8, [row(4), row(8), row(12)], pytest.fail)
    trackers.row(row(12))
    assert [step for step, _ in package.logged] == [4, 8, 12]


def test_failures(package, tmp_path):
    said = []
    with pytest.raises(ZeroDivisionError), open_trackers(package.config, tmp_path, 0, [], said.append) as trackers:
        package.refuses = True
        for step in (4, 8):
            trackers.row(row(step))
        assert said == [f"{package.name}: no route. Training continues without it."]
        package.refuses = False
        trackers.row(row(12))
        raise ZeroDivisionError
    assert package.logged == package.ends == []
    package.refuses = True
    with pytest.raises(UserError) as caught, messages_of_commands():
        open_trackers(package.config, tmp_path, 0, [], said.append)
    first, second = str(caught.value).splitlines()
    assert first == f"{package.name} did not start (ConnectionError: no route)."
    assert "add --resume. Or choose another --tracker." in second


def test_an_error_in_the_training_is_a_failed_run(package, tmp_path):
    with pytest.raises(KeyboardInterrupt), open_trackers(package.config, tmp_path, 0, [], pytest.fail):
        raise KeyboardInterrupt
    assert package.ends == [{"exit_code": 1} if package.name == "wandb" else {}]


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(UserError) as caught, messages_of_commands():
            check_trackers(OutputConfig(tracker=("tensorboard", name)))
        first, second = str(caught.value).splitlines()
        assert first == f"tracker = {name}: the Python package {name} is not installed."
        assert f"pip install 'jax-ddpm[{name}]'" in second
    check_trackers(OutputConfig())


def test_the_choice(tmp_path):
    assert chosen(OutputConfig()) == ("tensorboard",) and chosen(OutputConfig(tensorboard=False)) == ()
    assert chosen(OutputConfig(tracker="none")) == ()
    both = OutputConfig(tracker=("wandb", "tensorboard"))
    assert chosen(both) == ("wandb", "tensorboard")
    for wrong, expected in ((("none", "wandb"), "none wandb: expected none alone"), (("tensorbord",), "tensorbord")):
        with pytest.raises(UserError, match=expected):
            OutputConfig(tracker=wrong).check()
    said = []
    open_trackers(small(), tmp_path / "a run", 0, [], said.append)
    assert said[-1] == f"To see the training in TensorBoard: tensorboard --logdir '{tmp_path / 'a run'}'"


def test_wandb_itself_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="pip install 'jax-ddpm[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grid.png")
    config, log = small(tracker=("wandb",)), MetricsLog(tmp_path, pytest.fail)
    for start, steps in ((0, (4, 8, 12)), (8, (12, 16))):
        time.sleep(1)  # the names of its folders have seconds
        with open_trackers(config, tmp_path, start, log.rows(), pytest.fail) as trackers:
            for step in steps:
                trackers.row(row(step))
                log.path.write_text("".join(json.dumps(row(each)) + "\n" for each in range(4, step + 1, 4)))
            trackers.picture("samples", tmp_path / "grid.png", step)
    id_ = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
    found = sorted((tmp_path / "wandb").glob(f"offline-run-*-{id_}/run-{id_}.wandb"))
    assert len(found) == 2 and all(path.stat().st_size > 500 for path in found)
    assert list((tmp_path / "wandb").rglob("*.png"))
