"""The network `lucidrains`: golden numbers of nine releases of its package, files of its trainer, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.unets
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig, same_network_as
from parity_tests import budgets
from parity_tests.golden_weights import golden_state_dict
from parity_tests.measures import compiled
from parity_tests.test_golden import load

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
