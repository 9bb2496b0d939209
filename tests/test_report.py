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


def test_row_labels_stand_left_of_the_pictures():
    images = RNG.integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    plain, labelled = np.asarray(report.table(images)), np.asarray(report.table(images, row_labels=("one", "another")))
    side = labelled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(labelled[:, side:], plain)
    for row in (0, 1):
        assert (labelled[50 * row : 50 * (row + 1), :side] < 128).any()


def test_states_stand_over_what_is_predicted_from_them():
    x_t, x_0 = RNG.integers(0, 256, (2, 3, 2, 16, 16, 1), np.uint8)
    picture = np.asarray(report.beside(x_t, x_0))
    tiles = picture[:, -3 * 50 - 2 :]  # three columns, at the right of the labels
    for frame in range(3):
        for image in range(2):
            for kind, images in enumerate((x_t, x_0)):
                top, left = 2 + 50 * (2 * image + kind), 2 + 50 * frame
                tile = tiles[top : top + 48 : 3, left : left + 48 : 3]
                np.testing.assert_array_equal(tile, images[frame, image, ..., 0])


def test_loss_by_timestep_and_histogram_show_their_numbers():
    t, losses = np.arange(5), np.geomspace(1, 0.1, 5)
    line = report.loss_by_timestep(t, losses).axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_xydata(), np.stack([t, losses], axis=1))
    edges, shares = np.linspace(-1, 1, 5), {"samples": np.full(4, 0.25), "data": np.asarray([0.1, 0.2, 0.3, 0.4])}
    steps = {patch.get_label(): patch.get_data() for patch in report.histogram(edges, shares).axes[0].patches}
    assert set(steps) == set(shares)
    for name, share in shares.items():
        np.testing.assert_array_equal(steps[name].values, share)
        np.testing.assert_array_equal(steps[name].edges, edges)


def test_the_terms_of_a_bound_are_drawn_by_range():
    edges, terms = np.array([0, 1, 4, 10]), np.array([1.5, 0.2, 0.01])
    axes = report.bound_by_timestep({"whole": (np.arange(11), np.ones(10)), "drawn": (edges, terms)}).axes[0]
    values, found, _ = axes.patches[1].get_data()
    np.testing.assert_array_equal(values, terms)
    np.testing.assert_array_equal(found, edges + 1)  # logarithmic, from t = 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["whole", "drawn"]


def test_evenly_spaced():
    np.testing.assert_array_equal(report.evenly_spaced(np.arange(101), 5), [0, 25, 50, 75, 100])
    np.testing.assert_array_equal(report.evenly_spaced(np.arange(11) ** 2, 5), [0, 5, 7, 9, 10])  # 0 25 50 75 100
    np.testing.assert_array_equal(report.evenly_spaced(-(np.arange(11) ** 2), 5), [0, 5, 7, 9, 10])
    np.testing.assert_array_equal(report.evenly_spaced(np.arange(3), 30), [0, 1, 2])
    np.testing.assert_array_equal(report.evenly_spaced(np.ones(1), 30), [0])


def test_nearest_images_by_hand():
    """Black, gray and white images, more of them than are compared at a time."""
    levels = np.tile(np.asarray([0, 100, 250], np.uint8), 1000)
    images = np.broadcast_to(levels[:, None, None, None], (3000, 4, 4, 3))
    samples = np.broadcast_to(np.asarray([100, 240], np.uint8)[:, None, None, None], (2, 4, 4, 3)).copy()
    samples[0, 0, 0, 0] = 104  # one of 48 values off by 4: sqrt(16 / 48)
    indices, distances = report.nearest(samples, images, 3)
    np.testing.assert_array_equal(indices, [[1, 4, 7], [2, 5, 8]])
    np.testing.assert_allclose(distances, [[(16 / 48) ** 0.5] * 3, [10] * 3], rtol=1e-12)
    np.testing.assert_array_equal(report.nearest(images[:2], images)[1], [[0], [0]])


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
