"""Nearest training images and copies."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.evaluation import nearest
from jax_ddpm.evaluation.extractors import Extractor
from jax_ddpm.spec.errors import UserError
from tests.commands import refusal, succeed


def images(count: int, seed: int, shape=(6, 5, 2)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def test_the_nearest_two_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 7)  # the last block has a single row
    rows, others = images(10, 0), images(29, 1)
    others[[3, 20]], others[28] = rows[4], rows[9]
    found = nearest.two_nearest(rows, others)
    distances = np.linalg.norm((rows[:, None].astype(float) - others[None]).reshape(10, 29, -1), axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, order, axis=1))
    assert found.indices[4].tolist() == [3, 20] and found.ratios[4] == 0  # of two equal ones, the first
    assert found.copies == 0.2


def test_copies_are_found_among_new_images():
    train, real = images(50, 2), images(20, 3)
    made = images(8, 4)
    made[0], made[1] = train[17], train[30]
    made[1, 0, 0, 0] ^= 8  # nearly a copy
    mean = Extractor("mean", "the mean of each channel", "", lambda batch: batch.mean(axis=(1, 2)))
    found = nearest.nearest_images(made, train, real, mean)
    assert found.generated["pixels"].copies == 0.25 and found.held_out["pixels"].copies == 0
    assert found.generated["pixels"].indices[:2, 0].tolist() == [17, 30]
    assert found.generated["mean"].indices[0, 0] == 17 and found.generated["mean"].ratios[0] == 0
    assert len(found.held_out["mean"].ratios) == 8  # as many as generated ones
    assert found.as_dict()["generated"]["pixels"]["copies"] == 0.25
    text = str(found)
    assert "Nearest of 50 training images" in text and "8 images, by pixels" in text and "25.00%" in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_held_out_images():
    found = nearest.nearest_images(images(3, 5), train := images(9, 6), train[:0])
    assert found.held_out == {} and set(found.generated) == {"pixels"}
    assert "held-out" not in str(found)


def test_floats_are_levels():
    made, train = images(3, 5), images(9, 6)
    found = nearest.nearest_images(made.astype(np.float32) / 127.5 - 1, train).generated["pixels"]
    np.testing.assert_array_equal(found.distances, nearest.nearest_images(made, train).generated["pixels"].distances)
    with pytest.raises(UserError, match="float32 from 0 to 255: expected uint8, or floats around"):
        nearest.nearest_images(np.linspace(0, 255, made.size, dtype=np.float32).reshape(made.shape), train)


def test_picture():
    train, made = images(9, 5, (4, 6, 1)), images(5, 6, (4, 6, 1))
    made[3] = train[7]
    found = nearest.nearest_images(made, train)
    picture = np.asarray(nearest.picture(made, train, found, columns=2))
    scale, gap = 8, 2
    top, left = picture.shape[0] - 2 * (4 * scale + gap), picture.shape[1] - 2 * (6 * scale + gap)
    for row in range(2):  # the copy, and what it copies, stand first
        y = top + row * (4 * scale + gap)
        tile = picture[y : y + 4 * scale : scale, left : left + 6 * scale : scale]
        np.testing.assert_array_equal(tile, train[7, ..., 0])


def test_wrong_input():
    with pytest.raises(UserError, match="there are 1"):
        nearest.two_nearest(images(2, 0), images(1, 1))
    with pytest.raises(UserError, match=r"shape \(4, 4, 1\), but the training images \(6, 5, 2\)"):
        nearest.nearest_images(images(2, 0, (4, 4, 1)), images(4, 1))


def test_command(tmp_path, capsys, monkeypatch):
    train, made = images(30, 7, (4, 4, 1)), images(10, 8, (4, 4, 1))
    made[[2, 5]] = train[[1, 8]]
    np.savez(tmp_path / "train.npz", images=train)
    np.savez(tmp_path / "made.npz", images=made)
    statistics = {"mu": np.zeros(16), "sigma": np.eye(16)}
    np.savez(tmp_path / "statistics.npz", **statistics)
    made_file, picture, scores = (str(tmp_path / name) for name in ("made.npz", "near.png", "scores.json"))
    flags = (made_file, "--features", "pixels", "--nearest", picture)
    against = (capsys, monkeypatch, "evaluate.py", *flags, "--reference")
    out = succeed(*against, str(tmp_path / "train.npz"), "--out", scores)
    assert "Nearest of 30 training images" in out and "20.00%" in out and f"nearest training images: {picture}" in out
    assert json.loads(Path(scores).read_text())["nearest"]["generated"]["pixels"]["copies"] == 0.2
    assert Image.open(picture).width > 10 * 48
    assert "of the reference there are only statistics" in refusal(*against, str(tmp_path / "statistics.npz"))
    assert "leave it out, or --sweep" in refusal(*against, str(tmp_path / "train.npz"), "--sweep", "sampler=ddpm,ddim")
