"""Images with any number of channels: pictures, files, samples and edits, and the page of a run."""

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

import torch_ref
from jax_ddpm import report, unets, weights
from jax_ddpm.commands import torch_trainer
from jax_ddpm.data import to_float
from jax_ddpm.report import html_page
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training import loop
from jax_ddpm.training.run_folder import read_config
from jax_ddpm.training.run_page import write_page
from tests.commands import refusal, succeed
from tests.small import small
from tests.test_page import made_up_run

NETWORK = ConvBlockConfig(widths=(32,), time_width=32)
HEIGHT, WIDTH = 4, 6
RNG = np.random.default_rng(0)
OTHERS = [channels for channels in range(1, 17) if channels not in (1, 3)]


@pytest.mark.parametrize("channels", range(1, 17))
def test_every_channel_is_seen(channels):
    images = RNG.integers(0, 256, (2, 3, HEIGHT, WIDTH, channels), np.uint8)
    shown = report.visible(images)
    note = report.channel_note(channels)
    if channels in (1, 3):
        assert shown is images and note == ""
        return
    assert note == f"Each image is shown as {channels} gray tiles, one per channel."
    columns = math.ceil(math.sqrt(channels))
    assert shown.shape == (2, 3, math.ceil(channels / columns) * HEIGHT, columns * WIDTH, 1)
    for channel in range(channels):
        row, column = divmod(channel, columns)
        tile = shown[..., row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH, 0]
        np.testing.assert_array_equal(tile, images[..., channel])


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_pictures_of_tiles(channels, tmp_path):
    """Grids, tables, sheets, GIFs and PNG files are gray pictures of `visible` images."""
    images = RNG.integers(0, 256, (2, 3, HEIGHT, WIDTH, channels), np.uint8)
    shown = report.visible(images)
    assert report.table(images, ["a", "b", "c"]) == report.table(shown, ["a", "b", "c"])
    assert report.grid(images[0]) == report.grid(shown[0]) and report.grid(images[0]).mode == "L"
    assert html_page.sheet(images) == html_page.sheet(shown)
    report.write_gif(tmp_path / "a.gif", images)
    said = report.write_images(tmp_path, to_float(images[0]))
    assert said.endswith(f"00002.png. {report.channel_note(channels)}")
    with Image.open(tmp_path / "00001.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), shown[0, 1, ..., 0])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models with 2, 4, 5 and 16 channels that were never trained, three images for each, a mask, a picture file."""
    place = tmp_path_factory.mktemp("channels")
    for channels in (2, 4, 5, 16):
        network = unets.build(NETWORK, channels)
        weights.initialise(network, 5)
        diffusion = DiffusionConfig(timesteps=6, beta_end=0.4)
        info = ModelInfo(network=NETWORK, image_shape=(HEIGHT, WIDTH, channels), diffusion=diffusion)
        write_model(place / f"{channels}.safetensors", weights.state_dict(network), info)
        np.savez(place / f"{channels}.npz", images=RNG.integers(0, 256, (3, HEIGHT, WIDTH, channels), np.uint8))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :3] = 255
    Image.fromarray(mask).save(place / "mask.png")
    Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)).save(place / "rgba.png")
    return place


