"""The ladder catches faults: each one, seeded into torch_ref, must break its rung (and the rung holds without it)."""

import pytest

from parity_tests import (
    faults_classifier_guidance,
    faults_evaluation,
    faults_networks,
    faults_objectives,
    faults_sampling,
    faults_self_condition,
    faults_teaching,
    faults_training,
    ladder,
)

FAULTS = {
    **faults_networks.FAULTS,
    **faults_teaching.FAULTS,
    **faults_sampling.FAULTS,
    **faults_objectives.FAULTS,
    **faults_self_condition.FAULTS,
    **faults_classifier_guidance.FAULTS,
    **faults_training.FAULTS,
    **faults_evaluation.FAULTS,
}


SLOW = {fault for fault, (_, rung) in FAULTS.items() if rung in ladder.SLOW}
SLOW |= {"posterior for beta variance, in samples"}  # draws the 1000-step samples in PyTorch again


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAULTS])
def test_fault_breaks_its_rung(fault):
    patch, name = FAULTS[fault]
    rung = ladder.RUNGS[name]
    with patch():
        assert rung.measure() > rung.budget
