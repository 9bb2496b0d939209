"""`adm` against the golden numbers of OpenAI's UNetModel, and files in the form of their trainer's and of their own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm
import torch_ref
from jax_ddpm import data, unets, weights
from jax_ddpm.commands.convert import main as convert
from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.published import PUBLISHED
from jax_ddpm.spec.recognise_adm import recognise_adm
from jax_ddpm.spec.spacing import spaced_timesteps
from parity_tests import budgets, measures
from parity_tests.golden_weights import GOLDEN, golden_state_dict
from parity_tests.measures import compiled
from parity_tests.networks import CASES, VARIANTS
from torch_ref.sampling.steps import ancestral_step
from torch_ref.schedules import schedule_tables

GOLDEN_NETWORKS = {  # by the arguments that UNetModel had when the numbers were made
    "guided": ADMConfig(
        **{"widths": (32, 64), "model_channels": 64, "num_res_blocks": 1, "attention": (False, True)},
        **{"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True, "time_scale": 0.25},
        **{"learned_variance": True, "num_classes": 5},
    ),
    "improved": ADMConfig(
        **{"widths": (32, 64), "num_res_blocks": 1, "attention": (True, False), "num_heads_upsample": 2},
        use_scale_shift_norm=False,
    ),
    "pooled": ADMConfig(widths=(32, 32), num_res_blocks=1, attention=(False, False), conv_resample=False, num_heads=1),
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"adm_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def budget_of(dtype) -> float:
    return budgets.GOLDEN_NETWORK_FLOAT64 if dtype == np.float64 else budgets.GOLDEN_NETWORK_FLOAT32["adm"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_the_twin_gives_the_golden_numbers(name, dtype):
    golden, config = load(name), GOLDEN_NETWORKS[name]
    values = golden_state_dict(golden["keys"], {})
    x, t, *labels = (torch.from_numpy(golden[key]) for key in ("x", "t", "labels") if key in golden)
    network, x = measures.twin(values, config, 3, dtype), x.to(measures.TORCH[dtype]).requires_grad_()
    y = network(x, t, *labels)
    loss = torch.mean(y**2)
    loss.backward()
    for ours, key in ((y, "y"), (x.grad, "x_grad"), (loss, "loss")):
        assert measures.relative(ours.detach(), golden[key]) <= budget_of(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_golden_numbers(name, dtype):
    golden, config = load(name), GOLDEN_NETWORKS[name]
    with jax.enable_x64(dtype == np.float64):
        network = unets.build(config, 3)
        weights.load_state_dict(network, golden_state_dict(golden["keys"], {}), dtype)
        x, t = jnp.asarray(channels_last(golden["x"]).astype(dtype)), jnp.asarray(golden["t"])
        labels = [jnp.asarray(golden["labels"])] if "labels" in golden else []
        graph, state = nnx.split(network)

        def outputs(state, x):
            def loss(x):
                y = nnx.merge(graph, state)(x, t, *labels)
                return jnp.mean(y**2), y

            (value, y), x_grad = jax.value_and_grad(loss, has_aux=True)(x)
            return y, x_grad, value

        ours = compiled(outputs, quick=True)(state, x)
    theirs = channels_last(golden["y"]), channels_last(golden["x_grad"]), golden["loss"]
    assert ours[0].dtype == dtype
    for a, b in zip(ours, theirs, strict=True):
        assert measures.relative(a, b) <= budget_of(dtype)


@pytest.mark.parametrize("variance", ["learned_range", "beta"])
def test_the_twin_samples_as_respaced(variance):
    """40 timesteps respaced to 10, as by SpacedDiffusion, with a formula for the network that sees its t."""
    golden = load("respaced")
    config = DiffusionConfig(timesteps=40, schedule="cosine", variance=variance)
    chain = spaced_timesteps("linspace", 10, schedule_tables(config).alpha_bars)
    np.testing.assert_array_equal(chain[::-1], golden["timesteps"])
    tables = schedule_tables(config, np.float64, chain)
    noise = torch.from_numpy(golden["noise"]).double()
    x = noise[0]
    for t, of_step in zip(map(int, chain), noise[1:], strict=False):
        eps = 0.5 * torch.tanh(x) + 0.1 * np.cos(0.25 * t)
        prediction = torch.cat([eps, torch.sin(x)], dim=1) if variance == "learned_range" else eps
        x = ancestral_step(tables, config, x, prediction, t, of_step)
    assert measures.relative(x, golden[variance]) <= budgets.SAMPLES_FLOAT64


def test_spacings_of_timestep_respacing():
    """The timesteps of "250" of 1000, "100" of 4000, "ddim50" of 1000 and "ddim25" of 4000."""
    golden = load("respaced")
    for T, steps, spacing in (
        (1000, 250, "linspace"),
        (4000, 100, "linspace"),
        (1000, 50, "leading"),
        (4000, 25, "leading"),
    ):
        chain = spaced_timesteps(spacing, steps, np.linspace(0.99, 0.01, T))
        np.testing.assert_array_equal(chain[::-1], golden[f"{spacing}_{steps}"])


PARAMETERS = {  # in millions, as published: Nichol & Dhariwal 2021; Dhariwal & Nichol 2021, table 4 and its model card
    "cifar10_uncond_50M_500K": 52.5,
    "64x64_diffusion": 296,
    "128x128_diffusion": 422,
    "256x256_diffusion": 554,
    "256x256_diffusion_uncond": 552,
    "512x512_diffusion": 559,
    "lsun_bedroom": 552,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_recognised(name):
    model = PUBLISHED[name]
    model.network.check(model.image_size, model.diffusion.timesteps)
    shapes = torch_ref.weights.array_shapes(model.network, 3)
    values = {name: np.broadcast_to(np.float16(0), shape) for name, shape in shapes.items()}
    recognised = recognise_adm(values)
    assert recognised.image_channels == 3 and model.fits(recognised)
    assert recognised.with_settings(model.proposed({})) == replace(model.network, dropout=0.0)
    if name in PARAMETERS:
        assert sum(map(np.size, values.values())) == pytest.approx(1e6 * PARAMETERS[name], rel=0.005)


SMALL = ADMConfig(widths=(32,), num_res_blocks=1, attention=(True,), learned_variance=True)


def state_dict(config=SMALL, dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    """As UNetModel saves it: tensors under its own names, and nothing else."""
    g = np.random.default_rng(seed)
    shapes = torch_ref.weights.array_shapes(config, 3)
    return {name: torch.from_numpy(0.1 * g.standard_normal(shape)).to(dtype) for name, shape in shapes.items()}


def test_files_of_the_trainer(tmp_path):
    """Averages and raw weights are known by the file's name; half precision becomes float32."""
    folder = tmp_path / "logs"
    folder.mkdir()
    saved = {"model010000": 1, "ema_0.99_010000": 2, "ema_0.9999_010000": 3, "ema_0.9999_005000": 4, "opt010000": 5}
    for name, seed in saved.items():
        torch.save(state_dict(dtype=torch.float16, seed=seed), folder / f"{name}.pt")

    def loaded(path, **settings):
        lines: list[str] = []
        model = torch_ref.load_model(path, 4, log=lines.append, **settings)
        weight = model.out[2].weight.detach()
        assert weight.dtype == torch.float32
        (seed,) = (
            s
            for s in saved.values()
            if torch.equal(state_dict(dtype=torch.float16, seed=s)["out.2.weight"].float(), weight)
        )
        return seed, lines, model

    assert loaded(folder)[0] == 3 and loaded(folder, weights="raw")[0] == 1
    seed, lines, model = loaded(folder / "ema_0.99_010000.pt")
    assert seed == 2 and lines[0].startswith(f"Took the EMA weights in {folder / 'ema_0.99_010000.pt'}.")
    assert "num_heads=4" in lines[1] and "time_scale=1.0" in lines[1] and "timesteps=1000" in lines[1]
    assert model.info.network == SMALL and model.info.diffusion == DiffusionConfig(variance="learned_range")
    assert loaded(folder / "model010000.pt")[1][0].startswith("Took the raw weights in")
    with pytest.raises(UserError, match="averaged weights, by its name: its raw weights are in model010000"):
        loaded(folder / "ema_0.99_010000.pt", weights="raw")
    with pytest.raises(UserError, match="holds no complete EMA weights"):
        loaded(folder / "model010000.pt", weights="ema")


