"""TF32 in both frameworks: which products ask for it, and how far a simulated one is from float32."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_ref
import torch_ref.unets
from parity_tests import budgets, simulated_tf32
from tests.small import small
from torch_ref import step

PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")


class FlagsOfProducts(TorchDispatchMode):
    """Records the flags at each product: (name, of matrix products, of cuDNN)."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.found.add((name, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return function(*arguments, **(settings or {}))


def flags_in_a_step(precision: str) -> set:
    """The flags at the products of a training step and of a validation with the EMA, a copy of the network."""
    config = small(precision=precision)
    network = torch_ref.unets.build_in(precision, config.network)
    torch_ref.weights.initialise(network, 0)
    state = step.create_state(network, step.make_optimizer(config.training, network), True)
    images = np.zeros((16, 8, 8, 1), np.uint8)
    with FlagsOfProducts() as flags:
        state, _ = step.make_train_step(config, 10)(state, images)
        step.make_validation(config)(state.weights, images, np.ones(16, bool), 0)
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    return flags.found


def products(found: set) -> set:
    return {name for name, *_ in found}


def test_every_product_of_torch_ref_asks_for_tf32():
    found = flags_in_a_step("tf32")
    assert {"convolution", "convolution_backward", "addmm", "mm"} <= products(found)
    assert {tuple(flags) for _, *flags in found} == {(True, True)}
    assert {tuple(flags) for _, *flags in flags_in_a_step("float32")} == {(False, False)}


def test_a_backward_pass_without_tf32_is_found(monkeypatch):
    monkeypatch.setattr(step, "tf32", lambda on: nullcontext())
    assert ("convolution_backward", False, False) in flags_in_a_step("tf32")


def test_a_call_that_fails_leaves_the_flags_as_they_were():
    network = torch_ref.unets.build_in("tf32", small().network)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 7, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_the_simulated_rounding():
    x = np.float32([1, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-12, -(1 + 3 * 2**-12)])
    nearest = np.float32([1, 1 + 2**-10, 1, 1 + 2**-9, 1, -(1 + 2**-10)])
    np.testing.assert_array_equal(np.asarray(simulated_tf32.nearest(x)), nearest)
    cut = np.float32([1, 1 + 2**-10, 1, 1 + 2**-10, 1, -1])
    np.testing.assert_array_equal(np.asarray(simulated_tf32.cut(x)), cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv_block", "attention"])
def test_distances_to_float32(name):
    (nearest, cut) = simulated_tf32.distances(name, simulated_tf32.nearest, simulated_tf32.cut)
    assert all(budgets.TF32_DIFFERS < value < budgets.TF32 for value in (*nearest, *cut))
