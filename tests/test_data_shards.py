"""Data sets that are larger than memory: blocks on disk, decoding that goes on where it stopped, reading on demand."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import data
from jax_ddpm.data import cache, decode, image_data, shards, through_cache
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training import feed
from jax_ddpm.training.feed import Feed
from jax_ddpm.training.prepare import make_mesh
from tests.small import small

IMAGE_BYTES = 8 * 8 * 3


@pytest.fixture
def folder(tmp_path):
    """23 gray images, one of them broken, and one in colour at the end."""
    path = tmp_path / "pictures"
    path.mkdir()
    for value in range(23):
        Image.new("L", (8, 8), value).save(path / f"{value:02}.png")
    (path / "04.png").write_bytes(b"")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path / "99.png")
    return path


@pytest.fixture
def load(folder, tmp_path):
    def load_folder(**options):
        options = {"cache_dir": str(tmp_path / "cache"), "log": lambda _: None} | options
        return data.load(f"folder:{folder}", 8, **options)

    return load_folder


@pytest.fixture
def small_blocks(monkeypatch):
    """Five images a block, and no data set small enough to be an ordinary array."""
    monkeypatch.setattr(decode, "BLOCK_BYTES", 5 * IMAGE_BYTES)
    monkeypatch.setattr(shards, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(shards, "MAX_OPEN_FILES", 2)
    monkeypatch.setattr(image_data, "HASHED_AT_A_TIME", 3 * IMAGE_BYTES)


def blocks(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*/*.npy"))


@pytest.mark.parametrize("fraction", [None, 0, 0.5])
def test_blocks_hold_what_one_array_held(fraction, load, tmp_path, monkeypatch, request):
    whole = load(validation_fraction=fraction, cache_dir=str(tmp_path / "other"))
    assert isinstance(whole.train, np.ndarray)
    request.getfixturevalue("small_blocks")
    for _ in range(2):  # decoded, and from the cache
        parts = load(validation_fraction=fraction)
        assert isinstance(parts.train, data.ShardedImages) and parts.train.shape == whole.train.shape
        np.testing.assert_array_equal(np.asarray(parts.train), whole.train)
        np.testing.assert_array_equal(np.asarray(parts.validation), whole.validation)
        assert parts.fingerprint == whole.fingerprint
    assert len(blocks(tmp_path)) == 5


def test_indexing_is_that_of_an_array(load, small_blocks):
    images = load(validation_fraction=0.3).train
    array = np.asarray(images)
    assert (len(images), images.ndim, images.nbytes, images.dtype) == (len(array), 4, array.nbytes, array.dtype)
    for key in (0, -1, np.int64(3), slice(2, 9), slice(None, None, -2), slice(50, 60)):
        np.testing.assert_array_equal(images[key], array[key])
    for key in ([5, 1, 1, -2], np.array([[3, 0], [2, 2]]), [], np.arange(len(array)) % 2 == 0):
        np.testing.assert_array_equal(images[key], array[key])
    np.testing.assert_array_equal(np.stack(list(images)), array)
    assert np.asarray(images, np.float32).dtype == np.float32 and data.to_float(images).shape == array.shape
    for key in (len(array), -len(array) - 1, [0, 99], (0, 1), 0.5, ...):
        with pytest.raises(IndexError):
            images[key]


def test_threads_read_the_same_images(tmp_path, monkeypatch):
    """More shards than files may be open, a shard that is an array, repeated indices, and a file that was cut."""
    monkeypatch.setattr(shards, "MAX_OPEN_FILES", 2)
    images = np.random.default_rng(0).integers(0, 256, (70, 3, 2, 1), np.uint8)
    paths = [tmp_path / f"{number}.npy" for number in range(6)]
    for path, part in zip(paths, np.split(images[:60], 6), strict=True):
        np.save(path, part)
    found = shards.ShardedImages([*paths, images[60:]], [10] * 7, (3, 2, 1))
    indices = np.random.default_rng(1).integers(0, 70, (8, 25))
    assert indices.size >= shards.MIN_IMAGES_FOR_THREADS
    np.testing.assert_array_equal(found[indices], images[indices])
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    again = shards.ShardedImages([*paths, images[60:]], [10] * 7, (3, 2, 1))
    with pytest.raises((OSError, ValueError)):
        again[indices]


def test_an_interrupted_decoding_goes_on(load, tmp_path, small_blocks, monkeypatch):
    """Whole blocks are kept, and nothing else is left behind."""
    expected = load(cache_dir=str(tmp_path / "other"))
    write, written = cache.write_text, []

    def interrupted(path, text):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    monkeypatch.setattr(cache, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load()
    monkeypatch.setattr(cache, "write_text", write)
    (entry,) = (tmp_path / "cache").iterdir()
    assert len(json.loads((entry / "index.json").read_text())["blocks"]["train"]) == 3
    assert not [path for path in entry.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    decoded, said = [], []
    monkeypatch.setattr(decode, "open_image", lambda *a, f=decode.open_image: decoded.append(a) or f(*a))
    images = load(log=said.append)
    assert len(decoded) == 24 - 15 and any("holds 15 images that were decoded before" in line for line in said)
    np.testing.assert_array_equal(np.asarray(images.train), np.asarray(expected.train))
    assert images.fingerprint == expected.fingerprint


def test_only_damaged_blocks_are_decoded_again(load, tmp_path, small_blocks, monkeypatch):
    first = load()
    (path,) = (tmp_path / "cache").glob("*/train-00003.npy")
    path.write_bytes(path.read_bytes()[:-1])
    decoded = []
    monkeypatch.setattr(decode, "open_image", lambda *a, f=decode.open_image: decoded.append(a) or f(*a))
    assert load().fingerprint == first.fingerprint and len(decoded) == 24 - 15


def test_deep_images_among_others_and_an_interruption(folder, load, tmp_path, small_blocks):
    """The range is looked for once a deep image appears; blocks before it stay."""
    for name, value in (("15.png", 1000), ("98.png", 5000)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(folder / name)
    said = []
    images = load(validation_fraction=0, log=said.append)
    assert sum("more than 8 bits" in line for line in said) == 1
    corners = np.asarray(images.train)[:, 0, 0, 0].tolist()
    assert corners == [*range(4), *range(5, 15), 0, *range(16, 23), 255, 1]
    (path,) = (tmp_path / "cache").glob("*/train-00004.npy")
    path.unlink()
    again = load(validation_fraction=0, log=said.append)  # now the range is known
    assert sum("more than 8 bits" in line for line in said) == 1 and again.fingerprint == images.fingerprint


CODE = """
import sys, time
from jax_ddpm import data
from jax_ddpm.data import decode
decode.BLOCK_BYTES = 5 * 8 * 8 * 3
read = decode.open_image
def slow(*arguments):
    print("reading", flush=True)
    time.sleep(0.1)
    return read(*arguments)
