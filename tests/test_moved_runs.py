"""Runs that are resumed elsewhere, or whose data, first weights or devices are no longer what they were."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import unets, weights
from jax_ddpm.spec.data_record import DATA_FILE
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training import loop, prepare
from jax_ddpm.training.loop import train
from jax_ddpm.training.replay import replay
from jax_ddpm.training.run_folder import check_folder, load_config
from jax_ddpm.training.run_page import write_page
from tests.small import small


def quiet(line):
    pass


def write_pictures(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with `pics`, 20 of them, `init.safetensors`, and `run`, as it is after two steps."""
    base = tmp_path_factory.mktemp("original")
    write_pictures(base / "pics", 20)
    config = small()
    network = unets.build(config.network, 1)
    weights.initialise(network, 0)
    info = ModelInfo(network=config.network, image_shape=(8, 8, 1), diffusion=config.diffusion)
    write_model(base / "init.safetensors", weights.state_dict(network), info)

    def save(run, signals):
        run.step = 2
        loop.save_checkpoint(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setattr(loop, "take_steps", save)
        patch.setattr(loop, "finish", lambda run: None)
        train(small(**SETTINGS), "run", log=quiet)
    return base


SETTINGS = {
    "dataset": "folder:pics",
    "cache_dir": "cache",
    "batch_size": 8,
    "steps": 2,
    "init_from": "init.safetensors",
}
SETTINGS |= {"validate_every": 2, "checkpoint_every": 2}


@pytest.fixture
def place(original, tmp_path, monkeypatch):
    """A copy of `original`, and the current folder. Runs in it stop before their first step."""
    shutil.copytree(original, tmp_path / "place")
    record = tmp_path / "place" / "run" / DATA_FILE
    record.write_text(record.read_text().replace(str(original), str(tmp_path / "place")))
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(loop, "take_steps", lambda *_: None)
    monkeypatch.setattr(loop, "finish", lambda run: run.log(f"It would train from step {run.step}."))
    return tmp_path / "place"


def resumed(**changes) -> list[str]:
    """What the run said."""
    said = []
    train(small(**(SETTINGS | changes)), changes.pop("out", "run"), resume=True, log=said.append)
    assert said[-1] == "It would train from step 2."
    return said


def test_images_that_have_moved(place):
    (place / "pics").rename("pictures")
    with pytest.raises(
        UserError,
        match=r"folder:pics: there is no such folder.\nIf the images have moved, .*place: dataset folder:PATH",
    ):
        resumed()
    said = resumed(dataset="folder:pictures")
    assert "folder:pictures holds the same images as folder:pics did." in said
    assert load_config(place / "run").data.dataset == "folder:pictures"
    assert not any("same images" in line for line in resumed(dataset="folder:pictures"))
    page = write_page(place / "run").read_text("utf-8")
    assert "on folder:pictures, preset tiny" in page and "folder:pics" not in page.replace("folder:pictures", "")


def test_a_run_that_is_resumed_from_another_folder(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = resumed(out=place / "run", init_from=SETTINGS["init_from"])
    assert f"folder:{place}/pics holds the same images as folder:pics did." in said
    assert load_config(place / "run").data.dataset == f"folder:{place}/pics"


def test_copies_with_other_times_are_the_same_images(place):
    for path in (place / "pics").iterdir():
        path.touch()
    assert not any("same images" in line for line in resumed())


@pytest.mark.parametrize("kind", ["more", "fewer", "others"])
def test_images_that_have_changed(kind, place):
    before = (place / "run" / "config.json").read_bytes()
    if kind == "more":
        shutil.rmtree("pics")
        write_pictures(place / "pics", 40)
    elif kind == "fewer":
        (place / "pics" / "03.png").unlink()
    else:
        (place / "pics" / "03.png").rename("pics/zz.png")
    now = {"more": "now has 36 training and 4 held-out", "fewer": "now has 17 training and 2", "others": "as many"}
    expected = rf"which had 18 training and 2 held-out images of 8x8x1; it {'' if kind == 'others' else now[kind]}"
    with pytest.raises(UserError, match=expected) as caught:
        resumed()
    assert now[kind] in str(caught.value) and "another out" in str(caught.value)
    assert (place / "run" / "config.json").read_bytes() == before
    with pytest.raises(UserError, match=expected):
        replay(small(**SETTINGS), place / "run", 1, log=quiet)


def test_a_run_of_an_earlier_version(place):
    (place / "run" / DATA_FILE).unlink()
    shutil.copytree("pics", "pictures")
    with pytest.raises(
        UserError, match=r"nothing shows whether folder:pictures .*\n.* where they were \(folder:pics\)"
    ):
        resumed(dataset="folder:pictures")
    assert any("run has no data.json" in line for line in resumed())
    assert (place / "run" / DATA_FILE).is_file(), "from now on they are compared"
    resumed(dataset="folder:pictures")


def test_first_weights_that_are_gone(place):
    (place / "init.safetensors").unlink()
    resumed()
    shutil.rmtree("run/checkpoints")
    with pytest.raises(UserError, match=r"init\.safetensors does not exist"):
        resumed()


def test_a_run_that_has_moved_itself(place):
    (place / "run").rename("elsewhere")
    said = []
    train(small(**SETTINGS), "elsewhere", resume=True, log=said.append)
    assert "Resuming from step 2." in said
    assert f"--out {place}/elsewhere-again" in write_page(place / "elsewhere").read_text("utf-8")


def test_the_record_of_a_run(place):
    record = json.loads((place / "run" / DATA_FILE).read_text())
    assert re.fullmatch("[0-9a-f]{64}", record.pop("fingerprint")) and record.pop("place") == f"{place}/pics"
    assert record == {"dataset": "folder:pics", "training_images": 18, "held_out_images": 2, "image_shape": [8, 8, 1]}
    (place / "run" / DATA_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"data\.json is not a valid DataRecord"):
        resumed()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("cpu", "XLA_FLAGS=--xla_force_host_platform_device_count=2"),
        ("gpu", "CUDA_VISIBLE_DEVICES=0,1"),
        ("tpu", "TPU_VISIBLE_CHIPS=0,1"),
    ],
)
def test_devices_that_cannot_share_a_batch(backend, expected, monkeypatch):
    monkeypatch.setattr(prepare.jax, "devices", lambda: [None] * 3)
    monkeypatch.setattr(prepare.jax, "default_backend", lambda: backend)
    with pytest.raises(UserError, match=rf"8 images .* over 3 devices.\nShow JAX only 2: put {expected} before"):
        prepare.make_mesh(8)


def test_what_saves_memory_may_change(place):
    check_folder(place / "run", small(**SETTINGS, accumulate=2, remat=True), resume=True)
    with pytest.raises(UserError, match="flip was False, now True"):
        check_folder(place / "run", small(**SETTINGS, flip=True), resume=True)
