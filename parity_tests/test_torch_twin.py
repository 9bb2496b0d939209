"""torch_ref is jax_ddpm again: the same numbers from each definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm.diffusion
import jax_ddpm.embeddings
import jax_ddpm.layers
import jax_ddpm.rng
import jax_ddpm.sampling.reverse
import jax_ddpm.sampling.samplers
import jax_ddpm.sampling.steps
import jax_ddpm.schedules
import jax_ddpm.weights
import torch_ref.diffusion
import torch_ref.embeddings
import torch_ref.rng
import torch_ref.sampling.reverse
import torch_ref.sampling.samplers
import torch_ref.sampling.steps
import torch_ref.schedules
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.run_config import DataConfig, RunConfig, TrainingConfig
from jax_ddpm.training import state as jax_state
from jax_ddpm.training import step as jax_step
from parity_tests.budgets import EMBEDDING, FORMULA, LOSS, NETWORK, RATE, SAMPLING, UPDATE
from parity_tests.twins import (
    CLIPS,
    DTYPES,
    MOSTLY_FLOAT64,
    NETWORK_SETTINGS,
    OBJECTIVES,
    TORCH,
    VARIANCES,
    assert_close,
    batch,
    networks,
    to_numpy,
    to_torch,
)
from torch_ref import step


@DTYPES
@pytest.mark.parametrize("timesteps", [1, 10, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_tables_are_equal(schedule, timesteps, dtype):
    ours = torch_ref.schedules.make_tables(schedule, timesteps, 1e-5, 0.03, dtype)
    theirs = jax_ddpm.schedules.make_tables(schedule, timesteps, 1e-5, 0.03, dtype)
    assert list(vars(ours)) == list(vars(theirs))
    for name, value in vars(theirs).items():
        assert getattr(ours, name).dtype == dtype
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


@DTYPES
def test_embeddings(dtype):
    with jax.enable_x64(dtype == np.float64):
        t, frequencies = np.arange(0, 1000, 37), jax_ddpm.embeddings.geometric_frequencies(64)
        np.testing.assert_array_equal(torch_ref.embeddings.geometric_frequencies(64), frequencies)
        frequencies = frequencies.astype(dtype)
        theirs = jax_ddpm.embeddings.interleaved_embedding(jnp.asarray(t), jnp.asarray(frequencies))
        ours = torch_ref.embeddings.interleaved_embedding(torch.from_numpy(t), torch.from_numpy(frequencies))
        assert_close(ours, theirs, EMBEDDING[dtype])


@DTYPES
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_diffusion(objective, dtype):
    x_0, noise, prediction, t = batch(dtype)
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        ours, theirs = torch_ref.diffusion, jax_ddpm.diffusion

        def compare(name, *arrays, objective=None, **settings):
            said = () if objective is None else (objective,)
            theirs_is = getattr(theirs, name)(tables, *said, *arrays, **settings)
            tensors = [torch.from_numpy(a) if a.ndim == 1 else to_torch(a) for a in arrays]
            ours_is = getattr(ours, name)(tables, *said, *tensors, **settings)
            for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (ours_is, theirs_is)), strict=True):
                assert_close(to_numpy(a) if a.ndim == 4 else a, b, FORMULA[dtype])

        compare("q_sample", x_0, t, noise)
        compare("posterior", x_0, noise, t)
        compare("objective_target", x_0, t, noise, objective=objective)
        compare("predicted_x_0", x_0, t[1:4].repeat([2, 2, 1]), prediction, objective=objective)
        compare("predicted_eps", x_0, t, prediction, objective=objective)
        compare("loss_weights", t, objective=objective, min_snr_gamma=5.0)
        for gamma in (None, 5.0):
            arguments = {"min_snr_gamma": gamma}
            a = ours.loss_per_image(
                tables,
                objective,
                lambda x, t: 0.5 * x,
                to_torch(x_0),
                torch.from_numpy(t),
                to_torch(noise),
                **arguments,
            )
            b = theirs.loss_per_image(tables, objective, lambda x, t: 0.5 * x, x_0, t, noise, **arguments)
            assert_close(a, b, LOSS[dtype])
        mean = ours.loss(tables, objective, lambda x, t: 0.5 * x, to_torch(x_0), torch.from_numpy(t), to_torch(noise))
        assert_close(mean, theirs.loss(tables, objective, lambda x, t: 0.5 * x, x_0, t, noise), LOSS[dtype])


@DTYPES
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hybrid_loss_and_its_gradient(objective, dtype):
    """Of the prediction and of the variance's v, from t = 0 to T - 1, with black and white pixels."""
    x_0, noise, prediction, t = batch(dtype)
    x_0, v = np.clip(np.round(x_0 * 127.5) / 127.5, -1, 1).astype(dtype), np.sin(x_0)
    said = np.concatenate([prediction, v], axis=-1)
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        settings = {"min_snr_gamma": 5.0, "variance": "learned_range"}

        def their_loss(said):
            return jax_ddpm.diffusion.loss(tables, objective, lambda x, t: said, x_0, t, noise, **settings)

        theirs, their_gradient = jax.value_and_grad(their_loss)(jnp.asarray(said))
        leaf = to_torch(said).requires_grad_()
        ours = torch_ref.diffusion.loss(
            tables, objective, lambda x, t: leaf, to_torch(x_0), torch.from_numpy(t), to_torch(noise), **settings
        )
        ours.backward()
    assert_close(ours.detach(), theirs, LOSS[dtype])
    assert_close(to_numpy(leaf.grad), their_gradient, LOSS[dtype])


