"""Pictures of more formats and depths, folders of splits and classes, zip files: all is read, or named in a note."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import data
from jax_ddpm.data import formats, zip_file
from jax_ddpm.spec.errors import UserError

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 4096, (8, 8), dtype=np.uint16)
DEEP[0, :2] = 0, 4095


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


@pytest.fixture
def load(folder, tmp_path):
    def load_folder(image_size=8, name=f"folder:{folder}", **options):
        options = {"cache_dir": str(tmp_path / "cache"), "log": lambda _: None, "validation_fraction": 0} | options
        return data.load(name, image_size, **options)

    return load_folder


def save(folder, name, value):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def note(images, words):
    (found,) = [line for line in images.notes if words in line and "cache" not in line]
    return found


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.ppm", "a.jp2", "a.avif", "a.dib", "a.apng", "a.JFIF"])
def test_formats(name, folder, load):
    kind = {"dib": "BMP", "apng": "PNG", "JFIF": "JPEG"}.get(name.rpartition(".")[2])
    options = {"a.avif": {"quality": 100}, "a.JFIF": {"quality": 100}}.get(name, {})
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / name, kind, **options)
    assert np.abs(load().train[0].astype(int) - (0, 0, 255)).max() <= 3


def test_tiff_beside_png(folder, load):
    for number in range(3):
        save(folder, f"{number}.png", number)
        save(folder, f"{number}.tif", 100 + number)
    assert load().train[:, 0, 0, 0].tolist() == [0, 100, 1, 101, 2, 102]


def test_a_format_that_is_missing_is_named_with_its_remedy(folder, load, monkeypatch):
    found = tuple(name for name in formats.formats() if name != "HEIF")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    formats.formats.cache_clear()
    assert formats.formats() == found
    save(folder, "a.png", 1)
    for number in range(12):
        (folder / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "phone.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    images = load()
    assert note(images, "left out") == "left out: 12 .heic (pip install pillow-heif)"
    assert "phone.png (HEIF: pip install pillow-heif)" in note(images, "skipped")
    formats.formats.cache_clear()


def test_other_files_are_counted_by_suffix(folder, load):
    save(folder, "a.png", 1)
    for name in ("labels.csv", "b.txt", "c.TXT", "noise.xyz", "README"):
        (folder / name).write_text("a,b")
    save(folder, "._a.png", 1)
    (folder / ".DS_Store").write_text("")
    expected = "other files, left out: 2 .txt, 1 hidden .png, 1 without a suffix, 1 .csv, 1 .xyz"
    assert note(load(), "left out") == expected


def test_content_decides_where_the_suffix_does_not(folder, load):
    for name, kind in (("a", "PNG"), ("b.image", "JPEG"), ("c.heic", "JPEG"), ("d", "TIFF"), ("e.png", "JPEG")):
        Image.new("L", (8, 8), 50).save(folder / name, kind)
    Image.new("L", (8, 8), 50).save(folder / "f.nef", "TIFF")  # a camera's raw file begins so, with a small preview
    images = load()
    assert len(images.train) == 5 and (images.train == 50).all()
    assert note(images, "content") == ("read as images because of their content: 2 without a suffix, 1 .image, 1 .heic")
    assert note(images, "left out") == "other files, left out: 1 .nef"


def test_a_folder_without_images_says_what_it_holds(folder, load):
    (folder / "a.mp4").write_text("")
    with pytest.raises(UserError, match=r"no images in it or in its subfolders \(other files, left out: 1 .mp4\)"):
        load()


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_only_the_first_frame_is_used_and_a_note_says_so(name, folder, load):
    frames = [Image.new("L", (8, 8), value).convert("RGB") for value in (200, 100)]
    frames[0].save(
        folder / name, save_all=True, append_images=frames[1:], **({"lossless": 1} if "webp" in name else {})
    )
    images = load()
    assert (images.train == 200).all()
    assert note(images, "frames") == "images with several frames or pages: 1; only the first of each is used"


# More than 8 bits per channel ----------------------------------------------------------------------------------------


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of uint16 (H, W, C), which Pillow does not write for C > 1."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def scaled(values, low, high):
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def test_twelve_bits_in_sixteen_are_visible(folder, load):
    """Case 04: they were nearly black."""
    for number in range(12):
        values = (np.arange(1600).reshape(40, 40) * (number + 1) % 4096).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number:02}.png")
    images = load(40, validation_fraction=None)
    assert (images.train.min(), images.train.max()) == (0, 255) and len(images.validation) == 1
    assert note(images, "bits").startswith(
        "images with more than 8 bits per channel: 12; 0 becomes black and 4095 white"
    )
    np.testing.assert_array_equal(images.train[0, ..., 0], scaled(np.arange(1600).reshape(40, 40), 0, 4095))


def test_the_range_is_that_of_the_whole_set_and_can_be_given(folder, load):
    """Training and validation images have the same range; 8-bit images have none."""
    (folder / "train").mkdir()
    (folder / "test").mkdir()
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(folder / "train" / "a.png")
    save(folder, "train/b.png", 7)
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(folder / "test" / "c.png")
    images = load(validation_fraction=None)
    assert images.train[:, 0, 0, 0].tolist() == [0, 7] and images.validation[0, 0, 0, 0] == 255
    images = load(validation_fraction=None, value_range=(0, 4000))
    assert images.train[:, 0, 0, 0].tolist() == [64, 7] and images.validation[0, 0, 0, 0] == 191
    assert "0 becomes black and 4000 white (as value_range says)" in note(images, "bits")


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan"))])
def test_an_impossible_range(value_range, folder, load):
    with pytest.raises(UserError, match="value_range"):
        load(value_range=value_range)


def test_a_range_without_use_is_told(folder, load):
    save(folder, "a.png", 1)
    assert note(load(value_range=(0, 9)), "value_range").startswith("value_range has no effect")


def tiff(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.png", png16(DEEP[..., None]), scaled(DEEP, 0, 4095)[..., None]),
        ("a.png", png16(np.stack([DEEP, DEEP // 2, 4095 - DEEP], -1)), None),
        ("a.tif", tiff(DEEP), scaled(DEEP, 0, 4095)[..., None]),
        ("a.tif", tiff(DEEP.astype(np.int32) - 5000), scaled(DEEP, 0, 4095)[..., None]),
        ("a.tif", tiff((DEEP / 4095).astype(np.float32)), scaled(DEEP, 0, 4095)[..., None]),
        ("a.pgm", b"P5 8 8 4095\n" + DEEP.astype(">u2").tobytes(), scaled(DEEP, 0, 4095)[..., None]),
    ],
    ids=["png", "rgb png", "tiff", "signed tiff", "float tiff", "pgm"],
)
def test_deep_images(name, content, expected, folder, load):
    (folder / name).write_bytes(content)
    if expected is None:
        expected = scaled(np.stack([DEEP, DEEP // 2, 4095 - DEEP], -1), 0, 4095)
    np.testing.assert_allclose(load().train[0], expected, atol=0 if name != "a.pgm" else 1)


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_images_with_alpha_are_put_on_white(channels, folder, load):
    alpha = np.full((8, 8), 13107, np.uint16)  # a fifth
    (folder / "a.png").write_bytes(png16(np.stack([*(DEEP,) * (channels - 1), alpha], -1)))
    found = load(value_range=(0, 4095)).train[0]
    np.testing.assert_allclose(
        found, np.broadcast_to((0.2 * scaled(DEEP, 0, 4095) + 204)[..., None], found.shape), atol=1
    )


def test_float_images_that_are_not_finite_are_skipped(folder, load):
    save(folder, "a.png", 5)
    (folder / "b.tif").write_bytes(tiff(np.full((8, 8), np.nan, np.float32)))
    assert "b.tif (it has values that are not finite)" in note(load(), "skipped")


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 8), (8, 4), (6, 9), (16, 12)])
def test_other_sizes_than_squares_are_covered_and_cut(size, folder, load):
    large = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(large).save(folder / "a.png")
    height, width = size
    factor = max(height / 40, width / 60)
    box = (30 - width / factor / 2, 20 - height / factor / 2, 30 + width / factor / 2, 20 + height / factor / 2)
    expected = Image.fromarray(large).resize((width, height), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_allclose(load(size).train[0], np.asarray(expected), atol=1)


def test_an_image_that_covers_the_size_is_only_cut(folder, load):
    Image.fromarray(COLOUR).save(folder / "a.png")
    np.testing.assert_array_equal(load((8, 4)).train[0], COLOUR[:, 2:6])
    np.testing.assert_array_equal(load((4, 8)).train[0], COLOUR[2:6])
    np.testing.assert_array_equal(load((8, 8)).train[0], load(8).train[0])


# Splits and classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "set/"])
@pytest.mark.parametrize(("train", "held_out"), [("train", "test"), ("Train", "valid"), ("training", "val")])
def test_splits_are_no_pool(train, held_out, inside, folder, load):
    for value in range(3):
        save(folder, f"{inside}{train}/{value}.png", value)
        save(folder, f"{inside}{held_out}/{value}.png", 100 + value)
    images = load(validation_fraction=None)
    assert images.train[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert images.validation[:, 0, 0, 0].tolist() == [100, 101, 102]
    assert f"training on {train}/, validation on {held_out}/" in note(images, "training on")
    images = load(validation_fraction=0)
    assert len(images.train) == 3 and "3 images are not used" in note(images, "not used")


def test_what_is_in_no_split_is_told(folder, load):
    for name in ("train/a", "test/b", "validation/c", "more/d", "e"):
        save(folder, f"{name}.png", 1)
    images = load(validation_fraction=None)
    assert (len(images.train), len(images.validation)) == (1, 1)
    assert "validation on validation/" in note(images, "training on")
    assert note(images, "in neither").endswith("1 in no split, 1 in more/, 1 in test/")


@pytest.mark.parametrize(
    "names", [("train/a", "train/b"), ("test/a", "test/b"), ("train/a", "cars/b"), ("test/a", "b")]
)
def test_a_folder_is_a_split_only_beside_another_one(names, folder, load):
    for name in names:
        save(folder, f"{name}.png", 1)
    assert len(load().train) == 2


def test_a_folder_per_class_gives_labels(folder, load):
    for value, name in enumerate(("cats/1", "cats/black/2", "dogs/1", "birds/9")):
        save(folder, f"{name}.png", value)
    (folder / "cats" / "broken.png").write_bytes(b"")
    images = load()
    assert images.class_names == ("birds", "cats", "dogs")
    assert images.labels.tolist() == [0, 1, 1, 2] and images.labels.dtype == np.int32
    assert images.train[:, 0, 0, 0].tolist() == [3, 0, 1, 2]
    assert note(images, "classes") == "3 classes, named by the folders: birds, cats, dogs"
    images = load(validation_fraction=0.5)
    assert len(images.labels) == len(images.validation_labels) == 2
    assert load().labels.tolist() == [0, 1, 1, 2]  # from the cache


def test_classes_of_splits_are_numbered_together(folder, load):
    for name in ("train/b/1", "train/c/1", "test/a/1", "test/b/1"):
        save(folder, f"{name}.png", 1)
    images = load(validation_fraction=None)
    assert images.class_names == ("a", "b", "c")
    assert images.labels.tolist() == [1, 2] and images.validation_labels.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("a", "b"), ("cats/a", "b"), ("cats/a", "cats/b")])
def test_other_folders_give_none(names, folder, load):
    for name in names:
        save(folder, f"{name}.png", 1)
    images = load()
    assert images.labels is images.validation_labels is images.class_names is None


# Zip files -----------------------------------------------------------------------------------------------------------


def zipped(path, names, content=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for value, name in enumerate(names):
            file = io.BytesIO()
            Image.new("L", (8, 8), value).save(file, "PNG")
            archive.writestr(name, file.getvalue() if content is None else content)


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_a_zip_file_is_read_like_its_folder(prefix, folder, load, tmp_path):
    names = [
        "set/train/cats/1.png",
        "set/train/dogs/2.png",
        "set/test/cats/3.png",
        "set/labels.csv",
        "__MACOSX/._a.png",
    ]
    zipped(folder / "a.ZIP", names)
    images = load(name=f"{prefix}{folder / 'a.ZIP'}", validation_fraction=None)
    assert images.train[:, 0, 0, 0].tolist() == [0, 1] and images.validation[:, 0, 0, 0].tolist() == [2]
    assert images.class_names == ("cats", "dogs") and images.validation_labels.tolist() == [0]
    assert note(images, "left out") == "other files, left out: 1 .csv"
    (folder / "a.ZIP").rename(folder / "b.zip")
    again = load(name=str(folder / "b.zip"), validation_fraction=None)
    assert again.fingerprint == images.fingerprint and any("read from the cache" in line for line in again.notes)
    assert list(folder.iterdir()) == [folder / "b.zip"]


def test_names_in_a_zip_file_lead_nowhere(folder, load, tmp_path):
    zipped(folder / "a.zip", ["../../evil/1.png", "/etc/evil/2.png", "C:\\evil\\3.png", "ok/4.png", "../ok/4.png"])
    images = load(name=str(folder / "a.zip"))
    assert len(images.train) == 4 and "left out: 1 files" in note(images, "name of another")
    assert not list(tmp_path.rglob("*evil*")) and {path.name for path in tmp_path.iterdir()} <= {"pictures", "cache"}


def test_members_that_are_too_large_or_damaged_are_skipped(folder, load, monkeypatch):
    zipped(folder / "a.zip", ["1.png", "2.png"])
    with zipfile.ZipFile(folder / "a.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * 10**6)
    raw = bytearray((folder / "a.zip").read_bytes())
    raw[raw.index(b"2.png") + len("2.png") + 20] ^= 255
    (folder / "a.zip").write_bytes(raw)
    monkeypatch.setattr(zip_file, "MAX_MEMBER_BYTES", 10**5)
    images = load(name=str(folder / "a.zip"))
    assert images.train[:, 0, 0, 0].tolist() == [0]
    found = note(images, "skipped")
    assert found.startswith("2 of 3") and "bomb.png (1 MB uncompressed; at most 0 are read)" in found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "cannot be read as a zip file"),
        (lambda path: path.write_bytes(b""), "cannot be read as a zip file"),
        (lambda path: zipped(path, ["a.txt"]), "no images in it"),
    ],
    ids=["missing", "damaged", "empty", "no images"],
)
def test_a_zip_file_that_cannot_be_used(make, message, folder, load):
    make(folder / "a.zip")
    with pytest.raises(UserError, match=message) as caught:
        load(name=str(folder / "a.zip"))
    assert len(str(caught.value).splitlines()) <= 2
