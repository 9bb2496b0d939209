"""The cache of decoded images: used, told apart, rebuilt when damaged, done without when it cannot be written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import data


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for value in range(12):
        Image.new("L", (8, 8), value).save(path / f"{value:02}.png")
    (path / "broken.png").write_bytes(b"")
    return path


@pytest.fixture
def load(folder, tmp_path):
    def load_folder(image_size=8, **options):
        options = {"cache_dir": str(tmp_path / "cache"), "log": lambda _: None} | options
        return data.load(f"folder:{folder}", image_size, **options)

    return load_folder


def from_cache(images):
    return any(note.startswith("read from the cache") for note in images.notes)


def same(first, second):
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.validation, second.validation)
    return [note for note in first.notes if "cache" not in note] == [
        note for note in second.notes if "cache" not in note
    ]


def entry(tmp_path, name="train-00000.npy"):
    (path,) = (tmp_path / "cache").glob(f"*/{name}")
    return path


def files(tmp_path):
    """Names of all files of the only entry, but for its lock."""
    (folder,) = (tmp_path / "cache").iterdir()
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_the_second_time_comes_from_the_cache_with_the_notes(load):
    first, second = load(), load()
    assert not from_cache(first) and from_cache(second)
    assert same(first, second)
    assert (len(second.train), len(second.validation)) == (11, 1)
    assert any("1 of 13 images skipped: broken.png" in note for note in second.notes)


def test_cached_images_are_read_only_and_contiguous(load):
    load()
    images = load()
    assert images.train.flags.c_contiguous and images.train.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        images.train[0] = 0


def test_only_whole_entries_are_left_behind(load, tmp_path):
    load()
    assert files(tmp_path) == ["index.json", "train-00000.npy"]


@pytest.mark.parametrize("options", [{"image_size": 4}, {"image_size": (8, 4)}, {"value_range": (0, 9)}])
def test_other_settings_are_another_entry(options, load):
    load()
    assert not from_cache(load(**options))
    assert from_cache(load(**options)) and from_cache(load())


@pytest.mark.parametrize("fraction", [0, 0.5])
def test_holding_out_another_share_decodes_nothing_anew(fraction, load):
    first, other = load(), load(validation_fraction=fraction)
    assert from_cache(other) and len(other.validation) == round(11 * fraction)
    assert other.fingerprint != first.fingerprint == load().fingerprint
    assert load(validation_fraction=fraction).fingerprint == other.fingerprint


def test_a_changed_folder_is_another_entry(folder, load):
    load()
    Image.new("L", (8, 8), 200).save(folder / "03.png")
    images = load()
    assert not from_cache(images) and 200 in np.concatenate([images.train, images.validation])
    (folder / "04.png").unlink()
    assert not from_cache(load())


def test_a_renamed_file_is_another_entry(folder, load):
    load()
    (folder / "00.png").rename(folder / "zz.png")
    images = load(validation_fraction=0)
    assert not from_cache(images) and images.train[-1, 0, 0, 0] == 0


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def other_type(path):
    np.save(path, np.load(path).astype(np.int8))


def other_shape(path):
    np.save(path, np.load(path)[:, :4])


def pickled(path):
    np.save(path, np.array([None, {}], object), allow_pickle=True)


@pytest.mark.parametrize("name", ["train-00000.npy", "index.json"])
@pytest.mark.parametrize(
    "harm", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff" * 500), Path.unlink]
)
def test_a_damaged_entry_is_made_anew(name, harm, load, tmp_path):
    first = load()
    first = data.ImageData(first.name, first.train.copy(), first.validation.copy(), first.notes)
    harm(entry(tmp_path, name))
    again = load()
    assert not from_cache(again) and same(first, again)
    assert from_cache(load())


@pytest.mark.parametrize("harm", [lengthen, other_type, other_shape, pickled])
def test_an_array_that_does_not_fit_is_made_anew(harm, load, tmp_path):
    load()
    harm(entry(tmp_path))
    told = []
    images = load(log=told.append)
    assert not from_cache(images) and images.train.shape == (11, 8, 8, 1)
    assert any("is damaged" in line for line in told)


def test_without_a_place_to_write_there_is_a_note(load, tmp_path):
    (tmp_path / "file").write_text("")
    images = load(cache_dir=str(tmp_path / "file" / "cache"))
    assert len(images.train) == 11
    assert any(note.startswith("not cached: ") for note in images.notes)


def test_a_full_disk_leaves_nothing_behind(load, tmp_path, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    images = load()
    assert len(images.train) == 11
    assert any("No space left on device" in note for note in images.notes)
    assert list((tmp_path / "cache").iterdir()) == []


def test_default_place(load, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(cache_dir=None)
    assert len(list((tmp_path / "xdg" / "jax_ddpm").glob("*/index.json"))) == 1
    assert from_cache(load(cache_dir=None))


def test_digits_need_no_cache(tmp_path):
    data.load("digits", 8, cache_dir=str(tmp_path / "cache"), log=lambda _: None)
    assert not (tmp_path / "cache").exists()


def test_several_processes_at_once(folder, load, tmp_path):
    code = (
        "from jax_ddpm import data\n"
        f"images = data.load({f'folder:{folder}'!r}, 8, cache_dir={str(tmp_path / 'cache')!r}, log=lambda _: None)\n"
        "print(int(images.train.sum()) + int(images.validation.sum()))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in processes] == [str(64 * sum(range(12)))] * 4
    assert from_cache(load())
    assert files(tmp_path) == ["index.json", "train-00000.npy"]
