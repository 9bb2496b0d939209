"""scripts/sample.py with images, masks and two seeds: what it makes, and what it says to wrong input."""

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import unets, weights
from jax_ddpm.data import to_float
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.write_model import write_model
from tests.commands import refusal, succeed

NETWORK = ConvBlockConfig(widths=(32,), time_width=32)
PIXELS = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model that was never trained, images, and a mask whose left half is known."""
    place = tmp_path_factory.mktemp("editing")
    network = unets.build(NETWORK, 1)
    weights.initialise(network, 5)
    info = ModelInfo(network=NETWORK, image_shape=(8, 8, 1), diffusion=DiffusionConfig(timesteps=20, beta_end=0.4))
    write_model(place / "model.safetensors", weights.state_dict(network), info)
    (place / "folder").mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[..., 0]).save(place / "folder" / f"{number}.png")
    Image.fromarray(PIXELS[0, ..., 0]).save(place / "one.png")
    np.savez(place / "three.npz", images=PIXELS)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).convert("1").save(place / "mask.png")
    Image.fromarray(PIXELS[0, :6, :, 0]).save(place / "flat.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "colour.png")
    (place / "text.png").write_text("no image")
    (place / "text.npz").write_text("no arrays")
    np.savez(place / "floats.npz", images=np.zeros((2, 8, 8, 1)))
    np.savez(place / "other.npz", pictures=PIXELS)
    (place / "empty").mkdir()
    return place


@pytest.fixture
def sample(place, capsys, monkeypatch):
    """Run the command: what it said, and the arrays that it wrote."""
    monkeypatch.chdir(place)

    def run(flags):
        said = succeed(
            capsys, monkeypatch, "sample.py", "--model", "model.safetensors", "--out", "x.npz", *flags.split()
        )
        with np.load("x.npz") as arrays:
            return said, dict(arrays)

    return run


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_variations_of_one_image(sample, framework):
    said, arrays = sample(f"--image one.png --start-t 1 --num-images 4 --seed 3 --framework {framework}")
    assert "t = 1 and denoised in 2 steps" in said and "4 images" in said
    apart = np.abs(arrays["x0"] - to_float(PIXELS[0]))
    assert arrays["x0"].shape == (4, 8, 8, 1) and 0.001 < apart.max() < 1 and np.ptp(arrays["x0"], axis=0).max() > 1e-3


def test_a_folder_and_an_archive_hold_the_same_images(sample):
    flags = "--start-t 9 --sampler ddim --num-steps 5 --seeds 1,2,2"
    (_, a), (_, b) = sample(f"--image folder {flags}"), sample(f"--image three.npz {flags}")
    np.testing.assert_array_equal(a["x0"], b["x0"])
    assert len(a["x0"]) == 3


def test_inpainting_keeps_what_is_white(sample):
    flags = "--image three.npz --mask mask.png --jump 3 --resamplings 2"
    said, ours = sample(flags)
    assert "38 network calls" in said  # 20 steps, 18 of them twice
    np.testing.assert_array_equal(ours["images"][:, :, :4], PIXELS[:, :, :4])
    assert np.abs(ours["images"][:, :, 4:].astype(int) - PIXELS[:, :, 4:]).mean() > 20
    _, theirs = sample(f"{flags} --framework torch")
    np.testing.assert_allclose(ours["x0"], theirs["x0"], atol=1e-5)


def test_inversion_says_how_near_it_comes(sample):
    said, arrays = sample("--image one.png --invert --sampler ddim")
    error = np.sqrt(np.mean((arrays["x0"] - to_float(PIXELS[:1])) ** 2))
    assert f"error {error:.4f} in [-1, 1], {error * 127.5:.2f} of 255 levels" in said
    _, again = sample("--image one.png --invert --sampler ddim --framework torch")
    np.testing.assert_allclose(arrays["x_T"], again["x_T"], atol=1e-5)


def test_interpolation_goes_from_seed_to_seed(sample):
    _, between = sample("--interpolate 3,7 --num-images 5 --sampler ddim --num-steps 4")
    _, ends = sample("--seeds 3,7 --sampler ddim --num-steps 4")
    np.testing.assert_allclose(between["x0"][[0, -1]], ends["x0"], atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "tiles"),
    [
        ("--image one.png --start-t 9 --num-images 3", (2, 2)),
        ("--image folder --start-t 9", (2, 3)),
        ("--image one.png --mask mask.png --jump 3 --num-images 3", (2, 2)),
        ("--image folder --invert --sampler ddim", (3, 3)),
        ("--interpolate 3,7 --sampler ddim --num-images 5", (1, 5)),
    ],
)
def test_pictures(place, capsys, monkeypatch, flags, tiles):
    """Tiles of 48 pixels and gaps of 2, beside labels; the first is the given image, its unknown pixels gray."""
    monkeypatch.chdir(place)
    succeed(capsys, monkeypatch, "sample.py", "--model", "model.safetensors", "--out", "x.png", *flags.split())
    with Image.open("x.png") as picture:
        found = np.asarray(picture)
    side = found.shape[1] - 50 * tiles[1] - 2
    assert found.shape[0] == 50 * tiles[0] + 2 and (side > 0) == ("folder" in flags)
    if "one.png" in flags or "folder" in flags:
        first = found[2:50:6, side + 2 : side + 50 : 6]
        known = slice(0, 4 if "mask" in flags else 8)
        np.testing.assert_array_equal(first[:, known], PIXELS[0, :, known, 0])
        assert (first[:, known.stop :] == 128).all()


BAD = {
    "image alone": ("--image one.png", "needs one of --start-t, --mask and --invert"),
    "start alone": ("--start-t 5", "--start-t needs an image"),
    "mask alone": ("--mask mask.png", "--mask needs an image"),
    "two at once": ("--image one.png --start-t 5 --mask mask.png", "--start-t and --mask do not go together"),
    "image between seeds": ("--image one.png --interpolate 3,7", "which say what to do"),
    "three ends": ("--interpolate 3,7,9 --sampler ddim", "expected two seeds"),
    "no seeds": ("--interpolate a,b --sampler ddim", "expected integers"),
    "noise between": ("--interpolate 3,7", "--sampler ddim"),
    "seeds between seeds": ("--interpolate 3,7 --seeds 1,2 --sampler ddim", "--seeds 1,2 has no effect"),
    "seed between seeds": ("--interpolate 3,7 --seed 5 --sampler ddim", "--seed 5 has no effect"),
    "number of inversions": ("--image one.png --invert --num-images 3", "--num-images 3 has no effect"),
    "clipped inversion": ("--image one.png --invert --clip x0", "--clip x0 has no effect"),
    "inversion of noise": ("--image one.png --invert", "Use ddim (--sampler ddim)"),
    "inpainting by ddim": ("--image one.png --mask mask.png --sampler ddim", "Use ddpm (--sampler ddpm)"),
    "jump of nothing": ("--image one.png --start-t 5 --jump 3", "belong to inpainting"),
    "long jump": ("--image one.png --mask mask.png --num-steps 5", "jump = 10: expected 1 to num_steps - 1 = 4"),
    "beyond T": ("--image one.png --start-t 20", "T - 1 = 19"),
    "fewer seeds": ("--image three.npz --start-t 5 --seeds 1,2", "expected 3, one for each image"),
    "fewer images": ("--image three.npz --start-t 5 --num-images 2", "--image gives 3"),
    "none": ("--image one.png --start-t 5 --num-images 0", "num_images = 0"),
    "another size": ("--image flat.png --start-t 5", "8x6 pixels, but the model's images have 8x8"),
    "mask of another size": ("--image one.png --mask flat.png", "flat.png has 8x6 pixels"),
    "missing": ("--image gone.png --start-t 5", "gone.png cannot be read (no such file)"),
    "not an image": ("--image text.png --start-t 5", "text.png cannot be read (not an image)"),
    "unreadable mask": ("--image one.png --mask text.png", "text.png cannot be read"),
    "not an archive": ("--image text.npz --start-t 5", "Expected a .npz with an array `images`"),
    "other arrays": ("--image other.npz --start-t 5", "other.npz cannot be read"),
    "floats": ("--image floats.npz --start-t 5", "expected uint8 images, (N, 8, 8, 1)"),
    "empty folder": ("--image empty --start-t 5", "no images in it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(place, capsys, monkeypatch, kind):
    monkeypatch.chdir(place)
    flags, said = BAD[kind]
    assert said in refusal(capsys, monkeypatch, "sample.py", "--model", "model.safetensors", *flags.split())


def test_the_told_command_resizes(place, capsys, monkeypatch):
    import shlex
    import subprocess
    import sys

    monkeypatch.chdir(place)
    flags = ("--model", "model.safetensors", "--start-t", "5", "--image")
    _, told = refusal(capsys, monkeypatch, "sample.py", *flags, "flat.png").strip().splitlines()
    arguments = shlex.split(told.partition("python ")[2])
    subprocess.run([sys.executable, *arguments], check=True)
    succeed(capsys, monkeypatch, "sample.py", *flags, "resized.png", "--out", "x.png")


def test_colour_becomes_gray(sample):
    _, arrays = sample("--image colour.png --start-t 0 --sampler ddim --num-images 1")
    assert arrays["x0"].shape == (1, 8, 8, 1)
