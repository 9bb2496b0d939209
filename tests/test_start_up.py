"""What a start and a step cost: programs that are kept, memory that is reused, nothing that is done twice."""

import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_ddpm import unets, weights
from jax_ddpm.layers import remat_blocks
from jax_ddpm.spec.network_config import AttentionConfig, DDPMConfig
from jax_ddpm.training.feed import Feed, dispatch_length, make_dispatch
from jax_ddpm.training.prepare import make_mesh
from jax_ddpm.training.progress import CheckpointPolicy, Intervals, Progress
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_gradients, make_optimizer, make_train_step
from parity_tests.networks import CASES
from tests.small import small

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # memory is planned before
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)


def training(config, channels=1):
    network = unets.build(config.network, channels)
    weights.initialise(network, 0)
    optimizer = make_optimizer(config.training)
    graph, state = create_state(network, optimizer, config.training.ema)
    return graph, state, make_train_step(graph, optimizer, config, 24)


def memory(config):
    """Temporary bytes of one step as XLA counts them, and the bytes of the parameters."""
    _, state, train_step = training(config)
    leaves, tree = jax.tree.flatten(state)

    @partial(jax.jit, donate_argnums=0)
    def step(leaves, images):
        return jax.tree.leaves(train_step(jax.tree.unflatten(tree, leaves), images))

    account = step.lower(leaves, IMAGES[: config.training.batch_size]).compile(FAST_COMPILE).memory_analysis()
    return account.temp_size_in_bytes, sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))


def test_the_loop_sends_nothing_unasked_compiles_once_and_donates_its_state():
    config = small(flip=True)
    _, state, train_step = training(config)
    mesh = make_mesh(config.training.batch_size)
    feed = Feed(IMAGES, config, mesh)
    dispatch, compilations = make_dispatch(train_step, feed.steps_per_dispatch), []
    state = jax.device_put(state, feed.replicated)
    before = jax.tree.leaves(state)
    state, metrics = dispatch(state, *feed.batches(0, 1))
    assert all(leaf.is_deleted() for leaf in before)

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with jax.transfer_guard("disallow"):
        step = 1
        for n in (1, 3, 10, 2):  # over the end of an epoch
            state, metrics = feed.run(dispatch, state, step, n)
            step += n
    assert np.isfinite(np.asarray(metrics["loss"])).all() and int(state.step) == step
    assert compilations == []
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        jax.jit(lambda x: x)(1)
    assert compilations  # guard and counter work


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs")
def test_a_dispatch_on_a_cpu_takes_no_longer_than_one_is_patient(monkeypatch):
    """Its steps: one until it is known how long they take, ten at most; what comes between two does not count."""
    config, clock = small(), [0.0]
    feed = Feed(IMAGES, config, make_mesh(config.training.batch_size))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    steps = []
    for seconds in (60, 2, 0.2, 0.12, 0.002, 0.002, 2):  # a step of each dispatch
        steps.append(feed.next_steps)
        feed.run(lambda state, *_: (state, {}), None, 0, steps[-1])
        clock[0] += seconds * steps[-1]
    assert steps == [1, 1, 1, 1, 2, 4, 10]
    feed.reset_timer()
    clock[0] += 100
    feed.run(lambda state, *_: (state, {}), None, 0, 1)
    assert feed.next_steps == 10


@pytest.mark.parametrize(
    ("validate_every", "checkpoint_every", "expected"), [(0, 0, 10), (0, 1000, 10), (15, 0, 8), (12, 1, 1), (5, 7, 5)]
)
def test_dispatches_of_one_length_end_where_something_is_due(validate_every, checkpoint_every, expected):
    output = replace(small().output, validate_every=validate_every, checkpoint_every=checkpoint_every, sample_every=0)
    assert dispatch_length(output, 10) == expected


