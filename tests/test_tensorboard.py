"""TensorBoard's files, apart from whole runs (test_runs.py)."""

import io

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import report
from jax_ddpm.training.tensorboard import TensorBoard
from tests.events import events, pictures, scalars
from tests.test_package import loaded_after


def test_rows_and_pictures(tmp_path):
    board = TensorBoard(tmp_path, 0, True, pytest.fail)
    board.row({"step": 10, "loss": 0.5, "epoch": 3, "grad_norm": None})
    grid = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    report.grid(grid).save(tmp_path / "grid.png")
    board.picture("samples", tmp_path / "grid.png", 10)
    board.flush()
    assert scalars(tmp_path) == [{"step": 10, "loss": 0.5, "epoch": 3}]
    [(tag, step, png)] = pictures(tmp_path)
    assert (tag, step) == ("samples", 10) and png == (tmp_path / "grid.png").read_bytes()
    [image] = [value.image for event in events(tmp_path) for value in event.summary.value if value.HasField("image")]
    assert (image.width, image.height) == Image.open(io.BytesIO(png)).size and image.colorspace == 3
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_a_resumed_run_takes_the_place_of_what_came_after_its_checkpoint(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4)), (4, (5,)), (0, (1,))):
        before = {row["step"] for row in scalars(tmp_path)} if start or (tmp_path / "tensorboard").exists() else set()
        board = TensorBoard(tmp_path, start, True, pytest.fail)
        for step in steps:
            board.row({"step": step, "loss": float(start)})
        board.flush()
        shown = [row["step"] for row in scalars(tmp_path)]
        assert shown == [*sorted(step for step in before if step <= start), *steps]


def test_off_writes_nothing(tmp_path):
    board = TensorBoard(tmp_path, 0, False, pytest.fail)
    board.row({"step": 1, "loss": 1.0})
    board.picture("samples", tmp_path / "missing.png", 1)
    board.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told_of_once(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    told = []
    board = TensorBoard(tmp_path, 0, True, told.append)
    board.row({"step": 1, "loss": 1.0})
    board.flush()
    assert len(told) == 1 and "could not be written" in told[0]


def test_torch_stays_out():
    code = "from jax_ddpm.training.tensorboard import import_tensorboardx; import_tensorboardx()"
    assert not loaded_after(code) & {"torch", "tensorflow"}
