"""The doctor raises no false alarm on right ports of diffusers' UNet2DModel and to Linen."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch import nn

import jax_ddpm
from jax_ddpm.doctor import compare
from parity_tests import doctor_linen
from parity_tests.diffusers_models import FAMILY, package_model
from parity_tests.doctor_faults import judged, table


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_diffusers_configurations(name, folders):
    config = FAMILY[name]
    size = config["sample_size"]
    shape = (2, config.get("in_channels", 3), *((size, size) if isinstance(size, int) else size))
    inputs = np.random.default_rng(0).standard_normal(shape).astype(np.float32), np.array([3, 700])
    result = compare(package_model(name), jax_ddpm.load_model(folders[name]).network, inputs)
    assert result.equal and not any("not compared" in note for note in result.notes), result


class PaddedInside(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 2, 1))


class PaddedBefore(nnx.Module):
    def __init__(self, mode):
        self.mode = mode
        self.first = nnx.Conv(2, 3, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
        self.last = nnx.Conv(3, 2, (1, 1), rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(self.first(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=self.mode)))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_a_convolution_that_pads_by_itself(mode):
    """Ours pads before the convolution, so that its input has another size."""
    inputs = np.random.default_rng(0).standard_normal((2, 2, 5, 5))
    result = compare(PaddedInside(), PaddedBefore(mode), inputs, table={"0": "first", "1": "last"})
    assert result.equal == (mode == "reflect"), result
    assert result.equal or (result.finding.cause.name, result.finding.pair.theirs.path) == ("padding_mode", "0")


@pytest.mark.slow
@pytest.mark.parametrize("network", doctor_linen.NETWORKS)
def test_ports_to_linen(network):
    result = compare(*doctor_linen.build(network))
    assert result.equal and not result.notes, result


@pytest.mark.slow
@pytest.mark.parametrize("fault", doctor_linen.FAULTS, ids=lambda fault: fault.name)
def test_faults_of_ports_to_linen(fault):
    verdict = judged(fault, compare(*doctor_linen.build(fault.network, fault.wrong)))
    assert verdict.cause_right and verdict.place_right, f"{verdict}\n{verdict.sentence}"


if __name__ == "__main__":
    table(doctor_linen.FAULTS, lambda fault: judged(fault, compare(*doctor_linen.build(fault.network, fault.wrong))))