def test_the_name_of_a_published_file_proposes_settings(tmp_path, monkeypatch):
    config = ADMConfig(**{**SMALL.arguments, "num_head_channels": 8, "use_new_attention_order": True})
    known = replace(PUBLISHED["64x64_diffusion"], network=config)
    monkeypatch.setitem(PUBLISHED, "64x64_diffusion", known)
    file = tmp_path / "64x64_diffusion.pt"
    torch.save(state_dict(), file)
    lines: list[str] = []
    info = torch_ref.load_model(file, log=lines.append).info
    assert info.network == config and info.image_shape == (64, 64, 3) and info.diffusion == known.diffusion
    assert "is that of a model of guided-diffusion" in lines[1] and "num_head_channels=8" in lines[2]
    given = {"num_heads": 2, "use_new_attention_order": False}
    info = torch_ref.load_model(file, 32, network_settings=given, timesteps=500, log=print).info
    assert info.network == replace(SMALL, num_heads=2) and info.image_shape == (32, 32, 3)
    assert info.diffusion == replace(known.diffusion, timesteps=500)
    torch.save(state_dict(replace(SMALL, learned_variance=False)), file)  # another network of that name
    info = torch_ref.load_model(file, 8, log=print).info
    assert info.network == replace(SMALL, learned_variance=False) and info.diffusion == DiffusionConfig()