def test_another_checkpoint_waits_for_ten_times_what_the_last_one_took(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    policy = CheckpointPolicy(small(checkpoint_every=0), 1000)
    assert policy.should_save(1, False), "none was made yet"
    with policy:
        clock[0] += 3
    found = []
    for _ in range(3):
        clock[0] += 14.5
        found.append(policy.should_save(1, False))
    assert found == [False, False, True]


def test_rows_of_one_dispatch_share_its_time(monkeypatch):
    config, clock, rows = small(), [0.0], []
    config = replace(config, output=replace(config.output, log_every=2))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log = SimpleNamespace(add=lambda row: None, write_row=lambda epoch, **row: rows.append(row["images_per_second"]))
    progress = Progress(0, 99, config, log, 99, Intervals(config, 99, 99, False), None, lambda text: None)
    metrics = dict.fromkeys(("loss", "grad_norm", "learning_rate", "skipped"), np.zeros(5))
    for step, n, seconds in ((0, 1, 1), (1, 5, 10), (6, 4, 8), (10, 2, 4)):
        clock[0] += seconds
        progress.update(step, n, metrics)
        with progress.pause():
            clock[0] += 1000
    progress.close()
    images = config.training.batch_size
    assert rows == [round(2 * images / 3, 1), *[images / 2] * 5]


def test_the_time_left_does_not_count_compilation(monkeypatch):
    config, clock, said = small(), [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log = SimpleNamespace(add=lambda row: None, write_row=lambda epoch, **row: None)
    progress = Progress(0, 100, config, log, 99, Intervals(config, 99, 100, False), None, said.append)
    assert progress.bar.postfix == "compiling the training step"
    metrics = dict.fromkeys(("loss", "grad_norm", "learning_rate", "skipped"), np.zeros(10))
    for step, seconds in ((0, 43), (10, 5)):
        clock[0] += seconds
        progress.update(step, 10, metrics)
    assert progress.bar.postfix.startswith("00:40 left, loss 0.0000")
    assert said[0] == "The first 10 steps, with compilation, took 43 s."
    progress.close()


@pytest.mark.slow
def test_accumulation_takes_the_memory_of_one_part():
    settings = {"widths": (32,), "batch_size": 64}
    whole, parameters = memory(small(**settings))
    in_parts, _ = memory(small(**settings, accumulate=2))
    part, _ = memory(small(widths=(32,), batch_size=32))
    batch = IMAGES.size * 4
    assert in_parts < part + parameters + 4 * batch  # the sums; the batch, its noise, and both in parts
    assert in_parts < 0.7 * whole


@pytest.mark.parametrize("name", CASES)
def test_rematerialisation_keeps_less(name):
    case = CASES[name]
    network = unets.build(case.config, case.channels)
    graph, state = create_state(network, make_optimizer(small().training), False)
    shape = (32, case.size, case.size, case.channels)  # maps outweigh what is computed from parameters alone
    kept, whole = (bytes_kept(graph, state, shape, remat) for remat in (True, False))
    assert kept < 0.5 * whole


@pytest.mark.slow
def test_xla_too_keeps_less_where_it_rematerialises():
    settings = {"widths": (32, 64), "batch_size": 64}
    whole, _ = memory(small(**settings))
    assert memory(small(**settings, remat=True))[0] < 0.7 * whole


SHALLOW = {
    "attention": AttentionConfig(channels=32, multipliers=(1,), attention=(True,), blocks=1, dropout=0.5),
    "ddpm": DDPMConfig(
        **{"widths": (32,), "layers_per_block": 1, "down_attention": (True,), "up_attention": (False,)},
        **{"mid_block": False, "dropout": 0.5},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulate"), [("attention", 1), ("ddpm", 1)])
def test_rematerialisation_changes_nothing(name, accumulate):
    """Gradients in float64, with dropout."""
    config = replace(small(precision="float64", accumulate=accumulate), network=SHALLOW[name])
    with jax.enable_x64(True):
        network = unets.build(config.network, 1)
        weights.initialise(network, 0)
        graph, state = create_state(network, make_optimizer(config.training), False, jnp.float64)
        gradients = [
            jax.jit(make_gradients(graph, run), compiler_options=FAST_COMPILE)(state, IMAGES[:2])
            for run in (config, replace(config, training=replace(config.training, remat=True)))
        ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def bytes_kept(graph, state, shape, remat) -> int:
    """What a network's forward pass computes and hands to its backward pass."""

    def residuals(params, x, t):
        with remat_blocks(remat):
            return jax.vjp(lambda params: nnx.merge(graph, params, state.buffers)(x, t), params)[1]

    program = jax.make_jaxpr(residuals)(state.params, jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32)).jaxpr
    given = {id(variable) for variable in program.invars}
    kept = [variable.aval for variable in program.outvars if id(variable) not in given]
    return sum(value.size * value.dtype.itemsize for value in kept)
