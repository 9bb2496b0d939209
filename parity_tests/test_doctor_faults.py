"""The doctor names the cause of planted faults, and finds nothing in right pairs."""

import numpy as np
import pytest
import torch

import jax_ddpm.unets
import jax_ddpm.weights
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.doctor import compare
from parity_tests import doctor_faults, doctor_foreign, doctor_networks, doctor_procedure_faults
from parity_tests.doctor_faults import FAULTS, faults_of, judged
from parity_tests.networks import CASES
from parity_tests.test_faults import FAULTS as SEEDED

QUICK_PROCEDURES = {
    *("schedule: cosine for linear", "step: beta for posterior variance", "step: noise at t = 0"),
    *("optimizer: decay coupled", "EMA: no warm-up"),
}


def slow_unless(quick, names):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.slow
def test_it_names_the_causes_of_ports():
    """At least 95% of the causes, and every place."""
    verdicts = doctor_faults.table(FAULTS)
    assert len(verdicts) >= 60
    wrong = [str(verdict) for verdict in verdicts if not verdict.cause_right]
    assert len(wrong) <= 0.05 * len(verdicts), "\n".join(wrong)
    assert [str(verdict) for verdict in verdicts if not verdict.place_right] == []


PROCEDURES = {fault.name: fault for fault in doctor_procedure_faults.FAULTS}


@pytest.mark.parametrize("name", slow_unless(QUICK_PROCEDURES, PROCEDURES))
def test_it_names_the_causes_of_schedules_steps_and_optimisers(name):
    verdict = doctor_procedure_faults.examine(PROCEDURES[name])
    assert verdict.cause_right, verdict


@pytest.mark.parametrize("name", slow_unless({"p_sample", "AdamW"}, doctor_procedure_faults.RIGHT))
def test_right_schedules_steps_and_optimisers_agree(name):
    result = doctor_procedure_faults.RIGHT[name]()
    assert result.agrees, result


@pytest.mark.slow
@pytest.mark.parametrize("network", doctor_networks.NETWORKS)
def test_right_ports_are_equal(network):
    result = compare(*doctor_networks.build(network))
    assert result.equal, result


def twins(name, config_of=CASES):
    """A small network of torch_ref, the same of jax_ddpm, and inputs in PyTorch's layout."""
    case = config_of[name]
    theirs, ours = torch_ref.unets.build(case.config, case.channels), jax_ddpm.unets.build(case.config, case.channels)
    jax_ddpm.weights.initialise(ours, 7)
    values = jax_ddpm.weights.state_dict(ours)
    jax_ddpm.weights.load_state_dict(ours, values)
    torch_ref.weights.load_state_dict(theirs, values, np.float32)
    x = np.random.default_rng(0).standard_normal((2, case.channels, case.size, case.size))
    return theirs, ours, (x.astype(np.float32), np.array([3, 700]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_networks_of_both_frameworks_are_equal(name):
    result = compare(*twins(name))
    assert result.equal, result


NETWORK_OF = {  # the rungs that a faulty network breaks, and the case that shows it
    "strided": "strided",
    "attention": "attention",
    "layer_norm": "layer_norm",
    "ddpm": "ddpm",
    "network, random weights": "conv_block",
}
CAUSES_OF_SEEDED = {
    "strided: SAME padding": "padding",
    "strided: skip order swapped": "concatenation_order",
    "attention: added to its input": "residual_missing|residual_extra|term_missing",
    "attention: 4 heads": "attention_heads",
    "attention: skip order swapped": "concatenation_order",
    "layer_norm: last block normalized": "layer_missing",
    "layer_norm: skip order swapped": "concatenation_order",
    "ddpm: padded left and above": "padding",
    "ddpm: attention without its input": "residual_extra|residual_missing|term_extra",
    "ddpm: cosines before sines": "embedding_order",
    "ddpm: frequencies not shifted": "frequency_exponent",
    "ddpm: GroupNorm epsilon 1e-5": "epsilon",
    "ddpm: skip order swapped": "concatenation_order",
    "height and width swapped": "height_width_swapped",
    "GroupNorm epsilon 1e-6": "epsilon",
    "GroupNorm with 16 groups": "groups",
    "GELU for SiLU": "activation",
    "deconvolution kernel flipped": "kernel_flipped",
    "kernel rows and columns swapped": "kernel_transposed",
    "frequencies over d/2 - 1": "frequency_exponent",
    "skip order swapped": "concatenation_order",
    "cosine before sine, in the network": "embedding_order",
}


def compared_with(fault: str):
    patch, rung = SEEDED[fault]
    case = next(case for key, case in NETWORK_OF.items() if rung.startswith(key))
    with patch():
        theirs, ours, inputs = twins(case)
        return compare(theirs, ours, inputs)


@pytest.mark.slow
def test_parameters_with_other_values_are_named_first():
    assert "other values: time_embed.weight" in compared_with("layer_norm: another table").sentence


@pytest.mark.slow
@pytest.mark.parametrize("fault", CAUSES_OF_SEEDED)
def test_it_names_the_seeded_faults_of_networks(fault):
    result = compared_with(fault)
    cause = result.finding.cause if result.finding else None
    assert cause is not None and cause.name in CAUSES_OF_SEEDED[fault].split("|"), result


@pytest.mark.slow
@pytest.mark.parametrize("network", doctor_foreign.NETWORKS)
def test_foreign_networks(network):
    """A right port is equal; of ten or more faults at most one has no right cause, and all have the right place."""
    pytest.importorskip("diffusers" if network == "unet" else "torchvision")
    result = compare(*doctor_foreign.build(network))
    assert result.equal, result
    faults = list(faults_of(network, doctor_foreign.NETWORKS[network][1]))

    def examine(fault):
        return judged(fault, compare(*doctor_foreign.build(fault.network, fault.wrong)))

    verdicts = doctor_faults.table(faults, examine)
    assert sum(not verdict.cause_right for verdict in verdicts) <= 1
    assert all(verdict.place_right for verdict in verdicts)


def test_a_step_may_be_written_in_many_ways():
    """The network or its output, a tensor or an integer for t, noise given or drawn, a dict or a tuple returned."""
    from jax_ddpm.doctor.diffusion import compare_step

    right = doctor_procedure_faults.their_step()

    def p_sample(x, t: int, eps):
        return {"sample": right(lambda *_: eps, x, torch.full((len(x),), t)), "pred_xstart": None}

    assert compare_step(p_sample, doctor_procedure_faults.POSTERIOR).agrees
