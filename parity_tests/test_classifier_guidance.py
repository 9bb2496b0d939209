"""Classifier guidance: golden numbers of guided-diffusion, files of its classifiers, algebra, and errors.

The golden numbers are float64. Those of the networks are by the code of EncoderUNetModel, without its casts to float32;
those of the samples by the formulas of p_sample and ddim_sample, written apart from this package.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.sampling.classifier_guidance import class_gradient
from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.labels import Labels, labels_of_images
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.noisy_classifier import NoisyClassifierInfo, check_noisy_classifier
from jax_ddpm.spec.recognise_adm_classifier import recognise_adm_classifier
from jax_ddpm.spec.spacing import spaced_timesteps
from jax_ddpm.spec.write_model import write_model
from parity_tests import budgets, measures_classifier_guidance, measures_guidance
from parity_tests.golden_weights import GOLDEN, golden_state_dict
from parity_tests.measures import compiled, random_weights, relative, twin
from torch_ref.sampling import classifier_guidance
from torch_ref.sampling.reverse import make_step
from torch_ref.schedules import schedule_tables

SMALL = {"widths": (32, 64), "num_res_blocks": 1, "num_head_channels": 16, "num_classes": 5}
GOLDEN_NETWORKS = {  # by the arguments that EncoderUNetModel had when the numbers were made
    "attention": ADMClassifierConfig(**SMALL, attention=(False, True), map_size=4),
    "adaptive": ADMClassifierConfig(
        **{**SMALL, "attention": (True, False), "use_new_attention_order": True, "use_scale_shift_norm": False},
        **{"resblock_updown": False, "pool": "adaptive", "map_size": None},
    ),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "adm_classifier.npz", allow_pickle=False) as file:
        return dict(file)


def golden_twin(golden, name: str) -> torch.nn.Module:
    return twin(golden_state_dict(golden[f"{name}_keys"], {}), GOLDEN_NETWORKS[name], 3, np.float64)


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_the_twin_gives_the_golden_numbers(golden, name):
    """Logits of EncoderUNetModel, and gradients of cond_fn."""
    theirs = golden_twin(golden, name)
    x, t, classes = (torch.from_numpy(golden[key]) for key in ("x", "t", "classes"))
    gradient = classifier_guidance.class_gradient(theirs, classes, 1.0)(x, t)
    assert relative(theirs(x, t).detach(), golden[f"{name}_logits"]) <= budgets.GOLDEN_NETWORK_FLOAT64
    assert relative(gradient, golden[f"{name}_gradient"]) <= budgets.GOLDEN_NETWORK_FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_golden_numbers(golden, name):
    t, classes = jnp.asarray(golden["t"]), jnp.asarray(golden["classes"])
    with jax.enable_x64(True):
        network = unets.build(GOLDEN_NETWORKS[name], 3)
        weights.load_state_dict(network, golden_state_dict(golden[f"{name}_keys"], {}), np.float64)
        graph, state = nnx.split(network)

        def outputs(state, x):
            ours = nnx.merge(graph, state)
            return ours(x, t), class_gradient(ours, classes, 1.0)(x, t)

        x = jnp.asarray(np.moveaxis(golden["x"], 1, -1))
        logits, gradient = compiled(outputs, quick=True)(state, x)
    assert relative(logits, golden[f"{name}_logits"]) <= budgets.GOLDEN_NETWORK_FLOAT64
    wanted = np.moveaxis(golden[f"{name}_gradient"], 1, -1)
    assert relative(gradient, wanted) <= budgets.GOLDEN_NETWORK_FLOAT64


@pytest.mark.parametrize("sampler", [SamplerConfig("ddpm", 8), SamplerConfig("ddim", 8, eta=0.5)])
def test_golden_samples(golden, sampler):
    """p_sample and ddim_sample with cond_fn: 40 cosine timesteps respaced to 8, a formula for the model, scale 20."""
    config = DiffusionConfig(timesteps=40, schedule="cosine", variance="learned_range")
    chain = spaced_timesteps("linspace", 8, schedule_tables(config).alpha_bars)
    np.testing.assert_array_equal(chain[::-1], golden["timesteps"])
    tables = schedule_tables(config, np.float64, chain)
    noise = np.random.default_rng(int(golden["noise_seed"])).standard_normal((9, 2, 3, 8, 8))
    gradient = classifier_guidance.class_gradient(
        golden_twin(golden, "attention"), torch.from_numpy(golden["classes"]), 20.0
    )

    def predict(x, t):
        return torch.cat(
            [0.5 * torch.tanh(x) + 0.1 * torch.cos(0.25 * t.double()).reshape(-1, 1, 1, 1), torch.sin(x)], 1
        )

    if sampler.sampler != "ddpm":
        config, predict = classifier_guidance.guided_by_classifier(tables, config, predict, gradient)
    step = make_step(tables, config, sampler, chain, predict, False, gradient)
    x = torch.from_numpy(noise[0])
    for t, of_step in zip(map(int, chain), noise[1:], strict=True):
        x = step(x, predict(x, torch.full((2,), t)), t, torch.from_numpy(of_step))
    assert relative(x, golden[sampler.sampler]) <= budgets.SAMPLES_FLOAT64


def test_without_limits_both_algorithms_agree_as_steps_shrink():
    """Algorithm 1 shifts the mean by beta_t g; by Algorithm 2 it would be (beta_t / sqrt(alpha_t)) g."""
    config = DiffusionConfig(timesteps=1000, clip="none")
    tables, x = (
        schedule_tables(config, np.float64),
        torch.from_numpy(np.random.default_rng(1).standard_normal((1, 2, 3, 4))),
    )
    t, eps, g = 400, torch.cos(x), torch.sin(3 * x)
    step = make_step(tables, config, SamplerConfig(), np.arange(1000)[::-1], None)
    shifted = make_step(tables, config, SamplerConfig(), np.arange(1000)[::-1], None, gradient=lambda x, t: g)
    first = shifted(x, eps, t, 0 * x) - step(x, eps, t, 0 * x)
    np.testing.assert_allclose(first, tables.betas[t] * g, rtol=1e-9)
    guided, predict = classifier_guidance.guided_by_classifier(tables, config, lambda x, t: eps, lambda x, t: g)
    x_0 = predict(x, torch.tensor([t]))
    other = make_step(tables, guided, SamplerConfig(), np.arange(1000)[::-1], None)
    second = other(x, x_0, t, 0 * x) - step(x, eps, t, 0 * x)
    np.testing.assert_allclose(second, first, rtol=0.01)


def test_a_scale_of_0_changes_nothing_and_compiles_nothing_anew():
    formula, chain = measures_guidance.Formula(), measures_classifier_guidance.CHAINS["ddpm, learned variance"]
    labels = chain.labels

    def drawn(labels, **settings):
        return np.asarray(
            jax_ddpm.sampling.samplers.sample_indices(
                *(formula, chain.config, measures_guidance.SHAPE, 3, np.arange(4)),
                **{"sampler": chain.sampler, "labels": labels, **settings},
            )[0]
        )

    classifier = measures_classifier_guidance.Formula()
    unguided = drawn(Labels(labels.wanted))
    np.testing.assert_allclose(drawn(labels, classifier=classifier, classifier_scale=0.0), unguided, atol=1e-6)
    compiled_before = jax_ddpm.sampling.samplers._sample._cache_size()
    guided = drawn(labels, classifier=classifier, classifier_scale=5.0)
    assert jax_ddpm.sampling.samplers._sample._cache_size() == compiled_before
    assert np.abs(guided - unguided).max() > 0.1


PUBLISHED = {  # the settings of the published files, by the flags in guided-diffusion's README
    "64x64_classifier": (64, ADMClassifierConfig()),
    "128x128_classifier": (
        128,
        ADMClassifierConfig(
            widths=(128, 128, 256, 384, 512), num_res_blocks=2, attention=(False, False, True, True, True)
        ),
    ),
    "256x256_classifier": (
        256,
        ADMClassifierConfig(
            widths=(128, 128, 256, 256, 512, 512), num_res_blocks=2, attention=(*[False] * 3, *[True] * 3)
        ),
    ),
    "512x512_classifier": (
        512,
        ADMClassifierConfig(
            widths=(64, 128, 128, 256, 256, 512, 512),
            model_channels=128,
            num_res_blocks=2,
            attention=(*[False] * 4, *[True] * 3),
        ),
    ),
}


def zeros(config, channels=3) -> dict[str, np.ndarray]:
    shapes = torch_ref.weights.array_shapes(config, channels)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("config", [*(config for _, config in PUBLISHED.values()), *GOLDEN_NETWORKS.values()])
def test_recognised_by_names_and_shapes(config):
    recognised = recognise_adm_classifier(zeros(config))
    assert recognised.with_settings({name: getattr(config, name) for name in recognised.not_shown}) == config


def test_published_classifiers_take_their_images():
    for size, config in PUBLISHED.values():
        config.check(size)
        with pytest.raises(UserError, match=f"this classifier takes {size}x{size} pixels"):
            config.check((size, size // 2))


def test_levels_that_shapes_do_not_show():
    equal = ADMClassifierConfig(widths=(32, 32), num_res_blocks=3, attention=(False, False), num_head_channels=32)
    with pytest.raises(UserError, match="4 levels of 1 blocks or 2 levels of 3 blocks"):
        recognise_adm_classifier(zeros(equal))
    pooled = replace(equal, resblock_updown=False, conv_resample=False)
    recognised = recognise_adm_classifier(zeros(pooled))
    assert recognised.config.widths == (32, 32) and recognised.config.num_res_blocks == 3
    assert not recognised.config.conv_resample and not recognised.config.resblock_updown


@pytest.mark.parametrize("seed", range(40))
def test_damaged_names_and_shapes(seed):
    """Any subset of names, with shapes changed: recognised or refused, without another exception."""
    g = np.random.default_rng(seed)
    config = g.choice([*GOLDEN_NETWORKS.values()])
    shapes = dict(torch_ref.weights.array_shapes(config, 3))
    for name in g.choice(list(shapes), 3):
        if g.random() < 0.5:
            shapes.pop(name, None)
        elif name in shapes:
            shapes[name] = tuple(map(int, g.integers(0, 9, g.integers(0, 5))))
    try:
        values = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        recognised = recognise_adm_classifier(values)
        if recognised is not None:
            recognised.with_settings({})
    except UserError:
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (48,)}, "widths = (48,): expected at least one, all multiples of 32"),
        ({"model_channels": 31}, "model_channels = 31: expected an even number"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0"),
        ({"attention": (True,)}, "attention = (True,): expected 4 values"),
        ({"num_head_channels": 48}, "num_head_channels = 48: expected a divisor"),
        ({"time_scale": float("nan")}, "time_scale = nan"),
        ({"pool": "spatial"}, "pool = spatial: expected one of adaptive, attention"),
        ({"map_size": None}, "map_size = None: expected at least 1 with the pool attention"),
        ({"num_classes": 1}, "num_classes = 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError) as error:
        ADMClassifierConfig(**settings).check()
    assert message in str(error.value)


TINY = ADMClassifierConfig(widths=(32,), num_res_blocks=1, attention=(False,), num_head_channels=32, map_size=4)
TINY = replace(TINY, num_classes=3)
NETWORK = ConvBlockConfig(widths=(32,), time_width=32)
INFO = ModelInfo(NETWORK, (4, 4, 1), DiffusionConfig(timesteps=6, beta_start=0.2, beta_end=0.6))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model without labels, and a classifier for its images, with random weights."""
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "model.safetensors", random_weights(NETWORK, 1), INFO)
    values = {name: torch.from_numpy(value) for name, value in random_weights(TINY, 1).items()}
    torch.save(values, folder / "classifier.pt")
    return folder


