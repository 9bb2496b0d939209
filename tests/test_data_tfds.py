"""Data sets of tensorflow_datasets: prepared ones read without TensorFlow, missing ones prepared, and what goes wrong.

Small data sets with known pixels are written once by tensorflow_datasets itself, in a process of its own.
"""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jax_ddpm import data
from jax_ddpm.spec.errors import UserError
from tests.shared_data import SHARED, needs_shared

WRITE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

def write(name, image, splits, file_format="array_record"):
    features = tfds.features.FeaturesDict({"image": image, "number": np.int64})
    rows = {
        split: [(key, {"image": value, "number": key}) for key, value in enumerate(values)]
        for split, values in splits.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name, "1.0.0", features, rows, data_dir=sys.argv[1], file_format=file_format, disable_shuffling=True)

grays = lambda first, last: [png(np.full((8, 8), value, np.uint8)) for value in range(first, last)]
gray, colour = tfds.features.Image(shape=(8, 8, 1)), tfds.features.Image(shape=(None, None, 3))
write("with_test", gray, {"train": grays(0, 12), "test": grays(50, 53), "validation": grays(60, 62)})
write("with_validation", gray, {"train": grays(0, 12), "validation": grays(60, 62)})
write("only_train", gray, {"train": grays(0, 12)})
write("no_train", gray, {"test": grays(0, 3), "extra": grays(20, 32)})
write("as_tfrecord", gray, {"train": grays(0, 12), "test": grays(50, 53)}, "tfrecord")
sizes = [png(np.full((6 + 2 * value, 20, 3), (value, 2 * value, 99), np.uint8)) for value in range(6)]
write("mixed_sizes", colour, {"train": [*sizes, png(np.full((9, 9), 200, np.uint8))]})
write("one_broken", gray, {"train": [*grays(0, 2), b"no image", *grays(2, 4)]})
labelled = tfds.features.FeaturesDict({"image": gray, "label": tfds.features.ClassLabel(names=["even", "odd"])})
rows = {split: [(key, {"image": value, "label": key % 2}) for key, value in enumerate(grays(0, 12))]
        for split in ("train", "test")}
tfds.dataset_builders.store_as_tfds_dataset(
    "labelled", "1.0.0", labelled, rows, data_dir=sys.argv[1], file_format="array_record", disable_shuffling=True)
