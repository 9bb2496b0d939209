"""Flags of the doctor: the file of --transfer-to and how it is loaded, optimisers and averages."""

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import jax_ddpm
from jax_ddpm import doctor
from jax_ddpm.commands.doctor import main
from jax_ddpm.doctor.transferred_file import check_transfer_file
from jax_ddpm.layers import Conv
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.presets import PRESETS
from jax_ddpm.unets import NETWORK_CLASSES

MODULES = """
import jax.numpy as jnp, torch
from flax import nnx
from torch import nn

def theirs():
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))

class Ours(nnx.Module):
    def __init__(self, dtype="float32", *, rngs):
        self.a = nnx.Linear(4, 3, param_dtype=dtype, rngs=rngs)
        self.drop = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
        self.b = nnx.LayerNorm(3, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(self.a(x)))

class Unpaired(Ours):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.c = nnx.Param(jnp.ones(7))
"""
TRAINING = """
import optax, torch

def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)

def clip(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)

def their_ema(average, parameters, step, decay=0.9):
    return average.mul_(decay).add_(parameters, alpha=1 - decay)

right = optax.adamw(1e-3, weight_decay=1e-2)

def made():
    return right

def our_ema(average, parameters, step):
    return 0.99 * average + 0.01 * parameters

def fails(parameters):
    raise ValueError("no gradient")
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modules_of_flags.py").write_text(MODULES)
    (tmp_path / "training_of_flags.py").write_text(TRAINING)
    return tmp_path


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(arguments, "jax-ddpm doctor")
    return end.value.code


QUICK = {"probes": False, "gradients": False}
PAIR = ("modules_of_flags.py:theirs", "modules_of_flags.py:Ours", "--input", "2,4:float")


def test_their_weights_are_written_and_loaded(files, capsys):
    theirs = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    torch.save(theirs.state_dict(), "w.pt")
    assert run(*PAIR, "--weights", "w.pt", "--transfer-to", "port.safetensors") == 0
    check_transfer_file(files / "port.safetensors")  # its own file may be replaced
    assert "jax_ddpm.doctor.load_transferred(module, path)" in capsys.readouterr().out
    from modules_of_flags import Ours

    ours = doctor.load_transferred(Ours(dtype="bfloat16", rngs=nnx.Rngs(3)), "port.safetensors")
    assert ours.a.kernel.dtype == jnp.bfloat16
    ours = doctor.load_transferred(Ours(rngs=nnx.Rngs(3)), "port.safetensors")
    np.testing.assert_array_equal(ours.a.kernel[...], theirs[0].weight.detach().numpy().T)
    np.testing.assert_array_equal(ours.b.bias[...], np.zeros(3))  # not the random values of the comparison
    assert doctor.compare(theirs, ours, np.ones((2, 4)), transfer_weights=False, **QUICK).equal
    assert [path.name for path in files.iterdir() if "port" in path.name] == ["port.safetensors"]


def test_weights_of_a_linen_module_are_its_variables(files):
    theirs, ours = nn.Linear(4, 3), linen.Dense(3)
    result = doctor.compare(theirs, ours, np.ones((2, 4)), **QUICK)
    doctor.save_transferred(result, ours, "dense.safetensors")
    variables = doctor.load_transferred(ours, "dense.safetensors")
    with torch.no_grad():
        wanted = theirs(torch.ones(2, 4)).numpy()
    np.testing.assert_allclose(ours.apply(variables, jnp.ones((2, 4))), wanted, rtol=1e-6)


def test_weights_of_a_registered_network_are_a_model_file(files, monkeypatch):
    @dataclass(frozen=True)
    class OneLayerConfig(jax_ddpm.NetworkConfig):
        name: Literal["one_layer"] = "one_layer"

    class OneLayer(nnx.Module):
        TORCH_NAMES: ClassVar = {"conv": "layer"}

        def __init__(self, image_channels, dtype=None):
            self.layer = Conv(image_channels, image_channels, 3)

        def __call__(self, x, t):
            return self.layer(x)

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t):
            return self.conv(x)

    for registry in (NETWORKS, PRESETS, NETWORK_CLASSES):
        monkeypatch.setitem(registry, "one_layer", None)
        registry.pop("one_layer")
    jax_ddpm.register(OneLayerConfig, OneLayer)
    theirs, ours, x = Theirs(), OneLayer(1), np.random.default_rng(0).standard_normal((1, 1, 4, 4), np.float32)
    result = doctor.compare(theirs, ours, (x, np.array([1])), **QUICK)
    line = doctor.save_transferred(result, ours, "one.safetensors")
    assert result.equal and "jax_ddpm.load_model(path, network=OneLayerConfig(...))" in line
    model = jax_ddpm.load_model("one.safetensors", image_size=4, network=OneLayerConfig(), log=lambda _: None)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x), None).numpy()
    np.testing.assert_allclose(model(x.transpose(0, 2, 3, 1), np.array([1])).transpose(0, 3, 1, 2), wanted, atol=1e-6)


def test_weights_that_cannot_be_written_or_loaded(files):
    (files / "other.safetensors").write_bytes(b"somebody's")
    for name, text in (
        ("other.safetensors", "was not written by the doctor"),
        ("port.pt", "ends in .safetensors"),
        ("nowhere/port.safetensors", "a folder that exists"),
    ):
        with pytest.raises(UserError, match=text):
            main((*PAIR, "--transfer-to", name), "jax-ddpm doctor")
    assert (files / "other.safetensors").read_bytes() == b"somebody's"
    with pytest.raises(UserError, match=r"is not written: arrays of ours have no partner in theirs: c\."):
        main((PAIR[0], "modules_of_flags.py:Unpaired", *PAIR[2:], "--transfer-to", "c.safetensors"), "jax-ddpm doctor")
    theirs, ours = nn.Linear(4, 4), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="transfer_weights=True"):
        result = doctor.compare(theirs, ours, np.ones((2, 4)), transfer_weights=False, **QUICK)
        doctor.save_transferred(result, ours, "d.safetensors")
    doctor.save_transferred(doctor.compare(theirs, ours, np.ones((2, 4)), **QUICK), ours, "d.safetensors")
    with pytest.raises(UserError, match="missing: scale"):
        doctor.load_transferred(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), "d.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        doctor.load_transferred(ours, "none.safetensors")


def test_optimisers_and_averages(files, capsys):
    here = "training_of_flags.py:"
    flags = "--optimizer", f"{here}adamw", f"{here}made", "--ema", f"{here}their_ema", f"{here}our_ema"
    assert run(*flags, "--ema-decay", "0.99") == 0
    assert "optimisers agree after 3 steps" in capsys.readouterr().out
    assert run(*flags, "--ema-decay", "0.999", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["optimizer"]["equal"] and [cause["name"] for cause in found["EMA"]["causes"]] == ["ema_decay"]


@pytest.mark.slow
def test_clipping_before_a_step(files, capsys):
    here = "training_of_flags.py:"
    assert run("--optimizer", f"{here}adamw", f"{here}right", "--clip-gradients", f"{here}clip") == 1
    assert "scales the gradients to the global norm 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--optimizer", "{}fails", "{}right"), "Their optimiser cannot be made: ValueError: no gradient"),
        (("--optimizer", "{}right", "{}right"), "Their optimiser cannot be made"),
        (("--optimizer", "{}clip", "{}right"), "Expected a torch.optim.Optimizer"),
        (("--optimizer", "{}adamw", "{}fails"), "Our optimiser failed: TypeError"),
        (("--optimizer", "{}adamw", "{}nothing"), "has no nothing"),
        (("--optimizer", "{}adamw", "{}right", "--clip-gradients", "{}fails"), "gradients failed: ValueError"),
        (("--ema", "{}fails", "{}our_ema"), "Their average failed at step 0: TypeError"),
        (("--ema", "{}our_ema", "{}right"), "Our average failed at step 0: TypeError"),
        (("--clip-gradients", "{}clip", "--ema", "{}our_ema", "{}our_ema"), "needs .*optimizer"),
        (("--ema-decay", "0.9", "--optimizer", "{}adamw", "{}right"), "needs .*ema"),
        (("--transfer-to", "a.safetensors", "--ema", "{}our_ema", "{}our_ema"), "needs THEIRS and OURS"),
        (("--html", "a.html", "--ema", "{}our_ema", "{}our_ema"), "needs THEIRS and OURS"),
    ],
)
def test_wrong_optimisers_and_averages_end_in_a_sentence(files, arguments, text):
    with pytest.raises(UserError, match=text) as error:
        main([word.format("training_of_flags.py:") for word in arguments], "jax-ddpm doctor")
    assert str(error.value).count("\n") < 3


def test_where_ours_is_and_what_is_rounded_there(monkeypatch):
    """On a machine with a GPU, copies are compared on the CPU, and the set-up names TF32 and the devices."""
    from jax_ddpm.doctor import setup

    module = nn.Linear(2, 2)
    monkeypatch.setattr(setup, "platform", lambda arrays: "gpu")
    names = {difference.name: difference for difference in setup.precision(module, [])}
    assert names["device"].sentence.startswith("Theirs is on the CPU, ours on the GPU.")
    assert names["precision"].ours == "lower than float32" and not names["precision"].decisive
    with jax.default_matmul_precision("highest"):
        assert "precision" not in {difference.name for difference in setup.precision(module, [])}

    class OnGPU(nn.Module):
        def parameters(self, recurse=True):
            yield type("Parameter", (), {"device": torch.device("cuda", 0), "dtype": torch.float32})

    monkeypatch.setattr(setup, "allows_tf32", lambda: True)
    assert setup.precision(OnGPU(), []) == []  # TF32 in both
    monkeypatch.setattr(setup, "platform", lambda arrays: "cpu")
    assert [difference.name for difference in setup.precision(OnGPU(), [])] == ["device", "precision"]


@pytest.mark.parametrize("in_training", [False, True])
def test_momentum_counts_in_training_only(in_training):
    theirs = nn.BatchNorm1d(3).train(in_training)
    ours = nnx.BatchNorm(3, use_running_average=not in_training, momentum=0.5, epsilon=1e-5, rngs=nnx.Rngs(0))
    result = doctor.compare(theirs, ours, np.random.default_rng(0).standard_normal((4, 3)), **QUICK)
    (difference,) = result.setup
    assert difference.name == "batchnorm_momentum" and difference.decisive is in_training
    assert result.equal is not in_training and "momentum is 0.5 in ours" in str(result)
    assert ("It matters for training only." in str(result)) is not in_training
    assert not result.parameters.different  # the statistics are those before the call
