"""Zip files, arrays and cache entries made to break their readers: read, or refused in two lines."""

import io
import json
import zipfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jax_ddpm import data
from jax_ddpm.spec.errors import UserError
from tests.test_hostile_files import cases, changed_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)


def loaded(path, cache):
    """The images, or None if they are refused as they should be."""
    try:
        images = data.load(str(path), 8, cache_dir=str(cache), validation_fraction=0.0, log=lambda _: None)
    except UserError as error:
        assert len(str(error)) <= 1000 and len(str(error).splitlines()) <= 2, str(error)
        return None
    assert images.train.dtype == np.uint8 and images.train.shape[1:3] == (8, 8)
    assert all(len(note.splitlines()) == 1 and len(note) <= 1000 for note in images.notes)
    return images


def whole_files():
    """Bytes of good files, by suffix."""
    png, tiff, packed, stored, array = (io.BytesIO() for _ in range(5))
    Image.fromarray(PIXELS[0]).save(png, "PNG")
    Image.fromarray(PIXELS[0].astype(np.uint16)).save(tiff, "TIFF")
    for file, method in ((packed, zipfile.ZIP_DEFLATED), (stored, zipfile.ZIP_STORED)):
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in (("train/a/1.png", png), ("train/b/2.tif", tiff), ("test/a/3.png", png)):
                archive.writestr(name, content.getvalue())
    np.save(array, PIXELS)
    arrays = io.BytesIO()
    np.savez(arrays, images=PIXELS, labels=np.arange(12))
    return [("zip", packed), ("zip", stored), ("npy", array), ("npz", arrays)]


@cases(40, 4000)
def test_bytes_of_archives_and_arrays(examples, tmp_path):
    whole = [(suffix, file.getvalue()) for suffix, file in whole_files()]

    @examples
    @given(st.sampled_from(whole), st.data())
    def check(chosen, draw):
        path = tmp_path / f"a.{chosen[0]}"
        path.write_bytes(draw.draw(changed_bytes(chosen[1])))
        loaded(path, tmp_path / "cache")

    check()
    assert {path.name for path in tmp_path.iterdir()} <= {"a.zip", "a.npy", "a.npz", "cache"}


@cases(20, 1000)
def test_bytes_of_the_cache(examples, tmp_path):
    """What can be read is the whole data set, or it is decoded again."""
    (tmp_path / "some").mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "some" / f"{number:02}.png")
    first = loaded(f"folder:{tmp_path / 'some'}", tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*/index.json")
    good = index.read_bytes()

    @examples
    @given(st.data())
    def check(draw):
        changed = draw.draw(changed_bytes(good))
        index.write_bytes(changed)
        images = loaded(f"folder:{tmp_path / 'some'}", tmp_path / "cache")
        assert images is not None
        try:
            same_blocks = json.loads(changed)["blocks"] == json.loads(good)["blocks"]
        except (ValueError, KeyError, TypeError):
            same_blocks = True  # not readable: decoded again
        if same_blocks:
            np.testing.assert_array_equal(images.train, first.train)

    check()
