"""Images that are not square: settings, flags and files, checks of the networks, sampling and editing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jax_ddpm
from jax_ddpm import unets, weights
from jax_ddpm.commands.convert import ConvertFlags
from jax_ddpm.commands.flags import parse
from jax_ddpm.commands.train import parse_run
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import height_and_width
from jax_ddpm.spec.json_text import from_json, to_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    StridedConfig,
)
from jax_ddpm.spec.run_config import DataConfig, RunConfig
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.run_folder import check_unchanged
from tests.commands import refusal, succeed
from tests.small import small

NETWORK = ConvBlockConfig(widths=(32, 64), time_width=32)
SHAPE = (6, 10, 1)


@pytest.mark.parametrize(
    ("words", "size"), [(["32"], 32), (["32", "32"], 32), (["32", "48"], (32, 48)), (["32", "48", "--flip"], (32, 48))]
)
def test_flags(words, size):
    assert parse_run(["--image-size", *words], "").config.data.image_size == size


def test_a_size_before_names_of_files():
    flags = parse(ConvertFlags, ["--image-size", "32", "48", "a.pt", "b.pt"], "", ())
    assert flags.image_size == (32, 48) and (str(flags.input), str(flags.output)) == ("a.pt", "b.pt")


@pytest.mark.parametrize("words", [["32", "48", "64"], ["x"], ["-3"], ["3.5"], []])
def test_other_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        parse_run(["--image-size", *words], "")
    assert end.value.code == 2 and "expected one or two numbers, such as 32 or 32 48" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "stored"), [(32, 32), ((32, 32), 32), ([32, 32], 32), ((32, 48), [32, 48]), ([32, 48], [32, 48])]
)
def test_settings_go_to_json_and_back(size, stored):
    config = RunConfig(data=DataConfig(image_size=size))
    assert json.loads(to_json(config))["data"]["image_size"] == stored
    assert from_json(RunConfig, to_json(config), "x") == config
    assert from_json(RunConfig, json.dumps({"data": {"image_size": size}}), "x") == config
    assert height_and_width(config.data.image_size) == height_and_width(size)


@pytest.mark.parametrize("size", [0, -1, (32, 0), (32,), (32, 48, 3), 2.5, (32, 4.5), "32", None, True])
def test_what_is_no_size(size):
    with pytest.raises(UserError, match=r"image_size = .*: expected an integer of at least 1, or two"):
        RunConfig(data=DataConfig(image_size=size)).check()


def test_a_resumed_run_keeps_its_size():
    run = small(image_size=32)
    check_unchanged(run, small(image_size=(32, 32)), has_record=True)
    with pytest.raises(UserError, match=r"image_size was 32, now \(32, 48\)"):
        check_unchanged(run, small(image_size=(32, 48)), has_record=True)


@pytest.mark.parametrize(
    ("network", "size", "told"),
    [
        (ConvBlockConfig(), (32, 48), None),
        (ConvBlockConfig(), (32, 40), "height and width must be multiples of 16.\nNearest: width 32 or 48 (image"),
        (ConvBlockConfig(), (8, 40), "Nearest: height 16, width 32 or 48 (image_size); or fewer levels (widths)."),
        (ConvBlockConfig(), (40, 40), "its size must be a multiple of 16.\nNearest: 32 or 48 (image_size); or fewer"),
        (StridedConfig(), (8, 24), None),
        (StridedConfig(), (9, 24), "halves the image 3 times, so height and width must be multiples of 8"),
        (AttentionConfig(), (24, 8), None),
        (AttentionConfig(), (24, 12), "Nearest: width 8 or 16 (image_size); or fewer levels (multipliers)."),
        (DDPMConfig(), (32, 8), None),
        (DDPMConfig(), (36, 8), "Nearest: height 32 or 40"),
        (LayerNormConfig(), (28, 28), None),
        (LayerNormConfig(), (28, 32), "image_size = (28, 32): layer_norm takes only 28x28 images"),
    ],
)
def test_networks_check_both_axes(network, size, told):
    if told is None:
        network.check(size)
        return
    with pytest.raises(UserError) as error:
        network.check(size)
    assert told in str(error.value) and str(error.value).startswith("image_size = ")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of 6x10 images that was never trained, three such images, and a mask: left half known."""
    place = tmp_path_factory.mktemp("flat")
    network = unets.build(NETWORK, 1)
    weights.initialise(network, 5)
    diffusion = DiffusionConfig(timesteps=8, beta_end=0.4)
    info = ModelInfo(network=NETWORK, image_shape=SHAPE, diffusion=diffusion)
    write_model(place / "model.safetensors", weights.state_dict(network), info)
    write_model(place / "square.safetensors", weights.state_dict(network), replace(info, image_shape=(8, 8, 1)))
    images = np.random.default_rng(2).integers(0, 256, (3, *SHAPE), np.uint8)
    np.savez(place / "three.npz", images=images)
    Image.fromarray(images[0, ..., 0]).save(place / "one.png")
    mask = np.zeros(SHAPE[:2], np.uint8)
    mask[:, :5] = 255
    Image.fromarray(mask).save(place / "mask.png")
    return place


