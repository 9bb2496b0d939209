"""`ddpm` against the diffusers package, whose UNet2DModel it is: outputs, gradients, sampling."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from flax import nnx

import jax_ddpm
import torch_ref
import torch_ref.rng
from jax_ddpm import weights
from jax_ddpm.spec.write_model import save_model
from parity_tests import budgets
from parity_tests.diffusers_models import FAMILY, package_model
from parity_tests.golden_weights import rule
from parity_tests.measures import channels_first, channels_last, relative

torch.set_num_threads(1)
FAST_COMPILE = {"xla_backend_optimization_level": 0}


class TimeInDouble(torch.nn.Module):
    """The package computes sines in float32 whatever the model's dtype; this does so in float64."""

    def __init__(self, time_proj):
        super().__init__()
        half, shift = time_proj.num_channels // 2, time_proj.downscale_freq_shift
        exponent = -np.log(1e4) * torch.arange(half, dtype=torch.float32) / (half - shift)
        self.frequencies = torch.exp(exponent.double()).float().double().numpy()
        self.order = (np.cos, np.sin) if time_proj.flip_sin_to_cos else (np.sin, np.cos)

    def forward(self, t):
        phase = t.numpy()[:, None] * self.frequencies
        return torch.from_numpy(np.concatenate([function(phase) for function in self.order], axis=1))


def inputs(config, dtype):
    g = np.random.default_rng(3)
    size = config["sample_size"]
    shape = (3, *((size, size) if isinstance(size, int) else size), config.get("in_channels", 3))
    return g.standard_normal(shape).astype(dtype), np.array([0, 17, 999])


def slow_but_for(*names):
    """All of FAMILY; those that are not named are marked slow."""
    return pytest.mark.parametrize(
        "name", [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in FAMILY]
    )


@slow_but_for("centred input, gray, one group")
def test_outputs_in_float32(name, folders):
    x, t = inputs(FAMILY[name], np.float32)
    with torch.no_grad():
        wanted = channels_last(package_model(name)(channels_first(x), torch.from_numpy(t)).sample)
        theirs = channels_last(torch_ref.load_model(folders[name])(channels_first(x), torch.from_numpy(t)))
    model = jax_ddpm.load_model(folders[name])
    graph, state = nnx.split(model.network)
    ours = jax.jit(lambda state, x, t: nnx.merge(graph, state)(x, t), compiler_options=FAST_COMPILE)(state, x, t)
    assert wanted.shape == theirs.shape == ours.shape
    assert relative(theirs, wanted) <= budgets.DIFFUSERS[np.float32]
    assert relative(ours, wanted) <= budgets.DIFFUSERS[np.float32]


