"""A folder of pictures: every mode, broken files, odd folders."""

import os

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import data
from jax_ddpm.spec.errors import UserError

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = COLOUR[..., 0]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


@pytest.fixture
def load(folder, tmp_path):
    def load_folder(image_size=8, **options):
        options = {"cache_dir": str(tmp_path / "cache"), "log": lambda _: None, "validation_fraction": 0} | options
        return data.load(f"folder:{folder}", image_size, **options)

    return load_folder


def save_gray(folder, *values):
    for value in values:
        Image.new("L", (8, 8), value).save(folder / f"{value:03}.png")


def test_gray_stays_one_channel_and_files_are_in_order(folder, load):
    save_gray(folder, 30, 10, 20)
    images = load().train
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_one_colour_image_makes_all_of_them_three_channels(folder, load):
    save_gray(folder, 10)
    Image.fromarray(COLOUR).save(folder / "050.png")
    save_gray(folder, 90)
    images = load().train
    assert images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images[1], COLOUR)
    assert (images[0] == 10).all() and (images[2] == 90).all()


def gray_16_bit():
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    return Image.fromarray(levels), np.rint(levels / 257)[..., None]


def translucent():
    alpha = np.full((8, 8, 1), 51, np.uint8)  # a fifth
    image = Image.fromarray(np.concatenate([COLOUR, alpha], -1))
    return image, 0.2 * COLOUR + 0.8 * 255


def gray_translucent():
    image = Image.merge("LA", (Image.fromarray(GRAY), Image.new("L", (8, 8), 51)))
    return image, 0.2 * GRAY[..., None] + 0.8 * 255


def palette(colours):
    image = Image.fromarray((np.arange(64).reshape(8, 8) % len(colours)).astype(np.uint8), "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image, np.array(colours)[np.arange(64).reshape(8, 8) % len(colours)]


def gray_palette():
    image, expected = palette([(0, 0, 0), (77, 77, 77), (200, 200, 200)])
    return image, expected[..., :1]


def transparent_palette():
    image, expected = palette([(10, 20, 30), (40, 50, 60)])
    image.info["transparency"] = 1
    expected[expected[..., 0] == 40] = 255
    return image, expected


def black_and_white():
    bits = GRAY > 127
    return Image.fromarray(bits), 255.0 * bits[..., None]


def transparent_colour_key():
    image = Image.fromarray(np.where(GRAY > 127, 200, 100).astype(np.uint8))
    image.info["transparency"] = 100
    return image, np.where(GRAY > 127, 200, 255)[..., None]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Image.fromarray(GRAY), GRAY[..., None]),
        lambda: (Image.fromarray(COLOUR), COLOUR),
        gray_16_bit,
        translucent,
        gray_translucent,
        lambda: palette([(255, 0, 0), (0, 128, 0), (3, 4, 5)]),
        gray_palette,
        transparent_palette,
        black_and_white,
        transparent_colour_key,
    ],
    ids=["L", "RGB", "I;16", "RGBA", "LA", "P", "gray-P", "transparent-P", "1", "tRNS"],
)
def test_modes(make, folder, load):
    image, expected = make()
    image.save(folder / "a.png", **{key: image.info[key] for key in ("transparency",) if key in image.info})
    found = load().train[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1)


def test_cmyk_jpeg(folder, load):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "red.jpg", quality=100)
    assert load().train.shape == (1, 8, 8, 3)
    assert np.abs(load().train[0].astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "PNG", "jpeg"])
