"""The network ddpm_conditional against golden numbers of the original, and the files of its trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm
import torch_ref
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.spec.write_model import write_model
from parity_tests import budgets
from parity_tests.golden_weights import GOLDEN, golden_state_dict, rule
from parity_tests.measures import compiled, relative

SETTINGS = {"channels": 8, "time_width": 32}
KINDS = {"unconditional": DDPMConditionalConfig(**SETTINGS), "labels": DDPMConditionalConfig(**SETTINGS, num_classes=5)}


def load(kind):
    """The golden numbers, the weights, and the labels."""
    with np.load(GOLDEN / "ddpm_conditional.npz", allow_pickle=False) as file:
        golden = dict(file)
    values = golden_state_dict(golden["labels_keys"], {})
    if kind == "labels":
        return golden, values, (golden["labels"],)
    del values["label_emb.weight"]
    return golden, values, ()


@pytest.mark.parametrize("kind", KINDS)
def test_golden_numbers_of_the_twin(kind):
    golden, values, labels = load(kind)
    network = torch_ref.unets.build(KINDS[kind], 1)
    torch_ref.weights.load_state_dict(network, values, np.float64)
    x, t = torch.tensor(golden["x"], dtype=torch.float64, requires_grad=True), torch.from_numpy(golden["t"])
    y = network(x, t, *map(torch.from_numpy, labels))
    loss = torch.mean(y**2)
    loss.backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    norms = [gradients[line.partition(" ")[0]].norm().item() for line in golden["labels_keys"] if keeps(kind, line)]
    ours = y.detach(), x.grad, loss.item(), norms
    assert max(errors(golden, kind, *ours)) <= budgets.GOLDEN_NETWORK_FLOAT64
    if kind == "labels":
        with torch.no_grad():
            without = [network(x, t), network(x, t, torch.tensor([5, 5]))]
        assert max(relative(y, golden["null_y"]) for y in without) <= budgets.GOLDEN_NETWORK_FLOAT64


def keeps(kind, line):
    return kind == "labels" or not line.startswith("label_emb")


def errors(golden, kind, *ours):
    return [
        relative(a, golden[f"{kind}_{name}"]) for a, name in zip(ours, ("y", "x_grad", "loss", "norms"), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_golden_numbers(kind):
    golden, values, labels = load(kind)
    with jax.enable_x64(True):
        network = unets.build(KINDS[kind], 1)
        weights.load_state_dict(network, values, np.float64)
        graph, params = nnx.split(network)

        def loss(params, x, labels):
            y = nnx.merge(graph, params)(x, jnp.asarray(golden["t"]), *labels)
            return jnp.mean(y**2), y

        x = jnp.asarray(np.moveaxis(golden["x"], 1, -1), jnp.float64)
        program = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True), quick=True)
        (value, y), (grads, x_grad) = program(params, x, labels)
        grads = weights.state_dict(nnx.merge(graph, grads))
        norms = [np.linalg.norm(grads[line.partition(" ")[0]]) for line in golden["labels_keys"] if keeps(kind, line)]
        y, x_grad = np.moveaxis(np.asarray(y), -1, 1), np.moveaxis(np.asarray(x_grad), -1, 1)
        assert max(errors(golden, kind, y, x_grad, value, norms)) <= budgets.GOLDEN_NETWORK_FLOAT64
        if kind == "labels":
            null = program(params, x, (np.array([5, 5]),))[0][1]
            assert relative(np.moveaxis(null, -1, 1), golden["null_y"]) <= budgets.GOLDEN_NETWORK_FLOAT64


def test_frequencies():
    """Those of the original, to the last bit, at this width. At 256, one of 128 differs in it."""
    golden, _, _ = load("unconditional")
    np.testing.assert_array_equal(unets.ddpm_conditional.frequencies(32), golden["frequencies"])
    np.testing.assert_array_equal(torch_ref.unets.ddpm_conditional.frequencies(32), golden["frequencies"])


def saved(folder, deep=True, labels=3):
    """The files that the original's trainer leaves in a folder; the average is twice the raw weights."""
    names = weights.array_shapes(
        DDPMConditionalConfig(channels=4, time_width=8, remove_deep_conv=not deep, num_classes=labels), 1
    )
    raw = {name: torch.from_numpy(rule(name, shape)) for name, shape in names.items()}
    torch.save(raw, folder / "ckpt.pt")
    torch.save({name: 2 * value for name, value in raw.items()}, folder / "ema_ckpt.pt")
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 3e-4}]}, folder / "optim.pt")
    return raw


def test_files_of_the_trainer(tmp_path):
    """The folder gives the average; raw weights are taken if they are asked for, or named."""
    raw = saved(tmp_path)
    for path, settings, factor, kind in (
        (tmp_path, {}, 2, "EMA weights"),
        (tmp_path, {"weights": "raw"}, 1, "raw weights"),
        (tmp_path / "ema_ckpt.pt", {}, 2, "EMA weights"),
        (tmp_path / "ckpt.pt", {}, 1, "raw weights"),
    ):
        lines = []
        model = torch_ref.load_model(path, 8, log=lines.append, **settings)
        assert torch.equal(model.outc.weight, factor * raw["outc.weight"])
        assert f"Took the {kind}" in lines[0]
        assert "heads=4, null_label=True (network_settings=" in lines[1]
    assert model.info.network == DDPMConditionalConfig(channels=4, time_width=8, num_classes=3)
    assert model.info.diffusion.clip == "none" and model.info.diffusion.t_input == "index"
    with pytest.raises(UserError, match=r"its raw weights are in ckpt\.pt"):
        torch_ref.load_model(tmp_path / "ema_ckpt.pt", 8, weights="raw", log=lines.append)
    with pytest.raises(UserError, match="only raw weights"):
        torch_ref.load_model(tmp_path / "ckpt.pt", 8, weights="ema", log=lines.append)


@pytest.mark.parametrize(("deep", "labels"), [(True, 0), (False, 3)])
def test_conversion_there_and_back(tmp_path, deep, labels):
    raw = saved(tmp_path, deep, labels)
    model = jax_ddpm.load_model(tmp_path / "ckpt.pt", 8, log=lambda line: None)
    assert model.info.network.remove_deep_conv is not deep and model.info.network.num_classes == labels
    write_model(tmp_path / "ours.safetensors", weights.state_dict(model.network), model.info)
    back, info = read_file(tmp_path / "ours.safetensors")
    assert info == model.info and set(back) == set(raw)
    for name, value in raw.items():
        np.testing.assert_array_equal(back[name], value.numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"channels": 0}, 8, "channels = 0: expected at least 1"),
        ({"channels": 6}, 8, "heads = 4: expected a divisor of channels = 6"),
        ({"heads": 0}, 8, "heads = 0: expected a divisor"),
        ({"time_width": 7}, 8, "time_width = 7: expected an even number"),
        ({"num_classes": -1}, 8, "num_classes = -1: expected 0 or more"),
        ({}, 28, "multiple of 8"),
    ],
)
def test_wrong_settings(settings, size, message):
    with pytest.raises(UserError, match=message):
        DDPMConditionalConfig(**settings).check(size)
