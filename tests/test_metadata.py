"""The settings that a file of weights carries: there and back, and what is refused by name."""

import dataclasses
import json

import pytest

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import from_json, to_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import NETWORKS, ConvBlockConfig
from jax_ddpm.spec.presets import PRESETS

INFO = ModelInfo(
    network=ConvBlockConfig(widths=(32, 64), time_width=16),
    image_shape=(4, 6, 3),
    diffusion=DiffusionConfig(timesteps=7, schedule="cosine", objective="v", variance="posterior", clip="none"),
    step=12,
)


def test_metadata_goes_there_and_back():
    assert from_json(ModelInfo, to_json(INFO), "x") == INFO


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": {"name": "conv_block", "width": 3}}, "network.*width"),
        ({"network": {"name": "conv_block", "widths": [32, 6.5]}}, r"network.*widths\.1"),
        ({"network": {"name": "conv_block", "widths": 32}}, "network.*widths"),
        ({"diffusion": {"timesteps": True}}, "diffusion.timesteps"),
        ({"diffusion": {"beta_start": "1e-4"}}, "diffusion.beta_start"),
        ({"diffusion": {"schedule": "quadratic"}}, "diffusion.schedule"),
        ({"image_shape": [4, 4]}, "image_shape"),
        ({"step": "3"}, "step"),
        ({"colour": 1}, "colour"),
        ({"network": None}, "network"),
    ],
)
def test_wrong_metadata_is_named(change, named):
    text = json.dumps(dataclasses.asdict(INFO) | change)
    with pytest.raises(UserError, match=f"x is not a valid ModelInfo: .*{named}"):
        from_json(ModelInfo, text, "x")


def test_a_network_that_is_not_registered_is_named():
    text = json.dumps(dataclasses.asdict(INFO) | {"network": {"name": "other"}})
    with pytest.raises(
        UserError,
        match=r"x has the network 'other', which is not registered here.\nDo as its training did: import own.py",
    ):
        from_json(ModelInfo, text, "x", ["own.py"])


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"network": {}}'])
def test_text_that_is_no_metadata_is_refused(text):
    with pytest.raises(UserError, match="x is not a valid ModelInfo"):
        from_json(ModelInfo, text, "x")


def test_every_network_has_a_preset_of_its_name():
    assert all(PRESETS[name].network.name == name for name in NETWORKS)