write("no_images", tfds.features.Text(), {"train": ["a", "b"]})
"""
FASHION = SHARED / "data" / "tfds_manual" / "fashion_mnist" if SHARED else Path()
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", WRITE, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def load(prepared, tmp_path):
    def load_prepared(name, image_size=8, **options):
        options = {"data_dir": str(prepared), "cache_dir": str(tmp_path / "cache"), "log": lambda _: None} | options
        return data.load(name, image_size, **options)

    return load_prepared


def values(images):
    assert images.dtype == np.uint8 and images.flags.c_contiguous
    assert (images == images[:, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_labels_follow_the_images(load):
    assert load("with_test").labels is None
    for images in (load("labelled"), load("labelled", validation_fraction=0.25)):
        assert images.class_names == ("even", "odd") and images.labels.dtype == np.int32
        assert images.labels.tolist() == [value % 2 for value in values(images.train)]
        assert images.validation_labels.tolist() == [value % 2 for value in values(images.validation)]


@pytest.mark.parametrize("name", ["with_test", "as_tfrecord", "with_test:1.0.0"])
def test_its_own_test_split_is_the_validation_set(name, load):
    images = load(name)
    assert images.train.shape == (12, 8, 8, 1)
    assert values(images.train) == list(range(12))
    assert values(images.validation) == [50, 51, 52]
    assert any("the data set's own" in note and "test" in note for note in images.notes)


def test_its_validation_split_where_there_is_no_test(load):
    assert values(load("with_validation").validation) == [60, 61]


def test_a_tenth_where_there_is_neither(load):
    images = load("only_train")
    assert (len(images.train), len(images.validation)) == (11, 1)
    assert sorted(values(images.train) + values(images.validation)) == list(range(12))


def test_a_share_of_ones_choice_comes_from_train(load):
    images = load("with_test", validation_fraction=0.25)
    assert (len(images.train), len(images.validation)) == (9, 3)
    assert sorted(values(images.train) + values(images.validation)) == list(range(12))
    assert load("with_test", validation_fraction=0).validation.shape == (0, 8, 8, 1)


def test_the_largest_split_where_none_is_named_train(load):
    images = load("no_train")
    assert values(images.train) == list(range(20, 32)) and values(images.validation) == [0, 1, 2]
    assert any("extra" in note for note in images.notes)


def test_mixed_sizes(load):
    images = load("mixed_sizes", validation_fraction=0).train
    assert images.shape == (7, 8, 8, 3)
    expected = [(value, 2 * value, 99) for value in range(6)] + [(200, 200, 200)]
    assert images[:, 4, 4].tolist() == [list(pixel) for pixel in expected]


def test_a_broken_image_is_skipped_and_named(load):
    images = load("one_broken", validation_fraction=0)
    assert values(images.train) == [0, 1, 2, 3]
    assert any("1 of 5 images skipped: train image 2 (not an image)" in note for note in images.notes)


def test_the_second_time_comes_from_the_cache(load):
    first, second = load("with_test"), load("with_test")
    assert any(note.startswith("read from the cache") for note in second.notes)
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.validation, second.validation)


def test_the_same_name_in_another_folder_is_another_cache_entry(prepared, load, tmp_path):
    assert len(load("with_test").train) == 12
    other = tmp_path / "other" / "with_test"
    shutil.copytree(prepared / "no_train", other)
    for path in (other / "1.0.0").iterdir():
        path.write_bytes(path.read_bytes().replace(b'"no_train"', b'"with_test"'))
        path.rename(path.with_name(path.name.replace("no_train", "with_test")))
    assert values(load("with_test", data_dir=str(tmp_path / "other")).train) == list(range(20, 32))


def test_data_dir_from_the_environment(prepared, load, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(load("with_test", data_dir=None).train) == 12


def test_no_tensorflow_no_jax_no_torch(prepared, tmp_path):
    code = (
        "import sys\nfrom jax_ddpm import data\n"
        "for name in ('with_test', 'as_tfrecord', 'mixed_sizes'):\n"
        f"    data.load(name, 8, data_dir={str(prepared)!r}, cache_dir={str(tmp_path)!r})\n"
        "print(sorted({'jax', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["with_test", "as_tfrecord"])
@pytest.mark.parametrize("harm", ["cut", "missing"])
def test_damaged_data(name, harm, prepared, load, tmp_path):
    shutil.copytree(prepared / name, tmp_path / "copy" / name)
    (shard,) = (tmp_path / "copy" / name / "1.0.0").glob("*train*")
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        shard.unlink()
    with pytest.raises(UserError, match="is damaged" if harm == "cut" else "is incomplete") as caught:
        load(name, data_dir=str(tmp_path / "copy"))
    assert "Delete" in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_data_that_end_too_soon(prepared, load, tmp_path):
    shutil.copytree(prepared / "as_tfrecord", tmp_path / "as_tfrecord")
    (shard,) = (tmp_path / "as_tfrecord" / "1.0.0").glob("*train*")
    whole = shard.read_bytes()
    first_record = 8 + 4 + int.from_bytes(whole[:8], "little") + 4
    shard.write_bytes(whole[:first_record])
    with pytest.raises(UserError, match="is damaged: 1 of 12 examples"):
        load("as_tfrecord", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashon_mnist", "unknown data set 'fashon_mnist'.\nDid you mean fashion_mnist"),
        ("digit", "Did you mean digits"),
        ("CIFAR-10", "cifar10"),
        ("qqqqqq", "Expected digits, folder:PATH, a .zip"),
        ("", "unknown data set"),
        ("imdb_reviews", "imdb_reviews is not an image data set: .*found text, label"),
        ("no_images", "no_images is not an image data set"),
        ("mnist:9.9.9", "mnist:9.9.9 cannot be opened: .*version 9.9.9, only"),
        ("mnist_corrupted/nonsense", "has no configuration 'nonsense'.\nIt has: identity, shot_noise"),
    ],
)
def test_names_that_cannot_be_used(name, message, load):
    with pytest.raises(UserError, match=message) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_folder_without_its_prefix(load, tmp_path):
    with pytest.raises(UserError, match=f"say 'folder:{tmp_path}'"):
        load(str(tmp_path))


@pytest.mark.parametrize("option", ["data_dir", "manual_dir"])
def test_folders_that_do_not_exist(option, load):
    with pytest.raises(UserError, match=f"{option} /no/such: there is no such folder"):
        load("with_test", **{option: "/no/such"})


@slow
def test_without_a_network_the_error_says_so_and_comes_soon(load, tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"kmnist: the download failed .*\n.*manual_dir .*data_dir"):
        load("kmnist", data_dir=str(tmp_path))
    assert time.monotonic() - start < 60
    assert not list(tmp_path.rglob("dataset_info.json"))


@slow
def test_archives_that_have_to_be_fetched_by_hand(load, tmp_path):
    with pytest.raises(UserError, match=r"imagenet2012 could not be prepared: .*Manual directory .*\n.*manual_dir"):
        load("imagenet2012", data_dir=str(tmp_path))


def idx_images(name):
    raw = gzip.decompress((FASHION / name).read_bytes())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1)


def same_images_in_any_order(found, expected):
    assert found.shape == expected.shape
    found, expected = (sorted(image.tobytes() for image in images) for images in (found, expected))
    assert found == expected


@slow
@needs_shared
def test_real_fashion_mnist_is_what_its_archives_hold(load):
    images = load("fashion_mnist", 28, data_dir=str(SHARED / "data" / "tfds"))
    same_images_in_any_order(images.train, idx_images("train-images-idx3-ubyte.gz"))
    same_images_in_any_order(images.validation, idx_images("t10k-images-idx3-ubyte.gz"))


@needs_shared
def test_real_cifar10_is_in_colour(load):
    images = load("cifar10", 32, data_dir=str(SHARED / "data" / "tfds"), validation_fraction=0)
    assert images.train.shape == (10000, 32, 32, 3)
    assert (images.train[..., 0] != images.train[..., 2]).mean() > 0.5


@slow
@needs_shared
def test_preparing_from_archives_killed_half_way_and_again(load, tmp_path):
    data_dir = tmp_path / "prepared"
    data_dir.mkdir()
    code = (
        "from jax_ddpm import data\n"
        f"data.load('fashion_mnist', 28, data_dir={str(data_dir)!r}, manual_dir={str(FASHION)!r})"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(data_dir.glob("fashion_mnist/*/*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(data_dir.glob("fashion_mnist/3.0.1"))

    images = load("fashion_mnist", 28, data_dir=str(data_dir), manual_dir=str(FASHION))
    same_images_in_any_order(images.validation, idx_images("t10k-images-idx3-ubyte.gz"))
    same_images_in_any_order(images.train, idx_images("train-images-idx3-ubyte.gz"))
    assert list(data_dir.glob("fashion_mnist/3.0.1/*.array_record*"))
