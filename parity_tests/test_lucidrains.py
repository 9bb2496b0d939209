"""The network `lucidrains`: golden numbers of nine releases of its package, files of its trainer, dropout."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.unets
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.schedules import make_betas
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig, same_network_as
from jax_ddpm.spec.recognise_lucidrains import recognise_lucidrains, recognise_wrapped_lucidrains
from parity_tests import budgets
from parity_tests.golden_weights import golden_state_dict
from parity_tests.measures import compiled
from parity_tests.measures_training import RUN, furthest, in_double, train_jax, train_torch
from parity_tests.networks import CASES, LUCIDRAINS
from parity_tests.test_golden import load
from parity_tests.test_networks import random_images
from tests.commands import succeed

# Settings of the golden networks, by release. The numbers are those of the package, computed in float64 from weights of
# `golden_weights`; its frequencies are rounded to float32 and the epsilons of LayerNorm and weight standardization are
# 1e-5, as they are in float32.
SMALL = {"dim": 16, "dim_mults": (1, 2), "num_mem_kv": 0}
RELEASES = {
    "2.3.4": LucidrainsConfig(
        **{"dim": 16, "dim_mults": (1, 2), "init_dim": 12, "attn_heads": (2, 3), "attn_dim_head": (8, 4)},
        sinusoidal_pos_emb_theta=5000,
    ),
    "1.9.6": LucidrainsConfig("lucidrains", "1.9", 16, (1, 2), learned_variance=True, resnet_block_groups=4),
    "1.8.0": LucidrainsConfig(**SMALL, package_version="1.8", full_attn=(True, False)),
    "1.7.7": LucidrainsConfig(**SMALL, package_version="1.7.4", learned_sinusoidal_cond=True, learned_sinusoidal_dim=8),
    "1.7.3": LucidrainsConfig(**SMALL, package_version="1.7.2"),
    "1.7.0": LucidrainsConfig(**SMALL, package_version="1.7.0"),
    "1.0.1": LucidrainsConfig(**SMALL, package_version="0.32"),
    "0.28.0": LucidrainsConfig(**SMALL, package_version="0.28"),
    "0.27.12": LucidrainsConfig(**SMALL, package_version="0.27.12"),
}


@pytest.mark.parametrize("release", RELEASES)
def test_torch_ref_against_the_package(release):
    golden, config = load(f"lucidrains_{release}"), RELEASES[release]
    assert same_network_as(release) == config.package_version
    network = torch_ref.unets.build(config, golden["x"].shape[1])
    torch_ref.weights.load_state_dict(network, golden_state_dict(golden["keys"], {}), np.float64)
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = network(x, torch.from_numpy(golden["t"]))
    torch.mean(y**2).backward()
    for ours, theirs in ((y.detach(), golden["y"]), (x.grad, golden["x_grad"])):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=budgets.GOLDEN_NETWORK_FLOAT64 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "release", [pytest.param(name, marks=pytest.mark.slow) if name != "2.3.4" else name for name in RELEASES]
)
def test_jax_ddpm_against_the_package(release):
    golden, config = load(f"lucidrains_{release}"), RELEASES[release]
    with jax.enable_x64(True):
        network = unets.build(config, golden["x"].shape[1])
        weights.load_state_dict(network, golden_state_dict(golden["keys"], {}), np.float64)
        graph, state = nnx.split(network)

        def outputs(state, x):
            network = nnx.merge(graph, state)
            return jax.grad(lambda x: (jnp.mean((y := network(x, golden["t"])) ** 2), y), has_aux=True)(x)

        x_grad, y = compiled(outputs, quick=True)(state, jnp.asarray(np.moveaxis(golden["x"], 1, -1)))
    for ours, theirs in ((y, golden["y"]), (x_grad, golden["x_grad"])):
        theirs = np.moveaxis(theirs, 1, -1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=budgets.GOLDEN_NETWORK_FLOAT64 * np.abs(theirs).max())


def trainer_file(path, config: LucidrainsConfig, objective: str, release: str, T: int = 50):
    """A checkpoint with the keys and names of the package's trainer; raw weights are twice the averaged ones."""
    network = torch_ref.unets.build(config, 1)
    torch_ref.weights.initialise(network, 3)
    betas = torch.from_numpy(make_betas("sigmoid", T))
    alpha_bars = torch.cumprod(1 - betas, 0)
    snr = alpha_bars / (1 - alpha_bars)
    weight = {"eps": torch.ones_like(snr), "x0": snr.clamp(max=5), "v": snr.clamp(max=5) / (snr + 1)}[objective]
    tables = {"betas": betas, "alphas_cumprod": alpha_bars, "loss_weight": weight}

    def state(factor):
        arrays = {f"model.{name}": factor * value for name, value in network.state_dict().items()}
        return {**{name: table.float() for name, table in tables.items()}, **arrays}

    ema = {f"{prefix}.{k}": v for prefix, s in (("online_model", 2), ("ema_model", 1)) for k, v in state(s).items()}
    ema |= {"initted": torch.tensor(True), "step": torch.tensor(7)}
    torch.save(
        {"step": 7, "model": state(2), "opt": {"state": {}}, "ema": ema, "scaler": None, "version": release}, path
    )
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_files_of_the_trainer(objective, tmp_path):
    path = tmp_path / "model-1.pt"
    values = trainer_file(path, CASES["lucidrains"].config, objective, "2.3.4")
    lines = []
    model = torch_ref.load_model(path, image_size=8, log=lines.append)
    assert model.info.network == CASES["lucidrains"].config
    diffusion = model.info.diffusion
    assert (diffusion.timesteps, diffusion.schedule, diffusion.objective) == (50, "sigmoid", objective)
    assert (diffusion.variance, diffusion.clip) == ("posterior", "x0")
    assert "EMA weights" in lines[0] and any("version 2.3.4" in line for line in lines)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), values[name])
    raw = torch_ref.load_model(path, image_size=8, weights="raw", log=lines.append)
    np.testing.assert_array_equal(raw.final_conv.weight.detach(), 2 * values["final_conv.weight"])