SETTINGS = {"num_head_channels": 32}


@pytest.mark.parametrize("sampler", [pytest.param("ddpm", marks=pytest.mark.slow), "ddim"])
def test_both_frameworks_draw_the_same_from_files(files, sampler):
    drawn, lines = [], []
    for package in (jax_ddpm, torch_ref):
        classifier = package.load_noisy_classifier(files / "classifier.pt", network_settings=SETTINGS, log=lines.append)
        given = {"labels": [0, 2, 1], "classifier": classifier, "classifier_scale": 3.0, "sampler": sampler}
        drawn.append(package.sample(package.load_model(files / "model.safetensors"), 3, 5, **given))
    np.testing.assert_allclose(*drawn, atol=budgets.SAMPLING[np.float32])
    unguided = torch_ref.sample(files / "model.safetensors", 3, 5, sampler=sampler)
    assert np.abs(drawn[1] - unguided).max() > 0.01
    assert lines[0] == lines[2] and lines[0].startswith("Took the weights in")
    assert lines[1].endswith("use_new_attention_order False, time_scale 1.0.")


@pytest.mark.parametrize("package", [jax_ddpm, torch_ref])
def test_files_that_are_mistaken(files, tmp_path, package):
    with pytest.raises(UserError, match="are of a classifier of noisy images"):
        package.load_model(files / "classifier.pt")
    with pytest.raises(UserError, match="is no classifier of noisy images"):
        package.load_noisy_classifier(files / "model.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        package.load_noisy_classifier(files)
    with pytest.raises(UserError, match=r"num_head_channels = 64: expected a divisor.*\[32\]"):
        package.load_noisy_classifier(files / "classifier.pt", log=lambda line: None)
    values = torch.load(files / "classifier.pt", weights_only=True)
    del values["out.0.bias"]
    torch.save(values, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"Missing: out.0.bias \(32,\)"):
        package.load_noisy_classifier(tmp_path / "part.pt", network_settings=SETTINGS)
    values["out.0.weight"] = torch.zeros(2048, 96)
    values = {name: value for name, value in values.items() if not name.startswith("out.2.")}
    torch.save(values, tmp_path / "spatial.pt")
    with pytest.raises(UserError, match="pooling spatial"):
        package.load_noisy_classifier(tmp_path / "spatial.pt")
    with pytest.raises(UserError, match="is no classifier of noisy images"):
        torch.save(
            {
                name: torch.from_numpy(a.copy())
                for name, a in zeros(ADMConfig(widths=(32,), attention=(False,))).items()
            },
            tmp_path / "adm.pt",
        )
        package.load_noisy_classifier(tmp_path / "adm.pt")


CLASSIFIER = NoisyClassifierInfo(TINY, 1)
LABELLED = replace(INFO, network=NETWORK.with_classes(3), class_names=("shirt", "shoe", "bag"))


def test_labels_of_the_model_and_of_the_classifier():
    of_classifier = labels_of_images(INFO, None, 4, SamplerConfig(), None, CLASSIFIER)
    assert of_classifier.wanted is None and of_classifier.of_classifier.tolist() == [0, 1, 2, 0]
    named = labels_of_images(LABELLED, ["bag", 0], 2, SamplerConfig(guidance=2.0), None, CLASSIFIER)
    assert named.wanted.tolist() == named.of_classifier.tolist() == [2, 0] and named.none.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("info", "labels", "said"),
    [
        (INFO, 3, "labels = 3: expected a class from 0 to 2"),
        (INFO, "none", "no null label"),
        (LABELLED, "none", "every image needs a class"),
        (LABELLED, np.ones((2, 4)) / 4, "every image needs a class"),
        (
            replace(INFO, network=NETWORK.with_classes(4)),
            1,
            "number of classes of the classifier = 3: expected the model's",
        ),
    ],
)
def test_labels_that_do_not_fit(info, labels, said):
    with pytest.raises(UserError, match=said):
        labels_of_images(info, labels, 2, SamplerConfig(), None, CLASSIFIER)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": float("nan")}, "classifier_scale = nan: expected a finite number"),
        ({"scale": "1"}, "classifier_scale = 1"),
        ({"image_shape": (4, 4, 3)}, "channels of the classifier = 1: expected the model's 3"),
        ({"image_shape": (8, 8, 1)}, "this classifier takes 4x4 pixels"),
        ({"config": DiffusionConfig(objective="edm")}, "objective = edm: a classifier needs timesteps"),
        ({"config": DiffusionConfig(data_range=(0.0, 1.0))}, "a classifier takes images from -1 to 1"),
    ],
)
def test_models_that_a_classifier_cannot_guide(changes, said):
    with pytest.raises(UserError, match=said):
        check_noisy_classifier(
            CLASSIFIER, **{"scale": 1.0, "config": INFO.diffusion, "image_shape": (4, 4, 1), **changes}
        )


@pytest.mark.parametrize("package", [jax_ddpm, torch_ref])
def test_arguments_that_do_not_fit(files, package):
    model = package.load_model(files / "model.safetensors")
    with pytest.raises(UserError, match="no effect without a classifier"):
        package.sample(model, 1, classifier_scale=2.0)
    with pytest.raises(UserError, match="classifier = int: expected what load_noisy_classifier returns"):
        package.sample(model, 1, classifier=3)
    classifier = package.load_noisy_classifier(files / "classifier.pt", network_settings=SETTINGS)
    network = getattr(model, "network", None) or package.build(NETWORK)
    with pytest.raises(UserError, match="a classifier needs what load_model returns"):
        package.sample(network, 1, config=INFO.diffusion, image_shape=(4, 4, 1), classifier=classifier)
    to_noise = replace(INFO.diffusion, zero_terminal_snr=True, objective="v")
    with pytest.raises(UserError, match="At zero terminal SNR a classifier guides with the sampler ddpm only"):
        package.sample(model, 1, classifier=classifier, config=to_noise, sampler="ddim")
