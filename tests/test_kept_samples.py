"""`draw_samples`: images of a model that are kept on disk, and go on after an interruption; results of evaluations."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jax_ddpm
from jax_ddpm import data, unets, weights
from jax_ddpm.evaluation.results import Result, append_result, as_columns, read_results, results_file
from jax_ddpm.evaluation.samples import draw_samples, key_of, settings_of
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.weights import Model

SAMPLER = SamplerConfig(sampler="ddim", num_steps=3, eta=1.0)
NETWORK = ConvBlockConfig(widths=(8,), time_width=8)
INFO = ModelInfo(network=NETWORK, image_shape=(4, 4, 1), diffusion=DiffusionConfig(timesteps=10, beta_end=0.4))


def model_of(seed: int) -> Model:
    network = unets.build(NETWORK, 1)
    weights.initialise(network, seed)
    return Model(network, INFO)


@pytest.fixture(scope="module")
def model():
    return model_of(0)


@pytest.fixture(scope="module")
def expected(model):
    """Ten images in batches of four, drawn at once."""
    return draw_samples(model, 10, SAMPLER, 7, 4)


def test_images_that_are_not_finite_are_refused(tmp_path):
    broken = model_of(0)
    state = nnx.state(broken.network, nnx.Param)
    nnx.update(broken.network, jax.tree.map(lambda leaf: leaf * np.nan, state))
    with pytest.raises(UserError, match="draws images that are not finite"):
        draw_samples(broken, 2, SAMPLER, folder=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


class Stop(Exception):
    pass


def stop_at(count):
    def progress(done):
        if done >= count:
            raise Stop

    return progress


def started_at(model, folder, num_images=10, sampler=SAMPLER, seed=7, batch_size=4):
    """The images, and how many of them were there before."""
    done = []
    images = draw_samples(model, num_images, sampler, seed, batch_size, folder, done.append)
    assert done == sorted(done) and done[-1] == num_images
    return images, done[0]


def test_they_are_those_of_sample(model, expected):
    drawn = jax_ddpm.sample(model, 10, 7, 4, sampler=SAMPLER)
    np.testing.assert_array_equal(expected, data.to_uint8(drawn))
    assert expected.dtype == np.uint8 and expected.std() > 1


def test_an_interrupted_drawing_goes_on_after_its_last_block(model, expected, tmp_path):
    with pytest.raises(Stop):
        draw_samples(model, 10, SAMPLER, 7, 4, tmp_path, stop_at(9))
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.glob("*.npy")) == ["images-00000000.npy", "images-00000004.npy"]
    (folder / ".images-00000008.npy.99.abc").write_bytes(b"half a block")
    images, before = started_at(model, tmp_path)
    assert before == 8
    np.testing.assert_array_equal(images, expected)
    assert not list(folder.glob(".images*"))
    (folder / "images-00000004.npy").write_bytes((folder / "images-00000004.npy").read_bytes()[:-5])
    images, before = started_at(model, tmp_path)
    assert before == 4
    np.testing.assert_array_equal(images, expected)
    assert started_at(model, tmp_path)[1] == 10
    few, before = started_at(model, tmp_path, 5, batch_size=3)
    np.testing.assert_array_equal(few, expected[:5])
    assert before == 5
    more, before = started_at(model, tmp_path, 12)
    np.testing.assert_array_equal(more[:10], expected)
    assert before == 10 and len(more) == 12


def test_images_of_other_weights_or_seeds_are_never_used(model, expected, tmp_path):
    draw_samples(model, 10, SAMPLER, 7, 4, tmp_path)
    for other, seed in ((model_of(1), 7), (model, 8)):
        images, before = started_at(other, tmp_path, seed=seed)
        assert before == 0 and (images != expected).any()
    assert len(list(tmp_path.iterdir())) == 3
    np.testing.assert_array_equal(started_at(model, tmp_path)[0], expected)


def test_the_folder_depends_on_every_setting(model):
    bfloat16 = unets.build(NETWORK, 1, "bfloat16")
    weights.initialise(bfloat16, 0)
    changed = replace(INFO, diffusion=replace(INFO.diffusion, clip="none"))
    others = (model_of(1), Model(bfloat16, INFO), Model(model.network, changed))
    cases = [(model, SAMPLER, 7), (model, SAMPLER, 8), (model, replace(SAMPLER, num_steps=4), 7)]
    cases += [(other, SAMPLER, 7) for other in others]
    assert len({key_of(settings_of(*case)) for case in cases}) == len(cases)
    assert key_of(settings_of(model_of(0), SAMPLER, 7)) == key_of(settings_of(*cases[0]))


def test_what_cannot_be_drawn(model, tmp_path):
    (tmp_path / "file").touch()
    for arguments, said in (
        ((0,), "num_images = 0: expected at least 1"),
        ((4, SAMPLER, 0, 0), "batch_size = 0: expected at least 1"),
        ((4, replace(SAMPLER, num_steps=11)), "num_steps = 11: expected 1 to T = 10"),
        ((4, SAMPLER, 0, 4, tmp_path / "file"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            draw_samples(model, *arguments)


KILLED = """
import os, signal, sys
from tests.test_kept_samples import SAMPLER, draw_samples, model_of

def progress(done):
    if done >= 6:
        os.kill(os.getpid(), signal.SIGKILL)

draw_samples(model_of(0), 10, SAMPLER, 7, 4, sys.argv[1], progress)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_blocks_that_are_used(model, expected, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    images, before = started_at(model, tmp_path)
    assert before == 4
    np.testing.assert_array_equal(images, expected)


def test_results_are_appended_and_read_as_columns(tmp_path):
    assert read_results(tmp_path) == []
    scores = {"fid": 3.0, "num_images": 10, "floor": {"fid": 1.0}}
    append_result(tmp_path, Result(20, "ema", SAMPLER, 7, scores, 1.234))
    with results_file(tmp_path).open("a") as file:
        file.write("half a li")
    append_result(tmp_path, Result(40, "raw", SamplerConfig(), 7, {"fid": 2.0}, 5.0, "2026-01-01"))
    first, second = read_results(tmp_path)
    assert first["scores"] == scores and first["sampler"]["num_steps"] == 3 and first["date"].startswith("20")
    assert second["step"] == 40 and second["date"] == "2026-01-01" and json.dumps(second)
    columns = as_columns([first, second])
    assert columns["step"] == [20, 40] and columns["scores.fid"] == [3.0, 2.0] and columns["seconds"] == [1.2, 5.0]
    assert columns["scores.floor.fid"] == [1.0, None] and columns["sampler.sampler"] == ["ddim", "ddpm"]
