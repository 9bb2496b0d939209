"""Pictures hold the very pixels that went in."""

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import report

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_repeats_pixels_and_cuts_nothing(channels, mode):
    images = RNG.integers(0, 256, (5, 16, 16, channels), np.uint8)
    picture = report.grid(images, tile=48)
    assert picture.mode == mode
    assert picture.size == (3 * 50 + 2, 2 * 50 + 2)
    canvas = np.asarray(picture).reshape(*picture.size[::-1], channels)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        tile = canvas[2 + row * 50 : 50 + row * 50, 2 + column * 50 : 50 + column * 50]
        np.testing.assert_array_equal(tile, image.repeat(3, axis=0).repeat(3, axis=1))
    assert (canvas[52:, 102:] == 255).all()


def test_labels_stand_above_the_pictures():
    images = RNG.integers(0, 256, (2, 3, 8, 8, 1), np.uint8)
    plain, labelled = np.asarray(report.table(images)), np.asarray(report.table(images, ["a", "b", "c"]))
    head = len(labelled) - len(plain)
    np.testing.assert_array_equal(labelled[head:], plain)
    assert (labelled[:head] < 128).any()


def test_loss_curve_shows_every_row():
    rows = [{"step": s, "loss": 1 / s, **({"validation_loss": 2 / s} if s % 20 == 0 else {})} for s in range(1, 101)]
    figure = report.loss_curve(rows)
    lines = {line.get_label().split(",")[0]: line.get_xydata() for line in figure.axes[0].get_lines()[::-1]}
    np.testing.assert_allclose(lines["training"], [(s, 1 / s) for s in range(1, 101)])
    np.testing.assert_allclose(lines["validation"], [(s, 2 / s) for s in range(20, 101, 20)])


def test_a_gif_ends_in_the_last_grid_and_holds_it(tmp_path):
    frames = RNG.integers(0, 256, (6, 4, 8, 8, 1), np.uint8)
    report.write_gif(tmp_path / "x.gif", frames, seconds=0.6, hold=2)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0
        durations, pictures = [], []
        for number in range(6):
            gif.seek(number)
            durations.append(gif.info["duration"])
            pictures.append(np.asarray(gif.convert("L")))
    assert durations == [100] * 5 + [2000]
    np.testing.assert_array_equal(pictures[-1], np.asarray(report.grid(frames[-1], tile=32)))


def test_writing_to_a_folder_and_back(tmp_path):
    x_0 = RNG.uniform(-1.2, 1.2, (3, 4, 4, 3)).astype(np.float32)
    report.check_images_path(tmp_path / "new" / "folder")
    assert "3 images" in report.write_images(tmp_path / "new" / "folder", x_0)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3
