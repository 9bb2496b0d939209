"""Guidance: its algebra, another program's numbers, and what it leaves unchanged; in both frameworks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torch_ref.sampling.guidance
import torch_ref.sampling.samplers
from jax_ddpm import diffusion
from jax_ddpm.sampling import guidance, samplers
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from parity_tests.guidance_reference import SETTINGS, SHOWN, outputs
from parity_tests.measures_guidance import LABELS, NULL, SCHEDULE, SHAPE, Formula, TorchFormula
from parity_tests.twins import networks

PRINTED = {  # by `python -m parity_tests.guidance_reference`, with denoising-diffusion-pytorch 2.3.4
    "plain": [-0.8376818430216606, -2.430916174932393, 7.6191976387910305, 2.7683023711513735],
    "rescaled": [-1.1552888221641249, -2.4853408416472895, 7.4681321962359215, 2.811755494298855],
    "towards no label": [0.6792452215087246, 0.43713964426687074, 0.6844897883462759, 0.09431725388111123],
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", SETTINGS)
def test_numbers_of_another_program(name):
    weight, rescale = SETTINGS[name]
    sampler, t = SamplerConfig(guidance=weight, guidance_rescale=rescale), np.zeros(2, int)
    arrays = outputs()
    theirs = torch_ref.sampling.guidance.guided_prediction(
        sampler, torch.from_numpy(arrays[0]), torch.from_numpy(t), *map(torch.from_numpy, arrays)
    )
    last = [jnp.asarray(np.moveaxis(a, 1, -1)) for a in arrays]
    ours = np.moveaxis(np.asarray(guidance.guided_prediction(sampler, last[0], jnp.asarray(t), *last)), -1, 1)
    np.testing.assert_allclose([theirs[place].item() for place in SHOWN], PRINTED[name], rtol=1e-12)
    np.testing.assert_allclose([ours[place] for place in SHOWN], PRINTED[name], rtol=1e-12)


def test_eps_x_0_and_v_are_guided_alike():
    tables, t = schedule_tables(DiffusionConfig(timesteps=40), np.float64), jnp.array([0, 7, 39])
    x, eps, other = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 4, 4, 2)))
    sampler = SamplerConfig(guidance=3.5)

    def guided_eps(objective):
        x_0 = [diffusion.predicted_x_0(tables, "eps", x, t, each) for each in (eps, other)]
        signal, noise = (
            diffusion.extract(table, t) for table in (tables.sqrt_alpha_bars, tables.sqrt_one_minus_alpha_bars)
        )
        both = {
            "eps": (eps, other),
            "x0": x_0,
            "v": [signal * e - noise * c for e, c in zip((eps, other), x_0, strict=True)],
        }
        guided = guidance.guided_prediction(sampler, x, t, *both[objective])
        return diffusion.predicted_eps(tables, objective, x, t, guided)

    np.testing.assert_allclose(guided_eps("x0"), guided_eps("eps"), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(guided_eps("v"), guided_eps("eps"), rtol=1e-9, atol=1e-9)


def test_rescaled_predictions_have_the_conditional_standard_deviation():
    c, u = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 4, 4, 2)))
    x = guidance.rescaled(guidance.plain(c, u, 7.5), c, 1.0)
    np.testing.assert_allclose(np.std(x, axis=(1, 2, 3)), np.std(c, axis=(1, 2, 3)), rtol=1e-12)
    assert np.isfinite(guidance.rescaled(jnp.zeros_like(c), c, 1.0)).all()


def drawn(**settings):
    labels = settings.pop("labels", LABELS)
    return samplers.sample(
        Formula(), 4, 5, labels=labels, config=SCHEDULE, image_shape=SHAPE, dtype=jnp.float64, **settings
    )


def test_weights_0_and_1():
    none = drawn(labels=np.full(4, NULL))
    np.testing.assert_allclose(drawn(guidance=0.0), none, atol=1e-12)
    np.testing.assert_array_equal(drawn(guidance=1.0), drawn())
    assert np.abs(drawn() - none).max() > 0.1
    np.testing.assert_allclose(drawn(labels=np.full(4, NULL), guidance=5.0), none, atol=1e-12)


def test_an_interval_of_all_timesteps_and_one_between_the_visited_ones():
    settings = {"sampler": "ddim", "num_steps": 3}  # visits 11, 7, 3
    whole = drawn(guidance=3.0, **settings)
    np.testing.assert_allclose(drawn(guidance=3.0, guidance_interval=(3, 11), **settings), whole, atol=1e-12)
    never = drawn(guidance=3.0, guidance_interval=(4, 6), **settings)
    np.testing.assert_allclose(never, drawn(**settings), atol=1e-12)
    assert np.abs(drawn(guidance=3.0, guidance_interval=(4, 7), **settings) - whole).max() > 0.01


def test_an_image_does_not_depend_on_its_batch():
    whole = drawn(guidance=2.0)
    network = {"config": SCHEDULE, "image_shape": SHAPE, "dtype": jnp.float64, "guidance": 2.0}
    alone = samplers.sample(Formula(), 4, 5, 1, labels=LABELS, **network)
    np.testing.assert_allclose(alone, whole, atol=1e-12)


def test_floats_mix_labels():
    """A weight of 1 for one label is the label."""
    ours, theirs = networks(np.float64, widths=(32,), num_classes=3)
    x, t = np.random.default_rng(3).standard_normal((2, 4, 4, 3)), np.array([5, 900])
    for network, make, to_numpy in (
        (theirs, jnp.asarray, np.asarray),
        (ours, torch.from_numpy, lambda y: y.detach().numpy()),
    ):
        images = make(x if network is theirs else np.moveaxis(x, -1, 1).copy())
        whole = to_numpy(network(images, make(t), labels=make(np.array([1, 3], np.int32))))
        one_hot = to_numpy(network(images, make(t), labels=make(np.eye(4, dtype=np.float32)[[1, 3]])))
        np.testing.assert_array_equal(one_hot, whole)


def test_a_guide_that_is_the_model_changes_nothing():
    sampler = SamplerConfig("ddim", 4, guidance=3.0)

    def states(package, network, sampler, **options):
        return np.asarray(
            package.sample_indices(network, SCHEDULE, SHAPE, 1, np.arange(4), sampler=sampler, **options)[0]
        )

    for package, formula in ((samplers, Formula), (torch_ref.sampling.samplers, TorchFormula)):
        guided = states(package, formula(), sampler, labels=Labels(LABELS, None, LABELS), guide=formula())
        unguided = states(package, formula(), replace(sampler, guidance=1.0), labels=Labels(LABELS))
        np.testing.assert_allclose(guided, unguided, atol=1e-5)