@DTYPES
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ancestral_step(objective, variance, clip, dtype):
    x_t, noise, prediction, _ = batch(dtype)
    config = DiffusionConfig(objective=objective, variance=variance, clip=clip)
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        for t in (0, 1, 500, 999):
            theirs = jax_ddpm.sampling.steps.ancestral_step(tables, config, x_t, prediction, jnp.int32(t), noise)
            ours = torch_ref.sampling.steps.ancestral_step(
                tables, config, to_torch(x_t), to_torch(prediction), t, to_torch(noise)
            )
            assert_close(to_numpy(ours), theirs, FORMULA[dtype])


@pytest.mark.parametrize("num_frames", [0, 1, 2, 5, (0, 2, 5, 6), (4,)])
def test_reverse_process_order_frames_and_progress(num_frames):
    """x <- 3 x + 5 t + noise_t: integers, so that every order of evaluation but the right one differs."""
    timesteps, x_T = 6, np.arange(8, dtype=np.float64).reshape(2, 2, 2, 1)
    calls = {"ours": [], "theirs": []}

    def make(package, x_T, name):
        return package.sampling.reverse.reverse_process(
            lambda x, prediction, t, noise: prediction + noise,
            lambda x, t: 3 * x + 5 * t.reshape(-1, 1, 1, 1),
            x_T,
            timesteps,
            lambda t: t % 4,
            num_frames,
            lambda done: calls[name].append(int(done)),
        )

    with jax.enable_x64(True):
        theirs = make(jax_ddpm, jnp.asarray(x_T), "theirs")
    ours = make(torch_ref, to_torch(x_T), "ours")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(to_numpy(a), b)
    assert calls["ours"] == calls["theirs"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@DTYPES
def test_network(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        x, _, _, t = batch(dtype)
        y = ours(to_torch(x), torch.from_numpy(t))
        assert_close(to_numpy(y), jax.jit(lambda x, t: theirs(x, t))(x, t), NETWORK[dtype])


def test_bfloat16_touches_activations_only():
    settings = ConvBlockConfig(**NETWORK_SETTINGS)
    network = torch_ref.unets.build(settings, 3, torch.bfloat16)
    torch_ref.weights.load_state_dict(network, torch_ref.weights.state_dict(networks()[0]))
    seen = {}
    for name in ("time_emb", "enc_convs.0.seq1.0", "output"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
    x, t = to_torch(batch(np.float32)[0]), torch.tensor([998, 999, 1000, 1001, 3])
    y = network(x, t)
    assert y.dtype == torch.float32 and all(p.dtype == torch.float32 for p in network.parameters())
    assert seen["enc_convs.0.seq1.0"].dtype == seen["output"].dtype == torch.bfloat16
    exact = networks()[0]
    assert torch.equal(seen["time_emb"], exact.time_emb(t))
    assert len(torch.unique(seen["time_emb"], dim=0)) == 5
    error = (y - exact(x, t)).abs().max() / y.abs().max()
    assert 1e-4 < error < 0.1  # eight bits of mantissa


@MOSTLY_FLOAT64
@pytest.mark.parametrize(("objective", "variance", "clip"), [("eps", "beta", "x0"), ("v", "posterior", "state")])
def test_sampling(objective, variance, clip, dtype):
    """40 steps from the same seed, three pictures in batches of two, and frames on the way."""
    config = DiffusionConfig(timesteps=40, schedule="cosine", objective=objective, variance=variance, clip=clip)
    shape = (4, 6, 3)
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype, widths=(32,))
        a = torch_ref.sample(ours, 3, 5, 2, config=config, image_shape=shape, dtype=TORCH[dtype])
        b = jax_ddpm.sample(theirs, 3, 5, 2, config=config, image_shape=shape, dtype=dtype)
        assert a.shape == (3, *shape) and a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=SAMPLING[dtype])
        alone, frames = torch_ref.sampling.samplers.sample_indices(
            ours, config, shape, 5, [2], num_frames=3, dtype=TORCH[dtype]
        )
        np.testing.assert_allclose(to_numpy(alone)[0], a[2], rtol=0, atol=SAMPLING[dtype])
        assert frames.shape == (3, 1, 3, 4, 6) and torch.equal(frames[-1], alone)
        x_T = torch_ref.rng.normal(torch_ref.rng.key(5, torch_ref.rng.SAMPLING, 2, 40), shape, TORCH[dtype])
        assert torch.equal(frames[0, 0], to_torch(x_T))


FEW_STEPS = [  # sampler, spacing, eta, clip, objective
    pytest.param("ddpm", "leading", 0.0, "dynamic", "eps", marks=pytest.mark.slow),
    pytest.param("ddim", "linspace", 0.5, "x0", "v", marks=pytest.mark.slow),
    ("dpmpp", "logsnr", 0.0, "dynamic", "eps"),
    ("heun", "trailing", 0.0, "x0", "v"),
    pytest.param("euler", "trailing", 0.0, "state", "x0", marks=pytest.mark.slow),
]


@MOSTLY_FLOAT64
@pytest.mark.parametrize(("sampler", "spacing", "eta", "clip", "objective"), FEW_STEPS)
def test_few_steps(sampler, spacing, eta, clip, objective, dtype):
    """7 of 40 steps, frames after each, and as many calls of progress."""
    found, calls = {}, {"jax_ddpm": [], "torch_ref": []}
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype, widths=(32,))
        for package, network, float_type in ((jax_ddpm, theirs, dtype), (torch_ref, ours, TORCH[dtype])):
            settings = SamplerConfig(sampler, 7, spacing, eta)
            config = DiffusionConfig(timesteps=40, beta_end=0.3, objective=objective, clip=clip, clip_percentile=0.8)
            name = package.__name__
            found[name] = package.sampling.samplers.sample_indices(
                network,
                config,
                (4, 6, 3),
                5,
                [0, 2],
                sampler=settings,
                num_frames=8,
                dtype=float_type,
                progress=lambda done, name=name: calls[name].append(int(done)),
            )
    for a, b in zip(found["torch_ref"], found["jax_ddpm"], strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=0, atol=SAMPLING[dtype] * max(1, np.abs(b).max()))
    assert calls["jax_ddpm"] == calls["torch_ref"] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("wrong", [{"num_steps": 41}, {"sampler": "ddim", "eta": 2.0}, {"sampler": "heun", "eta": 0.1}])
