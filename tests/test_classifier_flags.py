"""`jax-ddpm sample --classifier`: pictures of classes, and flags that do not go together."""

import numpy as np
import pytest
import torch

from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.write_model import write_model
from parity_tests.measures import random_weights
from tests.commands import refusal, succeed

CLASSIFIER = ADMClassifierConfig(
    widths=(64,), num_res_blocks=1, attention=(False,), pool="adaptive", map_size=None, num_classes=3
)
NETWORK = ConvBlockConfig(widths=(32,), time_width=32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    diffusion = DiffusionConfig(timesteps=6, beta_start=0.2, beta_end=0.6)
    write_model(folder / "model.safetensors", random_weights(NETWORK, 1), ModelInfo(NETWORK, (4, 4, 1), diffusion))
    values = {name: torch.from_numpy(value) for name, value in random_weights(CLASSIFIER, 1).items()}
    torch.save(values, folder / "classifier.pt")
    return folder


@pytest.fixture
def flags(files, tmp_path):
    model = ["sample.py", "--model", files / "model.safetensors", "--framework", "torch", "--no-check"]
    return [*model, "--out", tmp_path / "out.npz"], ["--classifier", files / "classifier.pt"]


def test_classes_of_a_model_without_labels(flags, tmp_path, capsys, monkeypatch):
    plain, classifier = flags
    given = [*plain, *classifier, "--classifier-scale", "50"]
    said = succeed(capsys, monkeypatch, *given, "--labels", "2,0", "--num-images", "3")
    assert "Assumed of the classifier" in said and "num_head_channels 64" in said
    with np.load(tmp_path / "out.npz") as drawn:
        x_0 = drawn["x0"]
        assert drawn["labels"].tolist() == [2, 0, 2]
    succeed(capsys, monkeypatch, *given, "--labels", "1", "--num-images", "3")
    with np.load(tmp_path / "out.npz") as drawn:
        assert np.abs(drawn["x0"] - x_0).max() > 0.01
    said = succeed(capsys, monkeypatch, *given, "--num-images", "4", "--classifier-setting", "num_head_channels=32")
    assert "Assumed of the classifier, as in the published ones: use_new_attention_order" in said
    assert "Labels: the classes in turn." in said
    said = succeed(capsys, monkeypatch, *plain, *classifier, "--classifier-scale", "1e38", "--num-images", "2")
    assert "2 of 2 pictures have values that are not finite" in said
    gif = [*plain[:-1], tmp_path / "out.gif", *classifier]
    succeed(capsys, monkeypatch, *gif, "--label-grid", "--num-images", "3")


def test_flags_that_do_not_go_together(flags, capsys, monkeypatch):
    plain, classifier = flags
    said = refusal(capsys, monkeypatch, *plain, "--classifier-scale", "3")
    assert "--classifier-scale 3 needs a classifier: give --classifier FILE." in said
    said = refusal(capsys, monkeypatch, *plain, "--classifier-setting", "time_scale=0.25")
    assert "--classifier-setting needs a classifier" in said
    said = refusal(capsys, monkeypatch, *plain, *classifier, "--classifier-setting", "num_head_channels=48")
    assert "num_head_channels = 48: expected a divisor" in said and "--classifier-setting NAME=VALUE" in said
    said = refusal(capsys, monkeypatch, *plain, *classifier, "--interpolate", "1,2", "--sampler", "ddim")
    assert "Leave it or --interpolate out" in said
    said = refusal(capsys, monkeypatch, *plain, *classifier, "--labels", "3")
    assert "labels = 3: expected a class from 0 to 2" in said
    said = refusal(capsys, monkeypatch, *plain, *classifier, "--classifier-scale", "nan")
    assert "classifier_scale = nan: expected a finite number" in said
    said = refusal(capsys, monkeypatch, *plain[:2], classifier[1], *plain[3:])
    assert "Give it beside a diffusion model, to guide it: --classifier FILE" in said
    said = refusal(capsys, monkeypatch, *plain, "--classifier", plain[2])
    assert "is no classifier of noisy images" in said