EDITS = {
    "inpainting": "--image three.npz --mask mask.png --resamplings 1 --jump 2",
    "inversion": "--image three.npz --invert --sampler ddim --num-steps 3",
    "interpolation": "--interpolate 3,7 --num-images 3 --sampler ddim --num-steps 3",
}


@pytest.mark.parametrize("kind", EDITS)
def test_sampling_and_editing(kind, place, capsys, monkeypatch):
    """Both frameworks draw the same; the grid has the images in their own shape."""
    monkeypatch.chdir(place)
    flags, drawn = ["--model", "model.safetensors", *EDITS[kind].split()], {}
    for framework in ("jax", "torch"):
        out = f"{framework}.npz"
        assert "6x10x1" in succeed(capsys, monkeypatch, "sample.py", *flags, "--framework", framework, "--out", out)
        with np.load(out) as arrays:
            drawn[framework] = arrays["x0"]
    assert drawn["jax"].shape == (3, *SHAPE)
    np.testing.assert_allclose(drawn["jax"], drawn["torch"], atol=1e-5)
    if kind == "inpainting":
        with np.load("three.npz") as given, np.load("jax.npz") as result:
            np.testing.assert_array_equal(result["images"][:, :, :5], given["images"][:, :, :5])


def test_pictures_have_the_shape_of_the_images(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for model, size in (("model", ()), ("square", ("--image-size", 6, 10))):
        flags = ("--model", f"{model}.safetensors", *size, "--num-images", 4, "--sampler", "ddim", "--num-steps", 2)
        for out in ("grid.png", f"{model} folder"):
            succeed(capsys, monkeypatch, "sample.py", *flags, "--out", out)
    assert Path("square folder/00003.png").read_bytes() == Path("model folder/00003.png").read_bytes()
    with Image.open("grid.png") as grid, Image.open("model folder/00003.png") as one:
        assert one.size == (10, 6)
        assert grid.size == (2 + 2 * (5 * 10 + 2), 2 + 2 * (5 * 6 + 2))  # five times as large, with gaps of two pixels
        tile = np.asarray(grid)[2 + 32 : 2 + 32 + 30 : 5, 2 + 52 : 2 + 52 + 50 : 5]
        np.testing.assert_array_equal(tile, np.asarray(one))


def test_a_size_that_the_network_cannot_take(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    flags = ("--model", "model.safetensors", "--image-size", "6", "9")
    for framework in ("jax", "torch"):
        assert "width 8 or 10" in refusal(capsys, monkeypatch, "sample.py", *flags, "--framework", framework)


def test_load_model_takes_height_and_width(place):
    for size, shape in (((10, 6), (10, 6, 1)), (4, (4, 4, 1)), (None, SHAPE)):
        assert jax_ddpm.load_model(place / "model.safetensors", image_size=size).info.image_shape == shape


def test_a_converted_file_keeps_its_size(place, tmp_path, capsys, monkeypatch):
    files = (place / "square.safetensors", tmp_path / "a.pt")
    assert "6x10x1" in succeed(capsys, monkeypatch, "convert.py", "--image-size", 6, 10, *files)
    assert jax_ddpm.load_model(tmp_path / "a.pt").info.image_shape == SHAPE