def test_wrong_samplers_are_refused(wrong):
    ours, theirs = networks()
    for package, network in ((jax_ddpm, theirs), (torch_ref, ours)):
        config = DiffusionConfig(timesteps=40)
        with pytest.raises(UserError, match=f"{list(wrong)[-1]} = "):
            package.sample(network, 1, sampler=SamplerConfig(**wrong), config=config, image_shape=(4, 6, 3))


@pytest.mark.parametrize("name", ["num_images", "batch_size"])
def test_nothing_to_sample_is_refused(name):
    with pytest.raises(UserError, match=f"{name} = 0: expected at least 1"):
        torch_ref.sample(networks()[0], config=DiffusionConfig(timesteps=2), image_shape=(8, 8, 1), **{name: 0})


PLAIN = {"optimizer": "adam", "lr_schedule": "constant"}
EVERYTHING = {
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "warmup_steps": 1,
    "clip_norm": 0.05,
    "accumulate": 2,
    "min_snr_gamma": 5.0,
}


def run_config(dtype, flip, objective, **training):
    return RunConfig(
        data=DataConfig(flip=flip),
        diffusion=DiffusionConfig(objective=objective),
        training=TrainingConfig(
            batch_size=4, learning_rate=1e-3, precision=np.dtype(dtype).name, seed=3, ema_decay=0.99, **training
        ),
    )


