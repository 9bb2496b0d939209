"""The code of jax_ddpm that is timed: a training dispatch, the sampler, and a large matrix product."""

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import ops, unets, weights
from jax_ddpm.benchmark.device_profile import profile_device
from jax_ddpm.benchmark.job import SEED, Contender, Job
from jax_ddpm.ops import matmul_precision
from jax_ddpm.sampling.samplers import sample_indices
from jax_ddpm.training.feed import Feed, make_dispatch
from jax_ddpm.training.prepare import make_mesh
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer, make_train_step


def about(compile_seconds: float, **more) -> dict:
    """`Contender.about`."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else "CPU"
    return {
        "platform": device.platform,
        "device": f"{jax.device_count()} x {kind}",
        "version": f"jax {jax.__version__}",
        "compile_seconds": compile_seconds,
        **more,
    }


def peak_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def make_network(job: Job):
    network = unets.build_in(job.run.training.precision, job.run.network, job.image_channels)
    weights.initialise(network, SEED)
    return network


def forward_flops(network, job: Job) -> float | None:
    """FLOPs of one call of the network on a batch, counted by XLA in the unoptimised graph.

    Counts the plain JAX operations, which GPUs and TPUs run: the versions for CPUs hide work in custom calls, and some
    need fewer multiplications. Lowers them for the CPU backend, because the GPU backend counts only optimised programs.
    None if JAX has no CPU backend.
    """
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS does not include the CPU
        return None
    graph, state = nnx.split(network)
    state = jax.eval_shape(lambda: state)
    batch = job.run.training.batch_size
    x, t = jax.ShapeDtypeStruct((batch, *job.image_shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    with ops.plain(), jax.default_device(cpu):
        lowered = jax.jit(lambda state, x, t: nnx.merge(graph, state)(x, t)).lower(state, x, t)
    return (lowered.cost_analysis() or {}).get("flops")


def train(job: Job) -> Contender:
    """Prepare to time training steps. Check: loss and gradient norm of step 0, without dropout."""
    network, run = make_network(job), job.run
    mesh = make_mesh(run.training.batch_size)
    feed, optimizer = Feed(job.images(), run, mesh), make_optimizer(run.training)
    total_steps = 1_000_000

    def compile_step(config):
        """(compiled dispatch, state at step 0, seconds of compilation)."""
        graph, state = create_state(network, optimizer, config.training.ema)
        state = jax.device_put(state, feed.replicated)
        train_step = make_train_step(graph, optimizer, config, total_steps, mesh, feed.unroll_accumulation)
        step = make_dispatch(train_step, feed.steps_per_dispatch, image_shape=feed.image_shape)
        start = time.perf_counter()
        program = step.lower(state, *feed.batches(0, 1)).compile()
        return program, state, time.perf_counter() - start

    def first_step(program, state):
        state, metrics = program(state, *feed.batches(0, 1))
        return state, {name: np.asarray(metrics[name])[:1] for name in ("loss", "grad_norm")}

    check_without_dropout = None
    if getattr(run.network, "dropout", 0.0):  # the memory of this program is freed before the next is compiled
        config = replace(run, network=replace(run.network, dropout=0.0))
        check_without_dropout = first_step(*compile_step(config)[:2])[1]
    program, state, seconds = compile_step(run)
    state, check = first_step(program, state)
    memory, parameters = program.memory_analysis(), sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    done, steps = 1, 1

    def work(runs):
        nonlocal state, done
        for _ in range(runs):  # as in `training.loop`
            state, last = feed.run(program, state, done, steps)
            done += steps
        jax.block_until_ready((state, last))

    work(3)
    steps = feed.next_steps
    work(2)
    sizes = {
        "parameter_bytes": parameters,
        "argument_bytes": memory.argument_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }
    if flops := forward_flops(network, job):
        sizes["flops_per_step"] = 3 * flops  # the backward pass needs twice the FLOPs of the forward pass
    profile = partial(profile_device, work, steps)
    return Contender(work, steps, check_without_dropout or check, about(seconds, **sizes), peak_memory, profile=profile)


def sample(job: Job) -> Contender:
    """Prepare to time sampling. Check: the images of a seed after all steps."""
    network, config = make_network(job), job.run.diffusion
    weights.to_device(network)
    indices = np.arange(job.run.training.batch_size)

    def images():
        return sample_indices(network, config, job.image_shape, SEED, indices)[0]

    def work(runs):
        for _ in range(runs):
            x = images()
        x.block_until_ready()

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        x = images().block_until_ready()
        seconds.append(time.perf_counter() - start)
    flops = forward_flops(network, job)
    more = {"flops_per_step": flops} if flops else {}
    return Contender(
        work,
        config.timesteps,
        {"x_0": np.asarray(x)},
        about(seconds[0] - seconds[1], **more),
        peak_memory,
        profile=partial(profile_device, work, config.timesteps),
    )


def matrix_product(job: Job) -> Contender:
    """Prepare to time the product of two square matrices in the precision of the job."""
    size = 3000 if jax.default_backend() == "cpu" else 8192
    in_tf32 = job.run.training.precision == "tf32"
    dtype = jnp.dtype("float32" if in_tf32 else job.run.training.precision)
    a = jnp.asarray(np.random.default_rng(SEED).standard_normal((size, size)), dtype)
    with ops.tf32() if in_tf32 else nullcontext():
        precision = matmul_precision(dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))

    def work(runs):
        for _ in range(runs):
            y = product(a)
        y.block_until_ready()

    work(1)
    return Contender(work, 1, {}, about(0.0, flops_per_step=2 * size**3), peak_memory)