def test_formats(suffix, folder, load):
    Image.new("RGB", (8, 8), (0, 0, 255)).save(
        folder / f"blue.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.abs(load().train[0].astype(int) - (0, 0, 255)).max() <= 2


def test_first_frame_of_an_animation(folder, load):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    assert load().train[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("orientation", "turns"), [(6, -1), (8, 1), (3, 2)])
def test_exif_orientation(orientation, turns, folder, load):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(folder / "a.png", exif=exif)
    np.testing.assert_array_equal(load().train[0], np.rot90(COLOUR, turns))


def test_centre_is_cut_out_of_the_long_side(folder, load):
    wide = np.zeros((8, 20), np.uint8)
    wide[:, 6:14] = GRAY
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(wide.T.copy()).save(folder / "tall.png")
    tall, found = load().train[..., 0]
    np.testing.assert_array_equal(found, GRAY)
    np.testing.assert_array_equal(tall, GRAY.T)


def test_a_long_side_that_is_odd_stays_sharp(folder, load):
    wide = np.zeros((8, 11), np.uint8)
    wide[:, 1:9] = GRAY
    Image.fromarray(wide).save(folder / "a.png")
    np.testing.assert_array_equal(load().train[0, ..., 0], GRAY)


def test_resizing_is_pillows_bicubic_then_the_centre(folder, load):
    large = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(large).save(folder / "a.png")
    expected = np.asarray(Image.fromarray(large).resize((30, 20), Image.Resampling.BICUBIC))[:, 5:25]
    found = load(20).train[0].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_resizing_is_antialiased(folder, load):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(folder / "a.png")
    assert np.abs(load(8).train[0].astype(float) - 127.5).max() < 12


def test_small_images_are_enlarged(folder, load):
    Image.new("RGB", (3, 5), (9, 8, 7)).save(folder / "a.png")
    assert load(16).train.shape == (1, 16, 16, 3)
    assert (load(16).train == (9, 8, 7)).all()


def test_any_depth_hidden_files_and_other_files(folder, load):
    (folder / "cats" / "black").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    save_gray(folder, 3)
    save_gray(folder / "cats", 2)
    save_gray(folder / "cats" / "black", 1)
    save_gray(folder / ".hidden", 99)
    Image.new("L", (8, 8), 98).save(folder / "._thumb.png")
    (folder / "labels.csv").write_text("a,b")
    images = load()
    assert sorted(images.train[:, 0, 0, 0].tolist()) == [1, 2, 3]
    assert not any("skipped" in note for note in images.notes)


def test_links(folder, load):
    (folder / "real").mkdir()
    save_gray(folder / "real", 1, 2)
    (folder / "real" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "elsewhere.png").symlink_to(folder / "real" / "001.png")
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    images = load()
    assert images.train[:, 0, 0, 0].tolist() == [1, 1, 2]
    assert any("1 of 4 images skipped: dangling.png" in note for note in images.notes)


def test_a_linked_folder_is_followed(folder, load, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save_gray(tmp_path / "elsewhere", 7)
    (folder / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert load().train[:, 0, 0, 0].tolist() == [7]


def damage(folder, kind):
    path = folder / f"bad.{'jpg' if kind == 'cut jpeg' else 'png'}"
    if kind == "cut png" or kind == "cut jpeg":
        Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "bomb":
        Image.new("1", (10_000, 10_000)).save(path)
    elif kind == "pipe":
        os.mkfifo(path)
    return path.name


@pytest.mark.parametrize("kind", ["cut png", "cut jpeg", "empty", "text", "bomb", "pipe"])
def test_a_broken_image_among_good_ones(kind, folder, load):
    save_gray(folder, 1, 2)
    name = damage(folder, kind)
    images = load()
    assert images.train[:, 0, 0, 0].tolist() == [1, 2]
    (note,) = [note for note in images.notes if "skipped" in note]
    assert note.startswith(f"1 of 3 images skipped: {name} (") and "\n" not in note and str(folder) not in note


def test_many_broken_images_are_counted_and_some_named(folder, load):
    save_gray(folder, 1)
    for index in range(7):
        (folder / f"bad{index}.png").write_bytes(b"")
    (note,) = [note for note in load().notes if "skipped" in note]
    assert note.startswith("7 of 8 images skipped: bad0.png (not an image), ") and note.endswith(" and 4 more")


def test_all_broken(folder, load):
    damage(folder, "text")
    with pytest.raises(UserError, match=r"none of its 1 images can be read, e.g. bad.png \(not an image\)"):
        load()


def test_a_name_with_a_line_end_stays_on_one_line(folder, load):
    save_gray(folder, 1)
    (folder / "a\nb.png").write_bytes(b"")
    assert all("\n" not in note for note in load().notes)
    assert any("a?b.png" in note for note in load().notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.rmdir(), "there is no such folder"),
        (lambda path: (path.rmdir(), path.write_text("")), "this is a file, not a folder"),
        (lambda path: None, "no images in it"),
        (lambda path: (path / "readme.txt").write_text(""), "no images in it"),
    ],
    ids=["missing", "file", "empty", "no images"],
)
def test_a_folder_that_cannot_be_used(make, message, folder, load):
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert str(folder) in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_no_path():
    with pytest.raises(UserError, match="needs a path"):
        data.load("folder:", 8)


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (9, 0), (10, 1), (30, 3)])
def test_a_tenth_is_held_out_where_there_is_enough(count, held_out, folder, load):
    save_gray(folder, *range(count))
    images = load(validation_fraction=None)
    assert (len(images.train), len(images.validation)) == (count - held_out, held_out)
    values = images.train[:, 0, 0, 0].tolist()
    assert values == sorted(values)
    assert sorted(values + images.validation[:, 0, 0, 0].tolist()) == list(range(count))
    assert any(note.startswith("validation:") for note in images.notes)
