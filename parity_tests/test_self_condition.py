"""Self-conditioning against the package denoising_diffusion_pytorch: golden numbers of its release 2.3.4, and files.

The numbers were computed by the package in float64, with float64 tables, from weights of `golden_weights`; the sinusoid
frequencies are rounded to float32, as in `test_lucidrains`. The noise of its samplers is that of `noise`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref
import torch_ref.sampling.reverse
import torch_ref.sampling.solvers
import torch_ref.sampling.steps
import torch_ref.schedules
import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling import reverse, solvers, steps
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.run_config import DataConfig, RunConfig, TrainingConfig
from parity_tests import budgets
from parity_tests.golden_weights import golden_state_dict
from parity_tests.measures import compiled
from parity_tests.test_golden import load
from parity_tests.test_lucidrains import trainer_file

GOLDEN = "lucidrains_self_condition"
NETWORK = LucidrainsConfig(dim=16, dim_mults=(1, 2), attn_heads=(2,), attn_dim_head=(4,), self_condition=True)
EDM_NETWORK = LucidrainsConfig(
    **{"dim": 16, "dim_mults": (1, 2), "attn_heads": (2,), "attn_dim_head": (4,), "self_condition": True},
    learned_sinusoidal_cond=True,
    learned_sinusoidal_dim=8,
)
T = 12
OBJECTIVES = {"pred_noise": "eps", "pred_v": "v"}


def settings(objective: str) -> DiffusionConfig:
    return DiffusionConfig(
        timesteps=T, schedule="cosine", objective=OBJECTIVES[objective], variance="posterior", clip="x0"
    )


def noise() -> np.ndarray:
    """The draws of a sampler in their order, channels first: x_T, then one for each step."""
    return np.random.default_rng(0).standard_normal((T + 1, 2, 1, 8, 8))


def torch_network(config=NETWORK, keys="keys"):
    network = torch_ref.unets.build(config, 1)
    torch_ref.weights.load_state_dict(network, golden_state_dict(load(GOLDEN)[keys], {}), np.float64)
    return network.eval()


def jax_network(config=NETWORK, keys="keys"):
    network = unets.build(config, 1)
    weights.load_state_dict(network, golden_state_dict(load(GOLDEN)[keys], {}), np.float64)
    return network


def assert_golden(ours, name):
    theirs = load(GOLDEN)[name]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=budgets.GOLDEN_NETWORK_FLOAT64 * np.abs(theirs).max())


def test_outputs_and_gradients():
    golden, network = load(GOLDEN), torch_network()
    x, x_0 = (torch.from_numpy(golden[name]).requires_grad_() for name in ("x", "c"))
    t = torch.from_numpy(golden["t"])
    y = network(x, t, x_self_cond=x_0)
    torch.mean(y**2).backward()
    assert_golden(network(x, t).detach(), "y_none")
    for ours, name in ((y.detach(), "y"), (x.grad, "x_grad"), (x_0.grad, "c_grad")):
        assert_golden(ours, name)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples(sampler, objective):
    config, kind, draws = settings(objective), SamplerConfig(sampler), noise()
    chain = reverse.sampling_timesteps(config, kind)
    network, images = torch_network(), torch.from_numpy(draws)
    tables = torch_ref.schedules.schedule_tables(config, np.float64, chain)
    step = torch_ref.sampling.reverse.make_step(tables, config, kind, chain, network, self_condition=True)
    with torch.no_grad():
        history = torch_ref.sampling.steps.initial_history(images[0], kind, self_condition=True)
        options = {"history": history, "self_condition": True}
        theirs, _ = torch_ref.sampling.reverse.reverse_process(
            step, network, images[0], chain, lambda t: images[T - t], **options
        )
    assert_golden(theirs, f"{sampler}_{objective}")


@pytest.mark.parametrize(
    ("sampler", "objective"),
    [("ddpm", "pred_noise"), *(pytest.param(s, "pred_v", marks=pytest.mark.slow) for s in ("ddpm", "ddim"))],
)
def test_samples_of_jax_ddpm(sampler, objective):
    config, kind = settings(objective), SamplerConfig(sampler)
    chain = reverse.sampling_timesteps(config, kind)
    with jax.enable_x64(True):
        images = jnp.asarray(np.moveaxis(noise(), 2, -1))
        graph, state = nnx.split(jax_network())

        def draw(state, images):
            network = nnx.merge(graph, state)
            step = reverse.make_step(
                schedule_tables(config, np.float64, chain), config, kind, chain, network, self_condition=True
            )
            history = steps.initial_history(images[0], kind, self_condition=True)
            options = {"history": history, "self_condition": True}
            return reverse.reverse_process(step, network, images[0], chain, lambda t: images[T - t], **options)[0]

        ours = compiled(draw, quick=True)(state, images)
    assert_golden(np.moveaxis(np.asarray(ours), -1, 1), f"{sampler}_{objective}")


def test_heun_of_edm():
    """The package's sampler of Karras et al. without added noise: the second call gets the first one's x_0."""
    config, kind = (
        DiffusionConfig(objective="edm", clip="x0", sigma_min=0.002, sigma_max=80.0),
        SamplerConfig("heun", 6),
    )
    x_T, network = torch.from_numpy(noise()[0]) * config.initial_sigma, torch_network(EDM_NETWORK, "edm_keys")
    objective = torch_ref.objectives.make_objective(config, torch.float64)
    step, predict = torch_ref.sampling.solvers.make_solver(objective, kind, network, self_condition=True)
    with torch.no_grad():
        options = {"history": (torch.zeros_like(x_T),), "self_condition": True}
        images, _ = torch_ref.sampling.reverse.reverse_process(step, predict, x_T, 6, lambda i: None, **options)
    assert_golden(images.clamp(-1, 1), "edm_heun")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("given", [True, False])
def test_losses(given, objective, monkeypatch):
    """Losses and gradient norms with and without the predicted x_0; the package weighs v by snr / (snr + 1)."""
    golden = load(GOLDEN)
    x_0, t, drawn = (torch.from_numpy(golden[name]) for name in ("c", "t", "x"))
    monkeypatch.setattr(torch_ref.step, "prepare_images", lambda *_: x_0)
    monkeypatch.setattr(torch_ref.step, "draw_level_and_noise", lambda *_: (t, drawn))
    monkeypatch.setattr(torch_ref.step.rng, "bernoulli", lambda *_: torch.tensor(given))
    training = TrainingConfig(precision="float64", min_snr_gamma=1e30 if objective == "pred_v" else None)
    run = RunConfig(data=DataConfig(image_size=8), network=NETWORK, diffusion=settings(objective), training=training)
    network = torch_network()
    optimizer = torch_ref.step.make_optimizer(training, network)
    state = torch_ref.step.create_state(network, optimizer, ema=False, dtype=torch.float64)
    _, metrics = torch_ref.step.make_train_step(run, 10)(state, np.zeros((2, 8, 8, 1), np.uint8))
    expected = golden[f"loss_{'with' if given else 'without'}_{objective}"]
    np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], expected, rtol=1e-11)


def test_files_of_the_trainer(tmp_path):
    path, lines = tmp_path / "model-1.pt", []
    values = trainer_file(path, NETWORK, "v", "2.3.4")
    model = torch_ref.load_model(path, image_size=8, log=lines.append)
    assert model.info.network == NETWORK and model.info.image_shape == (8, 8, 1)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), values[name])


def test_learned_variance_excludes_it():
    with pytest.raises(UserError, match=r"^self_condition = True"):
        LucidrainsConfig(self_condition=True, learned_variance=True).check()


def test_dtypes_agree():
    """In float32 x_0 is cast to the dtype of the activations, as x is."""
    network = jax_network()
    weights.load_state_dict(network, weights.state_dict(network), np.float32)
    x = jnp.zeros((1, 8, 8, 1), jnp.float32)
    low = unets.build(NETWORK, 1, jnp.bfloat16)
    weights.load_state_dict(low, weights.state_dict(network), np.float32)
    for each in (network, low):
        assert jax.eval_shape(lambda x, each=each: each(x, jnp.array([1]), x_self_cond=x), x).dtype == jnp.float32


def test_solvers_return_what_they_predicted():
    """The history is the x_0 of the last call, limited as the settings say."""
    config, kind = DiffusionConfig(objective="flow", clip="x0"), SamplerConfig("euler", 3)
    step, predict = solvers.make_solver(make_objective(config), kind, lambda x, t, x_self_cond: 5 * x, True)
    x = jnp.ones((1, 2, 2, 1))
    _, (x_0,) = step(x, predict(x, 2, x_self_cond=x), jnp.int32(2), None, (x,))
    assert float(jnp.max(jnp.abs(x_0))) == 1