@pytest.mark.parametrize(("channels", "framework"), [(2, "torch"), (4, "torch"), (5, "jax"), (16, "torch")])
def test_samples(channels, framework, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    flags = f"--model {channels}.safetensors --num-images 2 --sampler ddim --num-steps 2 --framework {framework}"
    said = succeed(capsys, monkeypatch, "sample.py", *flags.split(), "--out", "x.npz")
    assert report.channel_note(channels) not in said
    with np.load("x.npz") as arrays:
        images, x_0 = arrays["images"], arrays["x0"]
    assert images.shape == x_0.shape == (2, HEIGHT, WIDTH, channels)
    assert len(np.unique(x_0.reshape(-1, channels), axis=1).T) == channels
    said = succeed(capsys, monkeypatch, "sample.py", *flags.split(), "--out", "x.png")
    assert said.count(report.channel_note(channels)) == 1
    with Image.open("x.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(report.grid(images)))


EDITS = {
    "variations": "--start-t 3",
    "inpainting": "--mask mask.png --resamplings 1 --jump 2",
    "inversion": "--invert --sampler ddim --num-steps 2",
}


@pytest.mark.parametrize("kind", EDITS)
def test_edits(kind, place, capsys, monkeypatch):
    """Of images from a .npz file, alike in both frameworks; the picture shows images, and what is drawn from them."""
    monkeypatch.chdir(place)
    flags, drawn = ["--model", "5.safetensors", "--image", "5.npz", *EDITS[kind].split()], {}
    for framework in ("jax", "torch"):
        for out in ("x.npz", "x.png") if framework == "torch" else ("x.npz",):
            succeed(capsys, monkeypatch, "sample.py", *flags, "--framework", framework, "--out", out)
        with np.load("x.npz") as arrays:
            drawn[framework] = arrays["x0"]
    np.testing.assert_allclose(drawn["jax"], drawn["torch"], atol=1e-5)
    if kind == "inpainting":
        with np.load("5.npz") as given:
            np.testing.assert_allclose(drawn["jax"][:, :, :3], to_float(given["images"][:, :, :3]), atol=1e-6)
    with Image.open("x.png") as picture:
        assert picture.mode == "L"


def test_picture_files_do_not_have_such_channels(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for model in ("4", "5"):
        flags = ("--model", f"{model}.safetensors", "--image", "rgba.png", "--start-t", 3)
        said = refusal(capsys, monkeypatch, "sample.py", *flags)
        assert f"image files have 1 or 3 channels, but the model's images have {model}" in said
        assert f"uint8 (N, 4, 6, {model})" in said


def test_the_page_of_a_run_says_what_its_pictures_show(tmp_path):
    """Also before the run has final pictures. Tiles of the table keep their proportions."""
    folder = made_up_run(tmp_path / "run", shape=(HEIGHT, WIDTH, 5))
    data = page_data(write_page(folder))
    note = report.channel_note(5)
    for part in (data["reverse"], data["nearest"], *data["pictures"]):
        assert part["text"].endswith(note)
    assert data["grids_text"].endswith(note)
    sheet = Image.open(io.BytesIO(base64.b64decode(data["reverse"]["sheets"][0]["src"].partition(",")[2])))
    assert sheet.size == (7 * 3 * WIDTH, 3 * 2 * HEIGHT)  # seven states of three images, each three by two tiles
    tile = data["nearest"]["rows"][0]["near"][0]
    assert (tile["width"], tile["height"]) == (60, round(60 * 2 * HEIGHT / (3 * WIDTH)))
    (folder / "samples" / "closing.npz").unlink()
    assert page_data(write_page(folder, image_channels=5))["grids_text"].endswith(note)
    assert not page_data(write_page(folder, image_channels=3))["grids_text"].endswith(note)


@pytest.fixture
def two_channels(tmp_path):
    """Settings of a run on images that are not square, from a .npz file."""
    np.savez(tmp_path / "two.npz", images=RNG.integers(0, 256, (40, HEIGHT, WIDTH, 2), np.uint8))
    settings = {
        "dataset": str(tmp_path / "two.npz"),
        "cache_dir": str(tmp_path / "cache"),
        "image_size": (HEIGHT, WIDTH),
    }
    return small(**settings, timesteps=3, steps=2, num_samples=2, tensorboard=False)


def check_run(folder):
    model = torch_ref.load_model(folder, log=lambda line: None)
    assert model.info.image_shape == (HEIGHT, WIDTH, 2)
    assert torch_ref.sample(model, 2).shape == (2, HEIGHT, WIDTH, 2)
    assert read_config(folder / "config.json").data.image_size == (HEIGHT, WIDTH)
    pictures = [Image.open(path) for path in sorted((folder / "samples").glob("*.png"))]
    assert {"L"} <= {picture.mode for picture in pictures} <= {"L", "RGBA"}  # figures are RGBA


def test_training_on_an_array(two_channels, tmp_path, capsys):
    torch_trainer.train(two_channels, tmp_path / "run")
    assert capsys.readouterr().out.count(report.channel_note(2)) == 1
    check_run(tmp_path / "run")


@pytest.mark.slow
def test_training_in_jax_and_its_page(two_channels, tmp_path):
    said = []
    loop.train(two_channels, tmp_path / "run", log=said.append)
    assert said.count(f"Pictures: {report.channel_note(2)}") == 1
    check_run(tmp_path / "run")
    data = page_data(tmp_path / "run" / "report.html")
    assert dict(next(part["values"] for part in data["settings"] if part["name"] == "data"))["image_size"] == "4 6"
    assert data["nearest"]["text"].endswith(report.channel_note(2))


def page_data(path) -> dict:
    return json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
