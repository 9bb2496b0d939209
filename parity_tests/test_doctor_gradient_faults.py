"""The doctor names the cause of wrong gradients in ports whose outputs are right, and finds nothing in right ones."""

import pytest

from jax_ddpm.doctor import compare
from parity_tests import doctor_gradient_faults, doctor_held_out, doctor_held_out_blocks


@pytest.mark.slow
@pytest.mark.parametrize("network, wrong", doctor_gradient_faults.RIGHT)
def test_right_gradients(network, wrong):
    result = compare(*doctor_gradient_faults.build(network, wrong))
    assert result.equal and not any("not compared" in note for note in result.notes), result


@pytest.mark.slow
@pytest.mark.parametrize("fault", doctor_gradient_faults.FAULTS, ids=lambda fault: fault.name)
def test_faults_of_gradients(fault):
    verdict = doctor_gradient_faults.examine(fault)
    assert verdict.cause_right and verdict.place_right, f"{verdict}\n{verdict.sentence}"


HELD_OUT = [(held_out, fault) for held_out in (doctor_held_out, doctor_held_out_blocks) for fault in held_out.FAULTS]


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [doctor_held_out, doctor_held_out_blocks])
def test_the_held_out_networks(held_out):
    result = compare(*held_out.build())
    assert result.equal, result


@pytest.mark.slow
@pytest.mark.parametrize("held_out, fault", HELD_OUT, ids=[fault.name for _, fault in HELD_OUT])
def test_the_held_out_faults(held_out, fault):
    verdict = held_out.examine(fault)
    assert verdict.cause_right and verdict.place_right, f"{verdict}\n{verdict.sentence}"