def torch_gradients(model, x, t) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Output, gradient of each parameter and of the input, of the mean square."""
    x = channels_first(x).requires_grad_()
    y = model(x, torch.from_numpy(t))
    y = getattr(y, "sample", y)
    torch.mean(torch.square(y)).backward()
    return channels_last(y), {name: p.grad.numpy() for name, p in model.named_parameters()}, channels_last(x.grad)


def package_in_double(name):
    package = package_model(name).double()
    package.time_proj = TimeInDouble(package.time_proj)
    return package


LARGER = (
    *("attention at all levels", "three levels, narrow in the middle", "three layers, attention on the way down"),
    *("two layers, attention on the way up", "time as scale and shift", "resampled by blocks, ReLU"),
    *("the package's choices", "attention resampled by blocks, scale and shift"),
)


@slow_but_for(*(name for name in FAMILY if name not in LARGER))
def test_outputs_in_float64(name, folders):
    x, t = inputs(FAMILY[name], np.float64)
    with torch.no_grad():
        wanted = channels_last(package_in_double(name)(channels_first(x), torch.from_numpy(t)).sample)
        model = torch_ref.load_model(folders[name], precision="float64")
        theirs = channels_last(model(channels_first(x), torch.from_numpy(t)))
    with jax.enable_x64(True):
        graph, state = nnx.split(jax_ddpm.load_model(folders[name], precision="float64").network)
        ours = jax.jit(lambda state, x, t: nnx.merge(graph, state)(x, t), compiler_options=FAST_COMPILE)(state, x, t)
    assert max(relative(ours, wanted), relative(theirs, wanted)) <= budgets.DIFFUSERS[np.float64]


@slow_but_for("learned variance, not square")
def test_outputs_and_gradients_in_float64(name, folders):
    x, t = inputs(FAMILY[name], np.float64)
    package = package_in_double(name)
    wanted = torch_gradients(package, x, t)
    theirs = torch_gradients(torch_ref.load_model(folders[name], precision="float64"), x, t)

    def loss(params, x, t):
        y = nnx.merge(graph, params, rest)(x, t)
        return jnp.mean(jnp.square(y)), y

    with jax.enable_x64(True):
        graph, params, rest = nnx.split(jax_ddpm.load_model(folders[name], precision="float64").network, nnx.Param, ...)
        both = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=FAST_COMPILE)
        (grads, x_grad), y = both(params, x, t)
        ours = y, weights.state_dict(nnx.merge(graph, grads, rest)), x_grad
    largest = max(np.abs(g).max() for g in wanted[1].values())
    for output, gradients, input_gradient in (ours, theirs):
        assert set(gradients) == set(wanted[1])
        apart = max(np.abs(gradients[key] - value).max() for key, value in wanted[1].items()) / largest
        assert relative(output, wanted[0]) <= budgets.DIFFUSERS[np.float64]
        assert max(apart, relative(input_gradient, wanted[2])) <= budgets.DIFFUSERS[np.float64]


class Halved(torch.nn.Module):
    def forward(self, h):
        return h / 2


def test_dropout_is_where_the_package_has_it(folders):
    """With h / 2, which is no dropout but like it comes before a convolution with a bias."""
    name = "two layers, attention on the way up"
    package = package_model(name)
    for module in package.modules():
        if isinstance(module, ResnetBlock2D):
            module.dropout = Halved()
    x, t = inputs(FAMILY[name], np.float32)
    with torch.no_grad():
        wanted = channels_last(package(channels_first(x), torch.from_numpy(t)).sample)
        theirs = torch_ref.load_model(folders[name])(channels_first(x), torch.from_numpy(t), dropout=Halved())
    ours = jax_ddpm.load_model(folders[name]).network(jnp.asarray(x), jnp.asarray(t), dropout=lambda h: h / 2)
    assert relative(channels_last(theirs), wanted) <= budgets.DIFFUSERS[np.float32]
    assert relative(ours, wanted) <= budgets.DIFFUSERS[np.float32]


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sines first, not shifted", {"variance_type": "fixed_large"}),
        ("sines first, not shifted", {"variance_type": "fixed_small", "clip_sample": False}),
        ("learned variance, not square", {"variance_type": "learned_range"}),
        (
            "no middle, Mish",
            {
                **{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
                **{"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.2},
            },
        ),
    ],
)
def test_pipelines_sample_alike(name, settings, folders, tmp_path):
    scheduler = DDPMScheduler(num_train_timesteps=12, beta_end=0.3, **settings)
    unet = UNet2DModel.from_pretrained(folders[name])
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    models = {package: package.load_model(tmp_path) for package in (jax_ddpm, torch_ref)}
    keys = torch_ref.rng.fold_in(torch_ref.rng.key(5, torch_ref.rng.SAMPLING), np.arange(2))

    def noise(t):
        return torch_ref.rng.normal(torch_ref.rng.fold_in(keys, t), models[torch_ref].info.image_shape).permute(
            0, 3, 1, 2
        )

    x = noise(12)
    for t in reversed(range(12)):
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, t=t, **__: noise(t)):
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample.detach()
    for package, model in models.items():
        assert relative(package.sample(model, 2, seed=5), channels_last(x)) <= budgets.DIFFUSERS_SAMPLES


@pytest.mark.parametrize(
    "kind",
    ["table", pytest.param("timestep", marks=pytest.mark.slow), pytest.param("identity", marks=pytest.mark.slow)],
)
def test_labels_are_the_packages(kind, tmp_path):
    """Folders with labels are read, give the package's outputs, and are written back so that the package reads them."""
    settings = {"num_class_embeds": 5} if kind == "table" else {"class_embed_type": kind}
    package = UNet2DModel(**FAMILY["cosines first, shifted"], **settings).eval()
    filled = {key: torch.from_numpy(rule(key, tuple(value.shape))) for key, value in package.state_dict().items()}
    package.load_state_dict(filled)
    package.save_pretrained(tmp_path / "theirs")
    x, t = inputs(FAMILY["cosines first, shifted"], np.float32)
    labels = np.array([4, 0, 2])
    if kind == "identity":
        labels = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)

    def predicted(network):
        return channels_last(network(channels_first(x), torch.from_numpy(t), torch.from_numpy(labels)))

    with torch.no_grad():
        wanted = channels_last(package(channels_first(x), torch.from_numpy(t), torch.from_numpy(labels)).sample)
        assert relative(predicted(torch_ref.load_model(tmp_path / "theirs")), wanted) <= budgets.DIFFUSERS[np.float32]
    model = jax_ddpm.load_model(tmp_path / "theirs")
    assert model.info.network.label_count == (5 if kind == "table" else None) and model.info.network.null_index is None
    assert (
        relative(jax.jit(model.__call__, compiler_options=FAST_COMPILE)(x, t, labels), wanted)
        <= (budgets.DIFFUSERS[np.float32])
    )

    info = model.info
    if kind == "table":  # diffusers does not know null labels and names: they are fields that it ignores
        model = jax_ddpm.load_model(tmp_path / "theirs", network_settings={"null_label": True})
        info = replace(model.info, class_names=("a", "b", "c", "d"))
        assert info.network.null_index == 4
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", weights.state_dict(model.network), info, diffusers=True)
    again, notes = UNet2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(notes.values())
    with torch.no_grad():
        same = again.eval()(channels_first(x), torch.from_numpy(t), torch.from_numpy(labels)).sample
    np.testing.assert_array_equal(channels_last(same), wanted)
    read = jax_ddpm.load_model(tmp_path / "ours").info
    assert read.network == info.network and read.class_names == info.class_names
