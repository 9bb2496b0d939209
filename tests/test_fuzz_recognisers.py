"""Recognisers and settings of networks get random names, shapes and values: they answer or raise UserError."""

import dataclasses
import json
import random

import numpy as np
import pytest

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.infer_network import RECOGNISERS
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.network_config import BUILT_IN, NETWORKS
from jax_ddpm.spec.stored_array import StoredArray
from jax_ddpm.spec.told_by_arrays import schedule_of
from jax_ddpm.weights import array_shapes

VALUES = (
    0,
    1,
    -1,
    3,
    32,
    2**40,
    0.5,
    -0.5,
    1e300,
    None,
    True,
    "x",
    "silu",
    (),
    (1,),
    (64, 0),
    (32, 64),
    (True,),
    [[1]],
)
SIZES = (0, 1, 2, 3, 7, 32, 100, 2**40)


def changed(shapes: dict, draw: random.Random) -> dict:
    """Names and shapes, of which some are left out, renamed, or have another shape or number of axes."""
    made = {}
    for name, shape in shapes.items():
        kind = draw.random()
        if kind < 0.02:
            continue
        if kind < 0.04:
            shape = tuple(draw.choice(SIZES) for _ in range(draw.randrange(6)))
        elif kind < 0.06 and shape:
            shape = tuple(draw.choice((size, draw.choice(SIZES))) for size in shape)
        elif kind < 0.08:
            name = name.replace(str(draw.randrange(4)), str(draw.randrange(12)))
        made[name] = shape
    return {name: StoredArray(shape, lambda: np.zeros(0)) for name, shape in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(BUILT_IN))
def test_recognisers(network):
    draw, shapes = random.Random(network), array_shapes(NETWORKS[network](), 3)
    for _ in range(150):
        arrays = changed(shapes, draw)
        for recognise in RECOGNISERS.values():
            try:
                recognised = recognise(arrays)
                if recognised is not None:
                    recognised.with_settings({})
            except UserError as error:
                assert 0 < len(str(error)) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(BUILT_IN))
def test_settings(network):
    """From JSON, as in config.json, and checked for an image size and a T."""
    draw, kind = random.Random(network), NETWORKS[network]
    for _ in range(1000):
        settings = dataclasses.asdict(kind())
        for name in draw.sample(sorted(settings), draw.randrange(1, 4)):
            settings[name] = draw.choice(VALUES)
        try:
            config = from_json(kind, json.dumps(settings), "The test")
            config.check(draw.choice((None, 28, 32, (32, 48), (7, 9))), draw.choice((None, 1, 1000)))
        except UserError as error:
            assert 0 < len(str(error)) <= 1000


@pytest.mark.slow
def test_betas():
    draw = np.random.default_rng(0)
    for _ in range(300):
        betas = draw.uniform(1e-9, 1 - 1e-9, draw.integers(2, 50)) ** draw.integers(1, 30)
        assert schedule_of(np.sort(betas) if draw.random() < 0.5 else betas)["timesteps"] == len(betas)