@MOSTLY_FLOAT64
@pytest.mark.parametrize(
    ("training", "objective", "flip"),
    [
        pytest.param(PLAIN, "eps", False, marks=pytest.mark.slow, id="plain"),
        pytest.param(EVERYTHING, "v", True, id="everything"),
    ],
)
def test_three_training_steps(training, objective, flip, dtype):
    """Loss, gradient norm and learning rate of every step; parameters and EMA after the last."""
    config = run_config(dtype, flip, objective, **training)
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 6, 3), dtype=np.uint8)
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype, widths=(64,))  # two channels a group: one alone has no gradient
        optimizer = jax_step.make_optimizer(config.training)
        graph, state = jax_state.create_state(theirs, optimizer, True, dtype)
        train_step = jax.jit(jax_step.make_train_step(graph, optimizer, config, 10))
        their_metrics = []
        for batch_of_images in images:
            state, metrics = train_step(state, batch_of_images)
            their_metrics.append({name: float(value) for name, value in metrics.items()})
        their_params, their_ema = (
            jax_ddpm.weights.state_dict(nnx.merge(graph, weights, state.buffers))
            for weights in (state.params, state.ema)
        )

    before = torch_ref.weights.state_dict(ours)
    ours = step.create_state(ours, step.make_optimizer(config.training, ours), True, TORCH[dtype])
    train_step = step.make_train_step(config, 10)
    for batch_of_images, metrics in zip(images, their_metrics, strict=True):
        ours, our_metrics = train_step(ours, batch_of_images)
        for name, budget in (("loss", LOSS[dtype]), ("grad_norm", LOSS[dtype]), ("learning_rate", RATE)):
            np.testing.assert_allclose(our_metrics[name], metrics[name], rtol=budget, err_msg=name)
    assert ours.step == 3
    rate = config.training.learning_rate
    for module, values in ((ours.network, their_params), (ours.ema, their_ema)):
        for name, value in torch_ref.weights.state_dict(module).items():
            np.testing.assert_allclose(value, values[name], rtol=0, atol=UPDATE[dtype] * rate, err_msg=name)
            if not name.endswith(".J"):
                assert np.abs(value - before[name]).max() > rate, f"{name} did not move"
    assert ours.weights is ours.ema


def test_the_coins_of_flipping_are_the_same():
    images = np.random.default_rng(2).integers(0, 256, (64, 2, 5, 3), dtype=np.uint8)
    theirs = jax_step.prepare_images(images, jnp.float32, jax_ddpm.rng.key(1, jax_ddpm.rng.FLIP, 9))
    ours = step.prepare_images(torch.from_numpy(images), torch.float32, torch_ref.rng.key(1, torch_ref.rng.FLIP, 9))
    assert_close(to_numpy(ours), theirs, FORMULA[np.float32])
    mirrored = np.any(np.abs(to_numpy(ours) - (images / 127.5 - 1)) > 1e-3, axis=(1, 2, 3))
    assert 16 < mirrored.sum() < 48


def test_validation():
    config = run_config(np.float32, False, "eps", min_snr_gamma=5.0)
    images = np.random.default_rng(4).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    mask = np.array([1, 1, 0, 1], np.float32)
    ours, theirs = networks(widths=(32,))
    graph, params, buffers = nnx.split(theirs, nnx.Param, jax_ddpm.layers.Buffer)
    loss = jax_step.make_validation(graph, config)(params, buffers, images, mask, 6)
    np.testing.assert_allclose(step.make_validation(config)(ours, images, mask, 6), loss, rtol=LOSS[np.float32])
