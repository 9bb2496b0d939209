"""--import: code runs only if it is named on the command line; a run records it and says it in its page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jax_ddpm
from jax_ddpm.commands.own_code import import_given
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.presets import PRESETS
from jax_ddpm.training.run_folder import config_json
from tests.commands import refusal, succeed
from tests.registry import restored
from tests.small import small
from tests.test_runs import quiet

OWN = Path(__file__).with_name("own_unet.py")


@pytest.fixture(autouse=True)
def registries():
    with restored():
        yield


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working directory with own_unet.py."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(OWN, tmp_path)
    return tmp_path


def write_run(folder: Path) -> Path:
    """The config.json of a run of own_unet, as training writes it."""
    from own_unet import OwnConfig

    folder.mkdir()
    config = replace(small(steps=1), network=OwnConfig(), preset="own_unet")
    (folder / "config.json").write_text(config_json(folder, config))
    return folder


def test_a_file_or_a_module_registers_a_network_with_a_preset_and_flags(own, capsys, monkeypatch):
    for name in ("own_unet.py", str(own / "own_unet.py"), "own_unet"):
        with restored():
            import_given(["--import", name])
            assert "own_unet" in NETWORKS and PRESETS["own_unet"].network.width == 8
    with pytest.raises(SystemExit) as end:
        succeed(capsys, monkeypatch, "train_jax.py", "--import=own_unet.py", "--preset", "own_unet", "--help")
    assert end.value.code == 0
    assert "--heads INT" in capsys.readouterr().out


def test_a_run_records_the_file_and_never_executes_it(own, capsys, monkeypatch):
    with restored():
        import_given(["--import", "own_unet.py"])
        run = write_run(own / "run")
    assert json.loads((run / "config.json").read_text())["imports"] == ["own_unet.py"]
    (own / "own_unet.py").write_text("raise SystemExit('executed')")
    for script, *arguments in (
        ("train_jax.py", "--resume", "--out", run),
        ("train_jax.py", "--config", run / "config.json"),
        ("report.py", run),
        ("sample.py", "--model", run),
    ):
        said = refusal(capsys, monkeypatch, script, *arguments)
        assert "executed" not in said
        if script != "sample.py":  # there are no weights
            assert "has the network 'own_unet', which is not registered here." in said
            assert "Do as its training did: --import own_unet.py." in said


def test_a_run_that_was_resumed_in_python_keeps_its_record(own):
    with restored():
        import_given(["--import", "own_unet.py"])
        run = write_run(own / "run")
        config = jax_ddpm.training.run_folder.load_config(run)
    assert json.loads(config_json(run, config))["imports"] == ["own_unet.py"]
    assert "imports" not in json.loads(config_json(own, small()))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("missing.py", None, "there is no such file"),
        ("missing", None, "there is no module of this name"),
        ("broken.py", "x = 1\ny = 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("open.py", "x = (", "line 1: SyntaxError"),
        ("needs.py", "import no_such_package", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("nothing.py", "x = 1", "nothing is registered there. Expected a call of jax_ddpm.register"),
        ("json.py", "x = 1", "a module 'json' is loaded already. Give the file another name"),
    ],
)
def test_what_cannot_be_imported_is_said(name, text, said, own, capsys, monkeypatch):
    if text is not None:
        (own / name).write_text(text)
    assert said in refusal(capsys, monkeypatch, "sample.py", "--model", "run", "--import", name)


def test_a_preset_that_is_not_registered_names_the_flag(capsys, monkeypatch):
    assert "--import FILE.py" in refusal(capsys, monkeypatch, "train_jax.py", "--preset", "own_unet")


def test_a_recipe_is_the_preset(own):
    import_given(["--import", "own_unet.py"])
    from own_unet import OwnConfig, OwnUNet

    recipe = replace(jax_ddpm.preset("digits"), network=OwnConfig(width=4))
    jax_ddpm.register(OwnConfig, OwnUNet, recipe=recipe)
    assert jax_ddpm.preset("own_unet") == replace(recipe, preset="own_unet")
    jax_ddpm.register(OwnConfig, OwnUNet)  # again, as notebooks do
    assert jax_ddpm.preset("own_unet").network.width == 4
    with pytest.raises(UserError, match="recipe has the network conv_block: expected a OwnConfig"):
        jax_ddpm.register(OwnConfig, OwnUNet, recipe=jax_ddpm.preset("digits"))


@pytest.mark.slow
def test_training_with_dropout_resumes_exactly_and_torch_draws_the_same(own, capsys, monkeypatch):
    """Through the commands; a straight run and one in two parts end in the same weights."""
    own_file = ("--import", "own_unet.py")
    flags = ["--image-size", 8, "--timesteps", 10, "--beta-end", 0.4, "--batch-size", 8, "--num-samples", 2]
    flags += ["--no-tensorboard", "--lr-schedule", "constant", *own_file, "--preset", "own_unet"]
    succeed(capsys, monkeypatch, "train_jax.py", *flags, "--steps", 6, "--out", "straight")
    succeed(capsys, monkeypatch, "train_jax.py", *flags, "--steps", 3, "--out", "parts")
    succeed(capsys, monkeypatch, "train_jax.py", *own_file, "--resume", "--steps", 6, "--out", "parts")
    straight, parts = (jax_ddpm.spec.model_files.read_file(name)[0] for name in ("straight", "parts"))
    for name, value in straight.items():
        np.testing.assert_array_equal(value, parts[name])
    for framework in ("jax", "torch"):
        drawn = ("--num-images", 2, "--framework", framework, "--out", f"{framework}.npz")
        succeed(capsys, monkeypatch, "sample.py", "--model", "parts", *own_file, *drawn)
    x, y = (np.load(f"{framework}.npz")["x0"] for framework in ("jax", "torch"))
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
    succeed(capsys, monkeypatch, "convert.py", "parts", "plain.pt", *own_file)
    succeed(capsys, monkeypatch, "convert.py", "parts/checkpoints/6", "raw.safetensors", "--weights", "raw", *own_file)
    page = Path("parts/report.html").read_text("utf-8")
    assert "jax-ddpm sample --model parts --import own_unet.py" in page
    assert "jax-ddpm train --config parts/config.json --import own_unet.py" in page
    succeed(capsys, monkeypatch, "train_torch.py", *flags, "--steps", 2, "--init-from", "plain.pt", "--out", "torch")
    assert jax_ddpm.load_model("torch", log=quiet).info.step == 2