def test_there_and_back(tmp_path, capsys, monkeypatch):
    values = trainer_file(tmp_path / "theirs.pt", CASES["lucidrains"].config, "v", "2.3.4")
    succeed(capsys, monkeypatch, "convert.py", tmp_path / "theirs.pt", tmp_path / "ours.safetensors", "--image-size", 8)
    succeed(capsys, monkeypatch, "convert.py", tmp_path / "ours.safetensors", tmp_path / "back.pt")
    back, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("back.pt", "theirs.pt"))
    for name, value in values.items():
        np.testing.assert_array_equal(back["ema"][f"ema_model.model.{name}"].numpy(), value)
    np.testing.assert_array_equal(back["ema"]["ema_model.betas"], theirs["ema"]["ema_model.betas"])


def test_release_decides_among_networks_with_equal_names(tmp_path):
    config = LucidrainsConfig(**SMALL, package_version="1.7.4")
    for release, version, text in (("1.7.7", "1.7.4", "version 1.7.7"), ("1.5.8", "0.32", "version 1.5.8")):
        trainer_file(tmp_path / "model.pt", config, "eps", release)
        lines = []
        assert torch_ref.load_model(tmp_path / "model.pt", 8, log=lines.append).info.network.package_version == version
        assert any(text in line for line in lines)
    trainer_file(tmp_path / "model.pt", config, "eps", "of mine")
    given = {"package_version": "1.7.2"}
    lines = []
    assert torch_ref.load_model(tmp_path / "model.pt", 8, log=lines.append).info.network.package_version == "0.32"
    assert any("package_version=" in line for line in lines)
    model = torch_ref.load_model(tmp_path / "model.pt", 8, network_settings=given, log=lines.append)
    assert model.info.network.package_version == "1.7.2"


def test_releases():
    known = {
        "2.3.4": "2.0",
        "1.11.1": "1.9",
        "1.8.15": "1.8",
        "0.27.0": None,
        "0.27.12": "0.27.12",
        "": None,
        "x": None,
    }
    assert {release: same_network_as(release) for release in known} == known


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("package_version", {"package_version": "3.0"}),
        ("dim", {"dim": 7}),
        ("dim_mults", {"dim_mults": ()}),
        ("attn_heads", {"attn_heads": (4, 4)}),
        ("full_attn", {"full_attn": (True,)}),
        ("num_mem_kv", {"num_mem_kv": 0}),
        ("num_mem_kv", {"package_version": "1.8"}),
        ("resnet_block_groups", {"package_version": "1.9", "resnet_block_groups": 3}),
        ("learned_sinusoidal_dim", {"learned_sinusoidal_dim": 3}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_wrong_settings_are_named(name, settings):
    with pytest.raises(UserError, match=f"^{name} ="):
        LucidrainsConfig(**settings).check()


@pytest.mark.slow
def test_dropout():
    """The same masks in both frameworks."""
    case = replace(CASES["lucidrains"], config=replace(CASES["lucidrains"].config, dropout=0.4))
    run = in_double(replace(RUN, network=case.config))
    images = partial(random_images, case.size, case.channels)
    ours, theirs = train_jax(run, 1, np.float64, images), train_torch(run, 1, np.float64, images)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=budgets.NETWORK_FLOAT64)
    assert furthest(ours[1], theirs[1]) / run.training.learning_rate <= budgets.UPDATE_FLOAT64


@pytest.mark.parametrize("name", ["lucidrains", *LUCIDRAINS])
def test_damaged_files_are_recognised_or_refused(name):
    """Arrays left out, or of other shapes: a network, None or a UserError, and no other exception."""
    case, draw = {**CASES, **LUCIDRAINS}[name], np.random.default_rng(4)
    shapes = torch_ref.weights.array_shapes(case.config, case.channels)
    for _ in range(300):
        changed = {key: shape for key, shape in shapes.items() if draw.random() > 0.01}
        for key in draw.choice(list(changed), 3):
            changed[key] = tuple(draw.integers(0, 40, draw.integers(0, 5)).tolist())
        arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in changed.items()}
        for recognise in (recognise_lucidrains, recognise_wrapped_lucidrains):
            try:
                recognised = recognise(arrays)
                if recognised is not None:
                    recognised.with_settings({})
            except UserError:
                pass
