"""The training step against plain formulas, and what it promises: pure, the same in parts and on many devices."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_ddpm import diffusion, ops, rng, unets, weights
from jax_ddpm.benchmark.job import recipe
from jax_ddpm.data import to_float
from jax_ddpm.schedules import make_tables
from jax_ddpm.spec.json_text import to_json
from jax_ddpm.training.feed import make_dispatch
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import (
    ema_update,
    learning_rate,
    make_optimizer,
    make_train_step,
    prepare_images,
)
from tests.small import jit, small

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
INDICES = np.random.default_rng(1).permutation(40)[:32].reshape(2, 16).astype(np.int32)


def start(config, total_steps=24):
    dtype = jnp.bfloat16 if config.training.precision == "bfloat16" else None
    network = unets.build(config.network, 1, dtype)
    weights.initialise(network, config.training.seed)
    optimizer = make_optimizer(config.training)
    graph, state = create_state(network, optimizer, config.training.ema)
    return graph, optimizer, state, make_train_step(graph, optimizer, config, total_steps)


def run(config, steps=2):
    _, _, state, train_step = start(config)
    losses = []
    for indices in INDICES[:steps]:
        state, metrics = jit(train_step)(state, IMAGES[indices])
        losses.append(float(metrics["loss"]))
    return state, losses


once = cache(run)  # for the runs that several tests compare theirs with


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.5}])
def test_one_step_is_the_algorithm(changes):
    """Ho et al. 2020, Algorithm 1, and Kingma & Ba 2015, Algorithm 1, written out."""
    config = small(warmup_steps=0, lr_schedule="constant", **changes)
    graph, _, state, train_step = start(config)
    new, metrics = jit(train_step)(state, IMAGES[INDICES[0]])

    x_0 = to_float(IMAGES[INDICES[0]])
    t = jax.random.randint(rng.key(0, rng.TIMESTEPS, 0), (16,), 0, 20)
    noise = jax.random.normal(rng.key(0, rng.NOISE, 0), (16, 8, 8, 1))
    tables = make_tables("linear", 20, 1e-4, 0.4)

    def loss(params):
        x_t = diffusion.q_sample(tables, x_0, t, noise)
        return jnp.mean((nnx.merge(graph, params, state.buffers)(x_t, t) - noise) ** 2)

    value, grads = jit(jax.value_and_grad(loss))(state.params)
    norm = float(optax.global_norm(grads))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    scale = min(1, 0.5 / norm) if changes else 1
    decay = 0.1 if changes else 0

    def adam(p, g):
        g = g * scale
        m, v = 0.1 * g / (1 - 0.9), 0.001 * g**2 / (1 - 0.999)
        return p - 1e-3 * (m / (jnp.sqrt(v) + 1e-8) + decay * p)

    # Adam's first step is lr * sign(g): where g is 0 but for rounding (a bias before GroupNorm) its sign is chance.
    for p, g, ours in zip(*map(jax.tree.leaves, (state.params, grads, new.params)), strict=True):
        certain = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.asarray(ours)[certain], np.asarray(adam(p[...], g))[certain], rtol=0, atol=2e-6)
    assert int(new.step) == 1
    ema = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, new.params)  # decay (1 + 0) / (10 + 0)
    assert_close(new.ema, ema, 1e-7)


def test_the_step_is_pure():
    first, second = run(small()), run(small())
    assert first[1] == second[1]
    assert_close(first[0], second[0], 0)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "clip_norm": 0.5, "accumulate": 2}])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(changes):
    _, _, state, train_step = start(small(**changes))
    state, _ = jit(train_step)(state, IMAGES[INDICES[0]])
    broken = IMAGES[INDICES[1]].astype(np.float32)
    broken[3] = np.nan
    new, metrics = jit(train_step)(state, broken)
    assert not np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    assert int(new.step) == 2
    for a, b in zip(*map(jax.tree.leaves, (new, state)), strict=True):
        if a.ndim:  # the rest are counters
            np.testing.assert_array_equal(a, b)
    assert int(new.optimizer[0].count) == 1
    _, metrics = jit(train_step)(new, IMAGES[INDICES[1]])
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])


def test_other_seeds_differ():
    assert run(small(seed=1))[1] != once(small())[1]


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(parts):
    (state, losses), (same, same_losses) = once(small()), run(small(accumulate=parts))
    np.testing.assert_allclose(losses, same_losses, rtol=1e-5)
    # Adam divides by the gradient's size, so rounding shows where gradients are near 0: compare the first moment.
    assert_close(state.optimizer[0].mu, same.optimizer[0].mu, 1e-5)


@pytest.mark.parametrize("fixed_length", [False, True])
def test_several_steps_per_dispatch_are_the_same_steps(fixed_length):
    """Also where the loop goes on beyond them, as on GPUs."""
    config = small()
    _, _, state, train_step = start(config)
    single, several = make_dispatch(train_step, 1), make_dispatch(train_step, 3, fixed_length)
    copy = jax.tree.map(jnp.copy, state)
    losses = []
    for indices in INDICES:
        state, metrics = single(state, IMAGES, indices[None], 1)
        losses.append(float(metrics["loss"][0]))
    padded = np.concatenate([INDICES, INDICES[1:]])
    copy, metrics = several(copy, IMAGES, padded, 2)
    assert int(copy.step) == 2
    np.testing.assert_allclose(metrics["loss"][:2], losses, rtol=1e-5)
    assert metrics["loss"][2] == 0
    assert_close(copy.optimizer[0].mu, state.optimizer[0].mu, 1e-5)


@pytest.mark.parametrize("fixed_length", [False, True])
def test_on_accelerators_the_compiler_knows_how_often_the_loop_goes_round(fixed_length):
    """Else a GPU waits for the host at each turn."""

    def train_step(state, images):
        return state + images.sum(), {"loss": images.mean()}

    dispatch = make_dispatch(train_step, 7, fixed_length)
    text = dispatch.lower(0.0, np.ones((8, 2)), np.zeros((7, 4), np.int32), 7).compile().as_text()
    assert ('"known_trip_count":{"n":"7"}' in text) == fixed_length


def test_no_recompilation_after_the_first_dispatch():
    _, _, state, train_step = start(small())
    dispatch = make_dispatch(train_step, 2)
    for n in (2, 1, 2, 1):
        state, _ = dispatch(state, IMAGES, INDICES, n)
    assert dispatch._cache_size() == 1


def test_bfloat16_touches_only_activations():
    state, losses = run(small(precision="bfloat16"))
    _, exact = once(small())
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((state.params, state.ema))} == {"float32"}
    np.testing.assert_allclose(losses, exact, rtol=0.02)
    assert losses != exact


@pytest.mark.parametrize(
    "name",
    [
        "conv_block",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("strided", "layer_norm")),
        "attention",
        "ddpm",
    ],
)
def test_accelerators_sum_no_gradient_in_bfloat16(monkeypatch, name):
    """Half a million numbers of a bias in a batch of 512: a GPU that can add in bfloat16 would."""
    monkeypatch.setattr(ops, "uses_cpu_routes", lambda: False)
    config = recipe(name, "tiny")
    config = replace(config, training=replace(config.training, precision="bfloat16", batch_size=2))
    _, _, state, train_step = start(config)
    size = config.data.image_size
    graph = str(jax.make_jaxpr(train_step)(state, np.zeros((2, size, size, 1), np.uint8)))
    sums = re.findall(r"\w+:(\w+)\[[^\]]*\] = reduce_sum", graph)
    assert "bf16" in graph and len(sums) > 20 and set(sums) == {"f32"}


def test_without_ema():
    state, _ = run(small(ema=False))
    assert state.ema is None and state.weights is state.params


def test_ema_warms_up_and_then_holds_its_decay():
    early = ema_update({"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, jnp.asarray(8), 0.9)
    late = ema_update({"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, jnp.asarray(10_000), 0.9)
    np.testing.assert_allclose(early["w"], 9 / 18)
    np.testing.assert_allclose(late["w"], 0.9, rtol=1e-6)


def test_learning_rate():
    config = small(learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=10).training
    rates = [float(learning_rate(config, step, 110)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0, 5e-4, 1e-3, (1e-3 + 1e-5) / 2, 1e-5], rtol=1e-5, atol=1e-12)
    line = replace(config, lr_schedule="linear", min_learning_rate=0)
    rates = [float(learning_rate(line, step, 110)) for step in (5, 10, 35, 110)]
    np.testing.assert_allclose(rates, [5e-4, 1e-3, 7.5e-4, 0], rtol=1e-5, atol=1e-12)
    constant = small(learning_rate=1e-3, lr_schedule="constant").training
    assert [float(learning_rate(constant, step, 110)) for step in (0, 109)] == [pytest.approx(1e-3)] * 2


def test_flips_mirror_about_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)
    flipped = np.asarray(prepare_images(images, jnp.float32, rng.key(0, rng.FLIP, 3)))
    plain = to_float(images)
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == plain).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


DEVICES = """
import json, sys
import jax
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.training import loop
loop.finish = loop.export  # without the final pictures
count, folder, *configs = sys.argv[1:]
assert len(jax.devices()) == int(count), jax.devices()
for number, config in enumerate(configs):
    loop.train(from_json(RunConfig, config, "argument"), f"{folder}/{number}", log=lambda line: None)
"""


@pytest.mark.parametrize("conditional", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_four_devices_train_like_one(conditional, tmp_path):
    """With each batch in parts: losses and validation losses."""
    configs = [small(widths=(32,), steps=8, accumulate=2, conditional=conditional)]
    results = {}
    for count in (1, 4):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0",
        }
        arguments = [sys.executable, "-c", DEVICES, str(count), str(tmp_path / str(count)), *map(to_json, configs)]
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
        rows = [
            json.loads(line)
            for number in range(len(configs))
            for line in (tmp_path / str(count) / str(number) / "metrics.jsonl").read_text().splitlines()
        ]
        results[count] = [row[name] for row in rows for name in ("loss", "validation_loss") if name in row]
    assert len(results[1]) == len(results[4]) == 3
    np.testing.assert_allclose(results[4], results[1], rtol=1e-5)