decode.open_image = slow
data.load(sys.argv[1], 8, cache_dir=sys.argv[2])
"""


def test_ctrl_c_while_decoding_ends_at_once(folder, tmp_path):
    for number in range(300):
        os.link(folder / "00.png", folder / f"{number + 1000}.png")
    command = [sys.executable, "-c", CODE, f"folder:{folder}", str(tmp_path / "cache")]
    heeded = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's background jobs ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeded)
    while process.stdout.readline().strip() != "reading":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    read_after, said = process.communicate(timeout=60)
    assert read_after.count("reading") < 200 and "KeyboardInterrupt" in said, said
    assert process.returncode == -signal.SIGINT
    (entry,) = (tmp_path / "cache").iterdir()
    assert {path.name for path in entry.iterdir()} <= {".lock", "index.json", *(f"train-{n:05}.npy" for n in range(9))}


# Too little space ----------------------------------------------------------------------------------------------------


def test_a_full_disk_under_a_large_data_set_is_a_message(load, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(through_cache, "MAX_WITHOUT_CACHE", 0)

    def no_space(_):
        raise OSError(28, "No space left on device")

    fsync, calls = os.fsync, []
    monkeypatch.setattr("os.fsync", lambda file: no_space(file) if len(calls) > 4 else calls.append(fsync(file)))
    with pytest.raises(
        UserError, match=r"cannot hold the decoded images, .*No space left.*\nFree disk space"
    ) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 2
    monkeypatch.setattr("os.fsync", fsync)
    said = []
    load(log=said.append)
    assert any("images that were decoded before" in line for line in said)


def test_too_little_space_is_noticed_before_decoding(load, tmp_path, monkeypatch):
    monkeypatch.setattr(through_cache, "MAX_WITHOUT_CACHE", 0)
    monkeypatch.setattr(through_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=24 * 64 - 1))
    with pytest.raises(UserError, match=r"No space left on device: 0.0 GB are free"):
        load()


def test_too_little_memory_is_a_message(load, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(decode, "open_image", no_memory)
    with pytest.raises(UserError, match="there is not enough memory to read its images") as caught:
        load()
    assert len(str(caught.value).splitlines()) == 2


# Training ------------------------------------------------------------------------------------------------------------


def test_the_feed_reads_ahead_and_gives_the_same_batches(load, small_blocks, monkeypatch):
    images, config, mesh = load().train, small(batch_size=4), make_mesh(4)
    resident = Feed(images, config, mesh)
    monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", 0)
    streamed = Feed(images, config, mesh)
    assert resident.resident is not None and streamed.resident is None
    step, ahead = 0, []
    for n in (1, 1, 1, streamed.steps_per_dispatch, 1, 1):
        batches = [np.asarray(f.batches(step, n)[0])[np.asarray(f.batches(step, n)[1])] for f in (resident, streamed)]
        np.testing.assert_array_equal(*(batch[:n] for batch in (batches[0], batches[1])))
        ahead.append(streamed.read_ahead[0])
        step += n
    assert ahead[0] == (1, 1) and streamed.read_ahead[1].result().dtype == np.uint8


def test_reading_from_the_cache_is_fast(tmp_path):
    """A tenth of what is measured on a core of a busy machine."""
    array = np.random.default_rng(0).integers(0, 256, (4000, 64, 64, 3), dtype=np.uint8)
    paths = []
    for number, part in enumerate(np.split(array, 4)):
        paths.append(tmp_path / f"{number}.npy")
        np.save(paths[-1], part)
    images = data.ShardedImages(paths, [1000] * 4, (64, 64, 3))
    began = time.process_time()
    for step in range(20):
        batch = images[data.batch_indices(0, step, len(images), 128)]
    seconds = time.process_time() - began
    np.testing.assert_array_equal(batch, array[data.batch_indices(0, 19, 4000, 128)])
    assert 20 * 128 / seconds > 10_000
