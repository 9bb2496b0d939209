"""The commands as a user meets them: what they make, and what they say to wrong input."""

import json
import pickle
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jax_ddpm.commands.train import parse_run
from jax_ddpm.spec.presets import PRESETS, preset
from tests.commands import command, refusal, succeed


@pytest.fixture(scope="module")
def run(command_run):
    return command_run


def test_training_tells_what_it_does_and_where_it_saved(run):
    folder, result = run
    said = result.stdout + result.stderr
    assert "parameters" in said and "8x8x1" in said and "1,617 training images, 180 held out" in said and "cpu" in said
    assert "loss" in result.stderr and "images/s" in result.stderr and "left" in result.stderr
    for name in ("grid.png", "data.png", "forward.png", "reverse.png", "loss.png"):
        assert f"{folder}/samples/{name}" in said
        assert (folder / "samples" / name).is_file()
    assert f"{folder}/model.safetensors" in said


def test_resume_takes_its_settings_from_the_run(run, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(run[0], tmp_path / "run")
    succeed(capsys, monkeypatch, "train_jax.py", "--resume", "--out", folder, "--steps", 8)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]


def test_sampling(run, tmp_path, capsys, monkeypatch):
    flags = ("--model", run[0], "--num-images", 5, "--seed", 3, "--out")
    result = command("sample.py", *flags, tmp_path / "grid.png")
    assert result.returncode == 0 and str(tmp_path / "grid.png") in result.stdout, result.stderr
    for out in ("arrays.npz", "folder"):
        assert str(tmp_path / out) in succeed(capsys, monkeypatch, "sample.py", *flags, tmp_path / out)
    with np.load(tmp_path / "arrays.npz") as arrays:
        images, x_0 = arrays["images"], arrays["x0"]
    assert images.shape == x_0.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8 and x_0.dtype == np.float32
    np.testing.assert_array_equal(images, np.rint((np.clip(x_0, -1, 1) + 1) * 127.5).astype(np.uint8))
    for number in range(5):
        with Image.open(tmp_path / "folder" / f"{number:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), images[number, ..., 0])
    with Image.open(tmp_path / "grid.png") as grid:
        np.testing.assert_array_equal(np.asarray(grid)[2:50:6, 52:100:6], images[1, ..., 0])


def test_a_gif_from_noise_to_images(run, tmp_path, capsys, monkeypatch):
    flags = ("sample.py", "--model", run[0], "--sampler", "ddim", "--num-steps", 3, "--num-images", 5, "--out")
    succeed(capsys, monkeypatch, *flags, tmp_path / "grid.png")
    for framework in ("jax", "torch"):
        out = tmp_path / f"{framework}.gif"
        said = succeed(capsys, monkeypatch, *flags, out, "--framework", framework, "--batch-size", 3)
        assert f"Saved 4 states from noise to 5 images: {out}" in said
        with Image.open(out) as gif, Image.open(tmp_path / "grid.png") as grid:
            assert gif.n_frames == 4
            gif.seek(3)
            last = np.asarray(gif.convert("L"), int)[2:34:4, 2:34:4]  # the first image; tiles of 32 pixels
            np.testing.assert_allclose(last, np.asarray(grid)[2:50:6, 2:50:6], atol=2)
    said = refusal(capsys, monkeypatch, *flags, tmp_path / "x.gif", "--interpolate", "1,2")
    assert "a .gif shows drawing from noise" in said


def test_the_page_is_made_anew_from_the_folder(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a run's copy"
    shutil.copytree(run[0], folder)
    (folder / "report.html").unlink()
    with np.load(folder / "samples" / "closing.npz") as file:
        before = dict(file)
    assert "final pictures" not in succeed(capsys, monkeypatch, "report.py", folder)  # they are there
    page = (folder / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    program, name, *arguments = shlex.split(data["pictures"][0]["command"])
    assert (program, name, arguments[-1]) == ("jax-ddpm", "sample", "grid.png")
    succeed(capsys, monkeypatch, "sample.py", *arguments[:-1], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == (folder / "samples" / "grid.png").read_bytes()
    (folder / "samples" / "closing.npz").unlink()
    said = succeed(capsys, monkeypatch, "report.py", folder, "--out", tmp_path / "page.html")
    assert "final pictures" in said and f"Wrote {tmp_path}/page.html" in said
    with np.load(folder / "samples" / "closing.npz") as file:
        assert set(file) == set(before)
        for name, values in before.items():
            np.testing.assert_array_equal(file[name], values, err_msg=name)


def test_the_page_says_what_is_missing(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"dataset": "digits"', '"dataset": "folder:gone"'))
    (folder / "samples" / "closing.npz").unlink()
    succeed(capsys, monkeypatch, "report.py", folder)
    page = (folder / "report.html").read_text()
    assert "Without the data set there are no nearest training images" in page and '"nearest":null' in page
    (folder / "model.safetensors").unlink()
    succeed(capsys, monkeypatch, "report.py", folder)
    assert "This run has saved no weights yet." in (folder / "report.html").read_text()
    assert "no run in" in refusal(capsys, monkeypatch, "report.py", tmp_path / "elsewhere")
    assert "cannot be written" in refusal(capsys, monkeypatch, "report.py", folder, "--out", "/proc/x/page.html")


def test_sampling_flags_change_the_pictures(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    x = {}
    for flags in ((), ("--variance", "posterior"), ("--clip", "none"), ("--seed", 1), ("--precision", "float64")):
        arguments = ("--model", folder, "--num-images", 4, "--out", tmp_path / "x.npz", *flags)
        succeed(capsys, monkeypatch, "sample.py", *arguments)
        with np.load(tmp_path / "x.npz") as arrays:
            x[flags] = arrays["x0"]
    plain = x.pop(())
    assert all(np.abs(plain - other).max() > 1e-2 for other in x.values())


def test_samplers(run, tmp_path, capsys, monkeypatch):
    """Each sampler draws another picture, the same in both frameworks."""
    x = {}
    for flags in ("--num-steps 7", "--sampler ddim --eta 0.5 --num-steps 7", "--sampler heun --num-steps 3"):
        for framework in ("jax", "torch"):
            arguments = ("--framework", framework, "--num-images", 3, "--out", tmp_path / "x.npz", *flags.split())
            succeed(capsys, monkeypatch, "sample.py", "--model", run[0], *arguments)
            with np.load(tmp_path / "x.npz") as arrays:
                x[flags, framework] = arrays["x0"]
        np.testing.assert_allclose(x[flags, "jax"], x[flags, "torch"], atol=1e-5)
    first, second, third = (value for (_, framework), value in x.items() if framework == "jax")
    assert min(np.abs(a - b).max() for a, b in ((first, second), (second, third), (third, first))) > 1e-2


def test_a_bare_file_takes_flags(run, tmp_path, capsys, monkeypatch):
    from jax_ddpm.spec.model_files import read_file

    values, _ = read_file(run[0])
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in values.items()}
    torch.save({"model_state_dict": tensors}, tmp_path / "model.pt")
    told = ("--image-size", 8, "--timesteps", 20, "--beta-end", 0.4)
    for model, flags in ((run[0], ()), (tmp_path / "model.pt", told)):
        out = tmp_path / f"{len(flags)}.npz"
        said = succeed(capsys, monkeypatch, "sample.py", "--model", model, *flags, "--num-images", 2, "--out", out)
    assert "T = 20" in said and "8x8x1" in said
    with np.load(tmp_path / "0.npz") as a, np.load(tmp_path / "6.npz") as b:
        np.testing.assert_array_equal(a["x0"], b["x0"])


def test_help_is_quick_and_complete():
    said = command("train_jax.py", "--help").stdout
    flags = (
        "dataset preset data-dir manual-dir image-size epochs steps batch-size learning-rate timesteps schedule "
        "objective precision seed out resume sample-every checkpoint-every log-every no-ema init-from"
    )
    assert [flag for flag in flags.split(" ") if f"--{flag}" not in said] == []


def test_presets():
    assert parse_run([], "train").config == preset("digits")
    config = parse_run(["--dataset", "fashion_mnist"], "train").config
    assert config == preset("conv_block")
    assert config.data.image_size == 32 and config.network.widths == (64, 128, 256, 512, 1024)
    assert (config.diffusion.timesteps, config.diffusion.beta_start, config.diffusion.beta_end) == (1000, 1e-4, 0.02)
    training = config.training
    assert (training.batch_size, training.optimizer, training.learning_rate) == (64, "adam", 1e-4)
    assert (training.lr_schedule, training.min_learning_rate, training.ema) == ("cosine", 1e-6, True)
    tiny = parse_run(["--preset=tiny", "--dataset=mnist", "--no-ema", "--epochs", "2"], "train").config
    assert tiny.network.widths == (32, 64, 128) and not tiny.training.ema and tiny.training.epochs == 2


def test_presets_are_listed(capsys):
    with pytest.raises(SystemExit) as end:
        parse_run(["--list-presets"], "train")
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["preset", *PRESETS]
    row = next(line for line in lines if line.startswith("conv_block"))
    assert row.split()[1:5] == ["conv_block", "fashion_mnist", "32x32x1", "33,260,417"]


BAD_TRAINING = {
    "unknown data set": (["--dataset", "fashon_mnist"], "fashion_mnist"),
    "missing folder": (["--dataset", "folder:nowhere"], "nowhere"),
    "empty folder": (["--dataset", "folder:empty"], "no images"),
    "broken images": (["--dataset", "folder:broken"], "a.png"),
    "image size": (["--image-size", "9"], "8 or 12"),
    "image size 0": (["--image-size", "0"], "image_size"),
    "timesteps": (["--timesteps", "0"], "timesteps"),
    "batch size": (["--batch-size", "0"], "batch_size"),
    "batch of more than all": (["--batch-size", "5000"], "1617"),
    "beta above 1": (["--beta-end", "1.5"], "beta"),
    "beta 0": (["--beta-start", "0"], "beta"),
    "GroupNorm": (["--widths", "48", "96"], "48"),
    "doubling": (["--widths", "32", "96"], "twice"),
    "strided's sizes": (["--preset", "strided", "--dataset", "digits", "--image-size", "12"], "8 or 16"),
    "attention's channels": (["--preset", "attention", "--channels", "48"], "channels = 48"),
    "attention's levels": (["--preset", "attention", "--attention", "False", "True"], "expected 4 values"),
    "attention's heads": (["--preset", "attention", "--heads", "7"], "heads = 7"),
    "dropout": (["--preset", "attention", "--dropout", "1.5"], "dropout = 1.5"),
    "layer_norm's size": (["--preset", "layer_norm", "--image-size", "32"], "28x28"),
    "layer_norm's table": (["--preset", "layer_norm", "--timesteps", "2000"], "table_rows"),
    "ddpm's groups": (["--preset", "ddpm", "--widths", "48", "96", "96", "96"], "multiples of norm_num_groups, 32"),
    "ddpm's heads": (["--preset", "ddpm", "--attention-head-dim", "48"], "attention_head_dim = 48"),
    "ddpm's levels": (["--preset", "ddpm", "--up-attention", "True"], "up_attention = (True,): expected 4 values"),
    "ddpm's sizes": (["--preset", "ddpm", "--image-size", "20"], "16 or 24"),
    "ddpm's variance": (["--preset", "ddpm", "--learned-variance"], "--variance learned_range"),
    "a flag of another network": (["--preset", "strided", "--widths", "32"], "widths"),
    "accumulation": (["--accumulate", "3"], "accumulate"),
    "decay without AdamW": (["--weight-decay", "0.1"], "adamw"),
    "seed": (["--seed", "-1"], "seed"),
    "seed too large": (["--seed", str(2**32)], "seed"),
    "preset": (["--preset", "huge"], "tiny"),
    "schedule": (["--schedule", "square"], "cosine"),
    "more sampling steps than T": (["--timesteps", "10", "--sampler", "ddim", "--num-steps", "11"], "T = 10"),
    "a variance that cannot be learned": (["--variance", "learned_range"], "with learned_variance"),
    "no run": (["--resume"], "no run to resume"),
    "a file for a folder": (["--out", "file"], "is a file"),
    "unwritable": (["--out", "/proc/run"], "cannot be written"),
    "weights that are missing": (["--init-from", "missing.pt"], "missing.pt"),
    "weights that are none": (["--init-from", "file"], "not a model file"),
    "fraction": (["--validation-fraction", "1"], "validation_fraction"),
    "no network": (["--dataset", "kmnist", "--manual-dir", "empty", "--data-dir", "none here"], "none here"),
}


@pytest.mark.parametrize("kind", BAD_TRAINING)
def test_bad_training_input(kind, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_text("no picture")
    Path("file").write_text("text")
    flags, expected = BAD_TRAINING[kind]
    assert expected in refusal(capsys, monkeypatch, "train_jax.py", *flags)
    assert not Path("runs").exists(), "a refused run left a folder"


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


BAD_MODELS = {
    "text": ("file", "not a model file"),
    "missing": ("missing.safetensors", "does not exist"),
    "a folder without a model": ("empty", "model.safetensors"),
    "text as .pt": ("text.pt", "not a model file"),
    "text as .safetensors": ("text.safetensors", "safetensors"),
    "a pickle that runs code": ("harm.pt", "holds no arrays of numbers"),
    "a tensor": ("tensor.pt", "It holds: the file itself (1 arrays)"),
    "another network": ("other.pt", "holds no complete network that is known here"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models(kind, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("file", "text.pt", "text.safetensors"):
        Path(name).write_text("text " * 9)
    torch.save({"a": Harm()}, "harm.pt")
    torch.save(torch.ones(3), "tensor.pt")
    torch.save({"some.weight": torch.ones(3)}, "other.pt")
    path, expected = BAD_MODELS[kind]
    assert expected in refusal(capsys, monkeypatch, "sample.py", "--model", path)
    assert not Path("harm").exists()
    with open("raw.pt", "wb") as file:
        pickle.dump(Harm(), file)
    refusal(capsys, monkeypatch, "sample.py", "--model", "raw.pt")
    assert not Path("harm").exists()


def test_seeds(run, tmp_path, capsys, monkeypatch):
    """Picture 0 of each seed, in both frameworks."""
    x = {}
    for name, flags in (
        ("one", "--seed 11 --num-images 2"),
        ("jax", "--seeds 3,11,3 --batch-size 2"),
        ("torch", "--seeds 3,11,3 --batch-size 2 --framework torch"),
    ):
        succeed(capsys, monkeypatch, "sample.py", "--model", run[0], "--out", tmp_path / "x.npz", *flags.split())
        with np.load(tmp_path / "x.npz") as arrays:
            x[name] = arrays["x0"]
    assert x["jax"].shape == (3, 8, 8, 1)
    np.testing.assert_allclose(x["jax"], x["torch"], atol=1e-5)
    np.testing.assert_allclose(x["jax"][1], x["one"][0], atol=1e-5)
    np.testing.assert_allclose(x["jax"][0], x["jax"][2], atol=1e-5)
    assert np.abs(x["jax"][0] - x["jax"][1]).max() > 1e-2


BAD_SAMPLING = {
    "seeds": (["--seeds", "3,b"], "seeds = 3,b: expected integers"),
    "one of the seeds": (["--seeds", "3,-1"], "seed = -1"),
    "format": (["--out", "x.jpg"], ".jpg"),
    "video": (["--out", "x.mp4"], "x.mp4: this command makes no videos. It makes a GIF (--out x.gif)."),
    "unwritable": (["--out", "/proc/x/y.png"], "cannot be written"),
    "no images": (["--num-images", "0"], "num_images"),
    "no batch": (["--batch-size", "0"], "batch_size"),
    "seed": (["--seed", "-3"], "seed"),
    "size": (["--image-size", "0"], "image_size = 0"),
    "contradiction": (["--timesteps", "30"], "trained with 20"),
    "more steps than T": (["--num-steps", "21"], "expected 1 to T = 20"),
    "no steps": (["--num-steps", "0"], "num_steps = 0"),
    "eta": (["--sampler", "ddim", "--eta", "1.5"], "eta = 1.5: expected 0 to 1"),
    "noise for a deterministic sampler": (["--sampler", "dpmpp", "--eta", "0.5"], "only ddim has eta"),
    "variance of a deterministic sampler": (["--sampler", "heun", "--variance", "beta"], "heun has none"),
    "variance that was not learned": (["--variance", "learned_range"], "predicts no variance"),
    "unknown sampler": (["--sampler", "plms"], "dpmpp"),
    "percentile": (["--clip", "dynamic", "--clip-percentile", "99.5"], "expected more than 0, at most 1"),
}


@pytest.mark.parametrize("kind", BAD_SAMPLING)
def test_bad_sampling_input(kind, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags, expected = BAD_SAMPLING[kind]
    assert expected in refusal(capsys, monkeypatch, "sample.py", "--model", run[0], *flags)


def test_another_run_is_never_overwritten(run, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
    assert "--resume" in refusal(capsys, monkeypatch, "train_jax.py", "--out", run[0])
    said = refusal(capsys, monkeypatch, "train_jax.py", "--out", run[0], "--resume", "--seed", 9, "--flip")
    assert "seed was 0, now 9" in said and "flip" in said
    assert before == {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}


def test_train_understands_what_users_write(capsys, monkeypatch, command_run, tmp_path):
    say = partial(refusal, capsys, monkeypatch, "train_jax.py")
    assert say("--lr", "1e-3") == "There is no flag --lr: did you mean --learning-rate?\n"
    assert f"no run to resume in {tmp_path / 'x'}: expected its config.json" in say("--resume", tmp_path / "x")
    file = command_run[0] / "model.safetensors"
    expected = f"{file} holds the network conv_block, but this run has layer_norm.\nGive another file, or"
    flags = ["--preset", "layer_norm", "--dataset", "digits", "--image-size", "28", "--out", tmp_path / "y"]
    assert expected in say(*flags, "--init-from", file)
