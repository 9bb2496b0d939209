"""Digits, the order of batches, pixel values, what is held out, and what gets imported."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jax_ddpm import data
from jax_ddpm.spec.errors import UserError


def quiet(_: str) -> None:
    pass


def test_digits_are_scikit_learns_at_full_range():
    images = data.load("digits", 8, validation_fraction=0, log=quiet)
    assert images.name == "digits"
    assert images.train.shape == (1797, 8, 8, 1) and images.train.dtype == np.uint8
    assert images.train.flags.c_contiguous
    assert images.validation.shape == (0, 8, 8, 1)
    np.testing.assert_allclose(images.train[..., 0] / 255, load_digits().images / 16, atol=0.5 / 255 + 1e-9)
    assert (images.train.min(), images.train.max()) == (0, 255)


def test_a_tenth_is_held_out_and_nothing_is_lost_or_doubled():
    whole = data.load("digits", 8, validation_fraction=0, log=quiet).train
    images = data.load("digits", 8, log=quiet)
    assert (len(images.train), len(images.validation)) == (1617, 180)
    together = np.concatenate([images.train, images.validation]).reshape(1797, -1)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(whole.reshape(1797, -1), axis=0))
    assert len(np.unique(whole.reshape(1797, -1), axis=0)) == 1797
    assert any("180 of 1,797" in note for note in images.notes)


def test_what_is_held_out_depends_on_no_seed():
    np.random.seed(1)
    first = data.load("digits", 8, log=quiet).validation
    np.random.seed(2)
    np.testing.assert_array_equal(first, data.load("digits", 8, log=quiet).validation)


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 449), (0.5, 898), (0.0001, 1), (0.9999, 1796)])
def test_a_share_of_ones_choice(fraction, count):
    images = data.load("digits", 8, validation_fraction=fraction, log=quiet)
    assert (len(images.train), len(images.validation)) == (1797 - count, count)


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan"), 2])
def test_an_impossible_share(fraction):
    with pytest.raises(UserError, match="validation fraction"):
        data.load("digits", 8, validation_fraction=fraction, log=quiet)


def test_an_impossible_size():
    with pytest.raises(UserError, match="image size 0"):
        data.load("digits", 0, log=quiet)


def test_digits_at_another_size():
    images = data.load("digits", 16, validation_fraction=0, log=quiet)
    assert images.train.shape == (1797, 16, 16, 1)
    small = np.rint(load_digits().images[5] * 255 / 16).astype(np.uint8)
    expected = np.asarray(Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.train[5, ..., 0], expected)


def test_order_is_the_documented_permutation():
    expected = np.random.default_rng([7, 2]).permutation(10)  # epoch 2 of batches of 3: steps 6, 7, 8
    for step, part in ((6, expected[0:3]), (7, expected[3:6]), (8, expected[6:9])):
        indices = data.batch_indices(7, step, 10, 3)
        assert indices.dtype == np.int32 and indices.shape == (3,)
        np.testing.assert_array_equal(indices, part)


def test_order_is_a_function_of_seed_and_step_alone():
    forward = [data.batch_indices(3, step, 50, 7).tolist() for step in range(30)]
    backward = [data.batch_indices(3, step, 50, 7).tolist() for step in reversed(range(30))]
    assert forward == backward[::-1]
    assert forward[0] != forward[7]  # the same place in the next epoch
    assert forward[0] != data.batch_indices(4, 0, 50, 7).tolist()


def test_an_epoch_takes_no_image_twice():
    epoch = np.concatenate([data.batch_indices(0, step, 23, 5) for step in range(4)])
    assert len(set(epoch.tolist())) == 20 and set(epoch.tolist()) <= set(range(23))


def test_changing_a_batch_changes_no_later_one():
    first = data.batch_indices(0, 0, 10, 10)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(data.batch_indices(0, 0, 10, 10), kept)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_that_does_not_fit(batch_size):
    with pytest.raises(UserError, match=f"batch size {batch_size} does not fit 10"):
        data.batch_indices(0, 0, 10, batch_size)


def test_pixels_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = data.to_float(levels)
    assert floats.dtype == np.float32 and floats.shape == levels.shape
    np.testing.assert_allclose(floats, levels.astype(np.float64) / 127.5 - 1, atol=1e-7)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(data.to_uint8(floats), levels)


def test_floats_are_clipped_and_rounded():
    to_level = lambda level: level / 127.5 - 1  # noqa: E731
    floats = np.array([-7.0, 7.0, to_level(99.6), to_level(100.4), to_level(254.7)])
    np.testing.assert_array_equal(data.to_uint8(floats), [0, 255, 100, 100, 255])


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_neither_jax_nor_torch_nor_tensorflow_is_loaded(name, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    what = "digits" if name == "digits" else f"folder:{tmp_path}"
    code = (
        "import sys\nfrom jax_ddpm import data\n"
        f"data.load({what!r}, 8, cache_dir={str(tmp_path / 'cache')!r})\n"
        "print(sorted({'jax', 'torch', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