def test_a_checkpoint_there_and_back(tmp_path):
    theirs = tmp_path / "model000001.pt"
    torch.save(state_dict(), theirs)
    convert([str(theirs), str(tmp_path / "ours.safetensors"), "--image-size", "4"], "jax-ddpm convert")
    convert([str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pt")], "jax-ddpm convert")
    back, wanted = torch.load(tmp_path / "back.pt", weights_only=True), state_dict()
    assert set(back) == set(wanted) and all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_other_networks_with_these_names_are_refused(tmp_path):
    values = state_dict()
    values["input_blocks.0.0.weight"] = torch.zeros(32, 6, 3, 3)
    torch.save(values, tmp_path / "64_256_upsampler.pt")
    with pytest.raises(UserError, match="looks like a super-resolution model"):
        torch_ref.load_model(tmp_path / "64_256_upsampler.pt")
    values = {f"model.diffusion_model.{name}": value for name, value in state_dict().items()}
    values["first_stage_model.decoder.conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    torch.save({"state_dict": values}, tmp_path / "latent.ckpt")
    with pytest.raises(UserError, match="autoencoder of a latent diffusion model"):
        torch_ref.load_model(tmp_path / "latent.ckpt")
    values = state_dict()
    values["input_blocks.1.1.transformer_blocks.0.norm1.weight"] = torch.zeros(32)
    torch.save(values, tmp_path / "text.pt")
    with pytest.raises(UserError, match="Nearest: adm in"):
        torch_ref.load_model(tmp_path / "text.pt")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_names_and_shapes(seed):
    """Any subset of names, with shapes changed: recognised or refused, without another exception."""
    g = np.random.default_rng(seed)
    config = g.choice([SMALL, CASES["adm"].config, *(c.config for n, c in VARIANTS.items() if n.startswith("adm"))])
    shapes = dict(torch_ref.weights.array_shapes(config, 3))
    for name in g.choice(list(shapes), 3):
        if g.random() < 0.5:
            shapes.pop(name, None)
        elif name in shapes:
            shapes[name] = tuple(g.integers(0, 9, g.integers(0, 5)))
    try:
        recognised = recognise_adm({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
        if recognised is not None:
            recognised.with_settings({})
    except UserError:
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (48,)}, "widths = (48,): expected at least one, all multiples of 32"),
        ({"widths": ()}, "widths = ()"),
        ({"model_channels": 31}, "model_channels = 31: expected an even number"),
        ({"attention": (True,)}, "attention = (True,): expected 4 values"),
        ({"num_heads": 3}, "num_heads = 3: expected a divisor of the channels of levels with attention, [256]"),
        ({"num_heads_upsample": 0}, "num_heads_upsample = 0"),
        ({"num_head_channels": 48}, "num_head_channels = 48"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0"),
        ({"time_scale": float("nan")}, "time_scale = nan"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"null_label": True}, "null_label = True: expected False without classes"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError) as error:
        ADMConfig(**settings).check(32)
    assert message in str(error.value)
    with pytest.raises(UserError, match="multiple of 8"):
        ADMConfig().check(20)


def test_zero_initial_values():
    """The last layers of blocks and of the network start at zero, as in OpenAI's packages."""
    network = torch_ref.build(CASES["adm"].config, 3)
    torch_ref.weights.initialise(network, 0)
    zeros = {name for name, value in network.named_parameters() if not value.any() and ".norm" not in name}
    ends = ("out_layers.3.weight", "proj_out.weight", "out.2.weight")
    assert {name for name in zeros if name.endswith("weight")} == {
        name for name, _ in network.named_parameters() if name.endswith(ends)
    }


@pytest.mark.slow
def test_1000_steps_with_a_file_of_the_trainer(tmp_path):
    """Both frameworks load the same file and draw the same pictures."""
    torch.save(state_dict(), tmp_path / "ema_0.9999_010000.pt")
    ours, theirs = (
        package.load_model(tmp_path / "ema_0.9999_010000.pt", 8, log=print) for package in (jax_ddpm, torch_ref)
    )
    a, b = jax_ddpm.sample(ours, 2, 11), torch_ref.sample(theirs, 2, 11)
    difference = np.abs(data.to_uint8(a).astype(int) - data.to_uint8(b))
    assert difference.max() <= 1 and np.mean(difference != 0) <= budgets.PIXELS_FLOAT32
    assert np.std(a) > 0.1
