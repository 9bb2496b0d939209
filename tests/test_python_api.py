"""The Python interface takes what a user would guess. A mistake ends in a sentence with the names of Python."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import jax_ddpm
import torch_ref
from jax_ddpm import report
from jax_ddpm.spec.errors import UserError, messages_of_commands
from jax_ddpm.spec.inputs import check_count
from jax_ddpm.spec.network_config import StridedConfig
from tests.commands import FLAGS


def test_a_path_a_samplers_name_and_single_settings(command_run):
    folder, _ = command_run
    model = jax_ddpm.load_model(folder, log=lambda line: None)
    sampler, config = jax_ddpm.SamplerConfig("ddim", 5), model.info.diffusion
    wanted = jax_ddpm.sample(model, 2, sampler=sampler, config=config)
    np.testing.assert_array_equal(jax_ddpm.sample(folder, 2, sampler="ddim", num_steps=5), wanted)
    np.testing.assert_array_equal(jax_ddpm.sample(model, 2, sampler=sampler, num_steps=np.int64(5)), wanted)
    theirs = torch_ref.sample(str(folder), 2, sampler="ddim", num_steps=5)
    np.testing.assert_allclose(theirs, wanted, atol=1e-3)


def test_a_model_is_saved(command_run, tmp_path):
    folder, _ = command_run
    model = jax_ddpm.load_model(folder, log=lambda line: None)
    saved = jax_ddpm.load_model(model.save(tmp_path / "x.safetensors"), log=lambda line: None)
    settings = {"sampler": "ddim", "num_steps": 3}
    np.testing.assert_array_equal(jax_ddpm.sample(saved, 2, **settings), jax_ddpm.sample(model, 2, **settings))
    state = {f"unet.{name}": value for name, value in torch_ref.load_model(folder).state_dict().items()}
    torch.save({"net": state}, tmp_path / "theirs.pt")
    theirs = jax_ddpm.load_model(tmp_path / "theirs.pt", 8, log=lambda line: None)
    back = torch.load(theirs.save(tmp_path / "back.pt", original=True), weights_only=True)
    assert all(torch.equal(back["net"][name], value) for name, value in state.items())
    for path, original, message in (
        ("x.pt", True, "original = True: expected a model that was loaded from somebody's checkpoint"),
        ("x.safetensors", True, "the original names are for a .pt"),
        (folder / "model.safetensors", False, "overwrite=True"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            model.save(tmp_path / path, original=original)


def test_editing_takes_them_too(command_run):
    folder, _ = command_run
    images = np.zeros((1, 8, 8, 1), np.float32)
    settings = {"sampler": "ddim", "num_steps": 3}
    for package in (jax_ddpm, torch_ref):
        assert package.interpolate(folder, 1, 2, 2, **settings).shape == (2, 8, 8, 1)
        assert package.invert(folder, images, **settings).shape == images.shape
        assert package.reconstruct(folder, images, **settings).shape == images.shape
        assert package.img2img(folder, images, 10, **settings).shape == images.shape
        filled = package.inpaint(folder, images, np.ones((8, 8)), num_steps=4, jump=2, resamplings=1)
        np.testing.assert_array_equal(filled, images)


MISTAKES = {
    "sampler": (lambda m: jax_ddpm.sample(m, sampler="dim"), "sampler = dim: expected one of ddpm, ddim, "),
    "setting": (lambda m: jax_ddpm.sample(m, steps=3), "There is no setting steps: did you mean num_steps?"),
    "type": (lambda m: jax_ddpm.sample(m, num_steps="3"), "num_steps = '3': expected a valid integer."),
    "range": (lambda m: jax_ddpm.sample(m, sampler="ddim", eta=2), "eta = 2: expected 0 to 1."),
    "training's setting": (lambda m: jax_ddpm.sample(m, schedule="x"), "There is no setting schedule: expected one of"),
    "no model": (lambda m: jax_ddpm.sample({}), "model = dict: expected what load_model returns, the path of a model"),
    "no path": (lambda m: jax_ddpm.sample("/no/such"), "/no/such does not exist"),
    "network alone": (lambda m: jax_ddpm.sample(m.network), "config = None: expected a DiffusionConfig.\nA network"),
    "ema": (
        lambda m: jax_ddpm.load_model("x", ema=False),
        "There is no setting ema: did you mean weights='ema' or 'raw'",
    ),
    "preset": (lambda m: jax_ddpm.preset("tiny", stepz=10), "There is no setting stepz: did you mean steps?"),
    "initials": (lambda m: jax_ddpm.preset("tiny").with_(lr=1), "There is no setting lr: did you mean learning_rate?"),
    "epochs": (lambda m: jax_ddpm.preset("tiny", epochs=None), "epochs = None: expected a valid integer."),
    "a part": (lambda m: jax_ddpm.preset("tiny", training=3), "training = 3: expected a TrainingConfig."),
    "by hand": (lambda m: jax_ddpm.TrainingConfig(epochs=None).check(), "epochs = None: expected a valid integer."),
    "no run": (
        lambda m: jax_ddpm.load_run("runs/none"),
        "runs/none holds no run: expected a folder with a config.json",
    ),
    "count": (lambda m: check_count("num_images", 2.5), "num_images = 2.5: expected an integer."),
    "count as text": (lambda m: check_count("num_images", "2"), "num_images = '2': expected an integer."),
    "a number for a model": (lambda m: jax_ddpm.load_model(3), "path = 3: expected the path of a model."),
    "a number for a run": (lambda m: jax_ddpm.load_run(3), "folder = 3: expected the path of a run."),
    "a name for settings": (lambda m: jax_ddpm.train("tiny"), "config = 'tiny': expected a RunConfig, as jax_ddpm.pre"),
    "a number for a folder": (lambda m: jax_ddpm.train(jax_ddpm.preset(), 3), "out = 3: expected the path of a folder"),
    "optimiser": (
        lambda m: jax_ddpm.preset("tiny", weight_decay=0.1).check(),
        "weight_decay = 0.1: only adamw has weight_decay (optimizer='adamw').",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name, command_run):
    make, message = MISTAKES[name]
    model = jax_ddpm.load_model(command_run[0], log=lambda line: None)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        make(model)
    assert "--" not in str(caught.value)


def test_flat_settings():
    recipe = jax_ddpm.preset("tiny", steps=10, batch_size=32, widths=[32, 64], dataset="mnist", sampler="ddim")
    assert (recipe.training.steps, recipe.training.batch_size, recipe.network.widths) == (10, 32, (32, 64))
    assert (recipe.data.dataset, recipe.data.image_size, recipe.sampling.sampler) == ("mnist", 16, "ddim")
    assert jax_ddpm.preset("tiny", "digits", image_size=16).data.image_size == 16
    other = recipe.with_(network=StridedConfig(), epochs=3)
    assert (other.network, other.training.epochs, other.data) == (StridedConfig(), 3, recipe.data)


def test_settings_show_what_makes_them():
    recipe = jax_ddpm.preset("tiny", steps=10, widths=(32, 64), dataset="mnist", cache_dir="/x")
    assert repr(recipe) == "preset('tiny', dataset='mnist', image_size=16, cache_dir='/x', widths=(32, 64), steps=10)"
    assert eval(repr(recipe), {"preset": jax_ddpm.preset}) == recipe
    assert repr(jax_ddpm.preset("ddpm")) == "preset('ddpm')"
    other = recipe.with_(network=StridedConfig())
    assert eval(repr(other), {"preset": jax_ddpm.preset, "StridedConfig": StridedConfig}) == other
    assert repr(replace(recipe, preset="own")).startswith("RunConfig(preset='own', data=DataConfig(dataset='mnist'")


@pytest.mark.parametrize(
    ("message", "command", "python"),
    [
        ("Omit --steps.", "Omit --steps.", "Omit steps."),
        ("To go on, add --resume.", "To go on, add --resume.", "To go on, add resume=True."),
        ("only with --clip-norm 1 (in Python: clip_norm=1).", "only with --clip-norm 1.", "only with clip_norm=1."),
        ("x: or v (--objective v).", "x: or v (--objective v).", "x: or v (objective='v')."),
        ("x: more (--max-skipped 4).", "x: more (--max-skipped 4).", "x: more (max_skipped=4)."),
        ("Again:\njax-ddpm train --resume", "Again:\njax-ddpm train --resume", "Again:\njax-ddpm train --resume"),
        ("a -- b, XLA_FLAGS=--xla_x", "a -- b, XLA_FLAGS=--xla_x", "a -- b, XLA_FLAGS=--xla_x"),
    ],
)
def test_messages_have_the_words_of_their_reader(message, command, python):
    assert str(UserError(message)) == python
    with messages_of_commands():
        assert str(UserError(message)) == command


def test_a_run_as_columns(command_run):
    folder, _ = command_run
    run = jax_ddpm.load_run(folder)
    assert list(run.metrics["step"])[-1] == 6 and np.isfinite(run.metrics["loss"][0])
    assert np.isnan(run.metrics["validation_loss"][0])
    assert run.checkpoints[-1] == 6 and run.config.training.steps == 6
    assert run.picture(next(iter(run.pictures))).size[0] > 8
    assert repr(run.model()).startswith("Model: conv_block (widths (32,)")
    assert repr(run) == f"TrainingRun {folder}: preset digits, digits, step 6"
    assert run.loss_curve()._repr_png_().startswith(b"\x89PNG")
    shown = run._repr_html_()
    assert "step 6" in shown and "preset(&#x27;digits&#x27;" in shown and 'alt="grid.png"' in shown
    assert run.evaluations == [] and "--steps" in FLAGS
    with pytest.raises(UserError, match=r"has no picture x\.png: expected one of "):
        run.picture("x.png")


def test_pictures_of_floats_and_of_levels():
    x = np.linspace(-1.1, 1.1, 4 * 8 * 8).reshape(4, 8, 8, 1)
    levels = np.rint((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(report.grid(x)), np.asarray(report.grid(levels)))
    for wrong in (x * 255, levels.astype(np.int32), x[0], np.full_like(x, np.nan)):
        with pytest.raises(UserError, match="expected"):
            report.grid(wrong)
