"""Images that are given as arrays: from Python, in .npy and in .npz files."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import jax_ddpm
from jax_ddpm import data
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training import loop
from jax_ddpm.training.run_folder import default_out
from tests.small import small

RANDOM = np.random.default_rng(0)
WHOLE = {"validation_fraction": 0}
GRAY = RANDOM.integers(0, 256, (12, 8, 8), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)


def whole(images, labels=None, **options):
    return data.from_arrays(images, labels, **WHOLE | options)


def load(path, size=8, **options):
    cache = str(path.parent / "cache")
    return data.load(str(path), size, **{"cache_dir": cache, "validation_fraction": 0, "log": lambda _: None} | options)


# From Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GRAY, GRAY[..., None]),
        (GRAY[..., None], GRAY[..., None]),
        (COLOUR, COLOUR),
        (np.repeat(COLOUR, 4, -1), np.repeat(COLOUR, 4, -1)),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), COLOUR),
        (torch.from_numpy(GRAY)[:, None], GRAY[..., None]),
        (np.repeat(COLOUR, 3, 2).transpose(0, 3, 1, 2), np.repeat(COLOUR, 3, 2)),
        ((GRAY / 255).astype(np.float32), GRAY[..., None]),
        (GRAY / 127.5 - 1, GRAY[..., None]),
        (torch.from_numpy(GRAY / 255), GRAY[..., None]),
        (GRAY.astype(np.int64), GRAY[..., None]),
        (GRAY > 99, 255 * (GRAY[..., None] > 99)),
    ],
)
def test_layouts_and_ranges(given, expected):
    images = whole(given)
    assert images.train.dtype == np.uint8 and images.name == "arrays"
    np.testing.assert_array_equal(images.train, expected)


def test_what_was_assumed_is_said():
    assert whole(COLOUR).notes == ("validation: none",)
    assert "images of 8x6 are resized to 4x4 (image_size)" in data.from_arrays(COLOUR, image_size=4).notes
    assert "(12, 3, 8, 6) is read as (N, channels, height, width)" in whole(torch.zeros(12, 3, 8, 6)).notes[0]
    (note,) = [line for line in whole(GRAY / 127.5 - 1).notes if "becomes" in line]
    assert note == "arrays: float64 values from -1 to 1; -1 becomes black and 1 white, in 256 levels"
    (note,) = [line for line in whole(GRAY.astype(np.uint16) * 16).notes if "becomes" in line]
    assert re.fullmatch(r"arrays: uint16 values from \d+ to \d+; \d+ becomes black and \d+ white, in 256 levels", note)
    assert "the largest value is 1 of 255" in whole((GRAY > 99).astype(np.uint8)).notes[0]


@pytest.mark.parametrize("given", [GRAY / 2.0, GRAY - 100.0, GRAY.astype(np.int32) - 5])
def test_a_range_that_is_not_clear_is_asked_for(given):
    with pytest.raises(UserError, match=r"not clear which of them are black and white.\nGive both.*value_range="):
        whole(given)
    low, high = float(given.min()), float(given.max())
    images = whole(given, value_range=(low, high))
    np.testing.assert_allclose(images.train[..., 0], (given - low) / (high - low) * 255, atol=0.51)
    assert "values outside are clipped" in whole(given, value_range=(low + 1, high)).notes[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (COLOUR[0], r"shape \(8, 6, 3\) is that of one image"),
        (GRAY[0], r"uint8 \(8, 8\)"),
        (GRAY[:0], "at least one image"),
        (RANDOM.integers(0, 9, (12, 3, 8, 8)).astype(np.uint8), r"come second, give images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 20, 20, 20), np.uint8), "There can be 1 to 16 channels"),
        (np.full((2, 8, 8), np.nan), "not finite"),
        (np.zeros((2, 8, 8), complex), "complex128"),
        ([["a"]], "<U1"),
    ],
)
def test_arrays_that_are_no_images(given, message):
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        whole(given)
    assert len(str(caught.value).splitlines()) <= 2


def test_another_size_is_resized_and_cut_per_channel():
    five = np.repeat(COLOUR, 2, -1)[..., :5]
    found = whole(five, image_size=(4, 4)).train
    assert found.shape == (12, 4, 4, 5)
    np.testing.assert_array_equal(found[..., 0], whole(COLOUR[..., 0], image_size=4).train[..., 0])
    np.testing.assert_array_equal(found[..., 0], found[..., 1])


@pytest.mark.parametrize("labels", [np.arange(12) % 3, (np.arange(12) % 3)[:, None], torch.arange(12) % 3])
def test_labels_follow_the_images(labels):
    images = data.from_arrays(GRAY, labels, validation_fraction=0.25)
    assert images.class_names == ("0", "1", "2") and images.labels.dtype == np.int32
    for part, classes in ((images.train, images.labels), (images.validation, images.validation_labels)):
        for image, label in zip(part, classes, strict=True):
            assert label == next(i for i in range(12) if (GRAY[i] == image[..., 0]).all()) % 3


def test_labels_of_texts_and_given_validation_images():
    images = data.from_arrays(GRAY, ["b", "a"] * 6, validation_images=GRAY[:3] // 2, validation_labels=["a", "c", "a"])
    assert images.class_names == ("a", "b", "c")
    assert images.labels.tolist() == [1, 0] * 6 and images.validation_labels.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(images.validation[..., 0], GRAY[:3] // 2)


@pytest.mark.parametrize("labels", [np.arange(11), np.eye(12), [None] * 12])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(UserError, match=r"the labels are .*there are 12 images"):
        whole(GRAY, labels)


def test_the_fingerprint_is_that_of_the_pixels():
    one = whole(GRAY)
    assert one.fingerprint == whole(torch.from_numpy(GRAY)[:, None] / 255).fingerprint
    others = [whole(GRAY[::-1]), whole(GRAY, validation_fraction=0.5), whole(GRAY.swapaxes(0, 1)[:, :8])]
    assert len({images.fingerprint for images in (one, *others)}) == 4


# Files ---------------------------------------------------------------------------------------------------------------


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", GRAY)
    images = load(tmp_path / "a.npy")
    np.testing.assert_array_equal(images.train[..., 0], GRAY)
    assert images.fingerprint == whole(GRAY).fingerprint and not (tmp_path / "cache").exists()
    np.save(tmp_path / "b.NPY", GRAY / 255)
    with open(tmp_path / "b.NPY", "wb") as file:
        np.save(file, GRAY / 255)
    first, again = load(tmp_path / "b.NPY"), load(tmp_path / "b.NPY")
    assert first.fingerprint == again.fingerprint == images.fingerprint
    assert any("read from the cache" in line for line in again.notes)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": GRAY, "labels": np.arange(12)},
        {"arr_0": GRAY, "arr_1": np.arange(12)},
        {"X_train": GRAY, "y_train": np.arange(12)[:, None]},
        {"anything": GRAY, "y": np.arange(12)},
        {"images": GRAY, "masks": GRAY > 3, "labels": np.arange(12)},
    ],
)
def test_npz(arrays, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    images = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(images.train[..., 0], GRAY)
    assert images.labels.tolist() == list(range(12))
    assert ("not used: masks" in images.notes[0]) == ("masks" in arrays)


def test_npz_with_splits(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        **{"train_images": GRAY, "val_images": GRAY[:4], "test_images": GRAY[:5], "val_labels": [[3]] * 4},
        **{"train_labels": np.arange(12)[:, None], "test_labels": [[3]] * 5},
    )
    images = load(tmp_path / "a.npz", validation_fraction=None)
    assert images.validation.shape == (4, 8, 8, 1) and images.validation_labels.tolist() == [3] * 4
    assert images.notes[0].endswith(
        "images from train_images, labels from train_labels, validation images from val_images, "
        "validation labels from val_labels; not used: test_images, test_labels"
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": GRAY, "b": COLOUR}, r"several arrays.*: a uint8 \(12, 8, 8\), b uint8 \(12, 8, 6, 3\)"),
        ({"arr_0": GRAY, "arr_1": GRAY}, "several arrays"),
        ({"weights": np.zeros((3, 3))}, r"no array of images: weights float64 \(3, 3\)"),
        ({}, "no array of images: no arrays"),
        ({"images": np.array([None, {}], object)}, "no array of images"),
    ],
)
def test_npz_in_which_the_images_are_not_clear(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "a.npz")
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_files_that_cannot_be_read(name, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / name)
    np.save(tmp_path / "a.npy", np.array([None, {}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize("path", ["~/my sets/a b.npz", "C:\\sets\\a b.npz", "a b.npz"])
def test_the_folder_of_a_run_is_named_after_the_file(path):
    assert default_out(small(dataset=path)).name == "a_b.npz-tiny"


# Training ------------------------------------------------------------------------------------------------------------


def test_a_run_on_arrays(tmp_path, monkeypatch):
    """It can be resumed if the arrays, or the same images in a file, are given again."""
    runs = []
    monkeypatch.setattr(loop, "take_steps", lambda run, signals: runs.append(run))
    monkeypatch.setattr(loop, "finish", lambda run: None)
    pixels = RANDOM.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    said, config = [], small(tensorboard=False, validation_fraction=0)
    folder = jax_ddpm.train(config, tmp_path / "run", log=said.append, images=pixels, labels=np.arange(20))
    assert any("labels of 20 classes" in line for line in said)
    with pytest.raises(UserError, match="given from Python"):
        jax_ddpm.train(replace(config, data=replace(config.data, dataset="arrays")), folder, resume=True)
    with pytest.raises(UserError, match="does not hold the images of this run"):
        jax_ddpm.train(config, folder, resume=True, log=said.append, images=pixels[::-1])
    jax_ddpm.train(config, folder, resume=True, log=said.append, images=data.load(str(tmp_path / "a.npz"), 8, **WHOLE))
    assert f"{tmp_path / 'a.npz'} holds the same images as arrays did." in said
    for run in runs:
        images, indices, _ = run.feed.batches(0, 1)
        np.testing.assert_array_equal(images[indices[0]][..., 0], pixels[data.batch_indices(0, 0, 20, 16)])


def test_what_is_given_besides_a_configuration(tmp_path):
    config = small()
    with pytest.raises(UserError, match="given twice"):
        jax_ddpm.train(config, tmp_path, images=whole(GRAY), labels=[1])
    with pytest.raises(UserError, match="without images"):
        jax_ddpm.train(config, tmp_path, labels=[1])
    with pytest.raises(UserError, match="has only 12 training images"):
        jax_ddpm.train(config, tmp_path / "run", images=whole(GRAY), log=lambda _: None)
    with pytest.raises(UserError, match=r"image_size = \(9, 7\)"):
        jax_ddpm.train(small(widths=(32, 64)), tmp_path / "run", images=whole(np.zeros((9, 9, 7), np.uint8)))
