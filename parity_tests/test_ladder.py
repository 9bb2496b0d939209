"""Every rung of the ladder within its budget, and the network in configurations that hypothesis draws."""

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_ddpm.spec.network_config import ConvBlockConfig
from parity_tests import budgets, ladder, measures, measures_sampling
from parity_tests.test_faults import FAULTS


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Samples are compared in two ways: no fault is seeded here, so that torch_ref need not draw them twice."""
    with mock.patch.object(measures_sampling, "sampled", functools.cache(measures_sampling.sampled)):
        yield


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ladder.SLOW else name for name in ladder.RUNGS]
)
def test_rung(name):
    rung = ladder.RUNGS[name]
    assert rung.measure() <= rung.budget


def test_the_pages_count_rungs_and_faults_and_name_every_rung():
    root = Path(__file__).parents[1]
    readme, page = (" ".join((root / name).read_text("utf-8").split()) for name in ("README.md", "docs/parity.md"))
    assert f"in {len(ladder.RUNGS)} comparisons" in readme and f"inserts {len(FAULTS)} faults" in readme
    assert f"seed {len(FAULTS)} faults" in page
    assert [name for name in ladder.RUNGS if f"| {name} |" not in page] == []


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    first_width=st.sampled_from([32, 64, 96]),
    levels=st.integers(1, 3),
    time_width=st.sampled_from([2, 10, 64]),
    multiple=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    batch=st.integers(2, 3),  # torch refuses to normalise a single value
)
def test_any_configuration(first_width, levels, time_width, multiple, channels, batch):
    config = ConvBlockConfig(widths=tuple(first_width * 2**level for level in range(levels)), time_width=time_width)
    values = measures.random(config, channels)
    shape = {"channels": channels, "size": multiple * 2 ** (levels - 1), "batch": batch}
    assert measures.network(values, config, **shape, dtype=np.float64) <= budgets.NETWORK_FLOAT64
    assert measures.gradients(values, config, **shape) <= budgets.GRADIENT_FLOAT64


@pytest.mark.slow
def test_full_size_network():
    config, (x, t) = ConvBlockConfig(), measures.inputs(2, 32, 1, np.float32)
    ours, theirs = measures.pair(measures.random_weights(config, 1), config, 1, np.float32)
    graph, state = nnx.split(ours)
    y = measures.compiled(lambda state, x, t: nnx.merge(graph, state)(x, t), quick=True)(state, x, t)
    with torch.no_grad():
        wanted = measures.channels_last(theirs(measures.channels_first(x), torch.from_numpy(t)))
    assert measures.relative(y, wanted) <= budgets.NETWORK_FLOAT32
