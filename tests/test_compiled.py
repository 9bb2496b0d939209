"""Programs as the compilers for GPUs and TPUs get them and, where such a compiler is installed, as it optimises them.

No such chip is needed. Each property has a seeded fault that must break it.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from jax_ddpm import ops, unets
from jax_ddpm.plan import target
from jax_ddpm.plan.hlo import Program
from jax_ddpm.plan.measure import Measured, measure
from jax_ddpm.plan.programs import Lowered, lower_sampling, lower_training, placed
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.network_config import BUILT_IN, ConvBlockConfig
from jax_ddpm.spec.presets import preset
from jax_ddpm.training import feed, step
from jax_ddpm.unets import conv_block
from parity_tests.networks import CASES
from tests.small import small

PLATFORMS = ("cuda", "rocm", "tpu")
QUICK = ("conv_block", "strided", "attention", "layer_norm", "ddpm")
NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(CASES) & set(BUILT_IN))
]
needs_gpu_compiler = pytest.mark.skipif(
    not any(map(target.is_installed, target.COMPILERS["gpu"][1])),
    reason="the CUDA compiler is not installed: pip install -c constraints.txt -e '.[aot-gpu]'",
)
needs_tpu_compiler = pytest.mark.skipif(
    not target.is_installed("libtpu"),
    reason="the TPU compiler is not installed: pip install -c constraints.txt -e '.[aot-tpu]'",
)

# The programs of StableHLO, before a compiler optimises them -------------------------------------------------------


def stablehlo(name: str, precision: str) -> str:
    """A small network for all three platforms: its forward pass; in tf32, that and its gradient."""
    case = CASES[name]
    graph, state = nnx.split(unets.build_in(precision, case.config, case.channels))

    def forward(state, x, t):
        return nnx.merge(graph, state)(x, t)

    def gradient(state, x, t):
        return jax.grad(lambda state: jnp.sum(forward(state, x, t)))(state)

    x = jax.ShapeDtypeStruct((2, case.size, case.size, case.channels), jnp.float32)
    time = jnp.float32 if name == "lucidrains" else jnp.int32
    with ops.compile_for("gpu"):
        program = gradient if precision == "tf32" else forward
        traced = jax.jit(program).trace(placed(state, None), x, jax.ShapeDtypeStruct((2,), time))
        return traced.lower(lowering_platforms=PLATFORMS).as_text()


def dtypes_of(text: str, operation: str) -> Counter:
    """(dtype of the first operand, precision) of each such operation."""
    found: Counter = Counter()
    for line in text.splitlines():
        if f"stablehlo.{operation}" in line:
            operand = re.search(r": \(?tensor<(?:\d+x)*(\w+)>", line)
            precisions = set(re.findall(r"\b(?:DEFAULT|HIGHEST|HIGH)\b", line))
            found[operand[1], " and ".join(sorted(precisions)) or "DEFAULT"] += 1
    return found


WANTED = {"float32": ("f32", "HIGHEST"), "tf32": ("f32", "HIGH"), "bfloat16": ("bf16", "DEFAULT")}


def precision_faults(text: str, precision: str) -> list[str]:
    """Which rules about dtypes and precisions a program breaks."""
    convolutions, products = (dtypes_of(text, operation) for operation in ("convolution", "dot_general"))
    waves = dtypes_of(text, "sine") + dtypes_of(text, "cosine")
    wanted = WANTED[precision]
    broken = []
    if not convolutions or set(convolutions) != {wanted}:
        broken.append("convolutions")
    if not set(products) <= {
        wanted,
        WANTED["tf32" if precision == "tf32" else "float32"],
    }:  # those of the time: float32
        broken.append("matrix products")
    if {dtype for dtype, _ in waves} - {"f32"}:
        broken.append("phases of the time")
    return broken


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_precisions_of_a_network(name, precision):
    assert precision_faults(stablehlo(name, precision), precision) == []


@pytest.mark.parametrize("name", ["conv_block", *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK[1:])])
def test_tf32_of_a_network_and_its_gradient(name):
    assert precision_faults(stablehlo(name, "tf32"), "tf32") == []


def float32_convolution(x, kernel, *rest):
    return plain_convolution(x.astype(jnp.float32), kernel.astype(jnp.float32), *rest).astype(x.dtype)


plain_convolution = ops.convolution_nhwc
STABLEHLO_FAULTS = {
    "matmul_precision": (ops, lambda dtype: None, "float32", ["convolutions", "matrix products"]),
    "tf32": (ops, nullcontext, "tf32", ["convolutions", "matrix products"]),
    "convolution_nhwc": (ops, float32_convolution, "bfloat16", ["convolutions"]),
    "interleaved_embedding": (
        conv_block,
        lambda t, frequencies: jnp.sin(t[:, None].astype(jnp.bfloat16) * jnp.tile(frequencies, 2).astype(jnp.bfloat16)),
        "bfloat16",
        ["phases of the time"],
    ),
}


@pytest.mark.parametrize("fault", STABLEHLO_FAULTS)
def test_a_seeded_fault_of_precision_is_found(monkeypatch, fault):
    module, wrong, precision, broken = STABLEHLO_FAULTS[fault]
    monkeypatch.setattr(module, fault, wrong)
    assert set(broken) <= set(precision_faults(stablehlo("conv_block", precision), precision))


# The training program as the compiler for an H100 optimises it -----------------------------------------------------


@pytest.fixture
def optimised():
    """The compilers' usual optimisations, which other tests switch off."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as tests/conftest.py sets it


def compiled_training(name: str = "h100:8", **settings) -> tuple[Lowered, Measured, int]:
    """A small network's training program for a target, its figures, and the number of its parameters."""
    chips = target.parse_target(name)
    devices = target.devices_of(chips)
    config = small(batch_size=64, **{"precision": "bfloat16", **settings})
    lowered = lower_training(config, devices, chips.platform, 1617, (8, 8, 2))
    figures = measure(lowered, lowered.program.compile(), len(devices), chips.chip)
    return lowered, figures, sum(leaf.size for leaf in jax.tree.leaves(lowered.arguments["state"].params))


def program_faults(lowered: Lowered, figures: Measured, num_parameters: int) -> list[str]:
    """Which of the properties of a training program are not met."""
    reduced = figures.collectives.get("all-reduce", [])
    met = {
        "donated": figures.aliased == lowered.donated,
        "trip counts": None not in figures.trip_counts and lowered.steps in figures.trip_counts,
        "host": figures.callbacks == 0,
        "convolutions": {dtypes for dtypes, _ in figures.convolutions} == {"bf16 x bf16"},
        "numbers reduced": sum(array.size for array in reduced) == num_parameters + 1,  # and the loss
        "dtype of the sums": {array.dtype for array in reduced} == {"f32"},
    }
    return [name for name, is_met in met.items() if not is_met]


@needs_gpu_compiler
def test_the_training_program_of_an_h100(optimised):
    assert program_faults(*compiled_training()) == []


@needs_gpu_compiler
@pytest.mark.slow
def test_the_training_program_of_an_h100_that_gets_its_images_with_each_dispatch(optimised, monkeypatch):
    monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", 0)
    lowered, figures, num_parameters = compiled_training()
    assert program_faults(lowered, figures, num_parameters) == [] and set(figures.collectives) == {"all-reduce"}
    assert lowered.arguments["images"].sharding.shard_shape(lowered.arguments["images"].shape)[1] == 64 // 8


@needs_gpu_compiler
@pytest.mark.slow
def test_tf32_in_the_training_program_of_an_h100(optimised):
    _, figures, _ = compiled_training("h100:1", precision="tf32")
    assert set(figures.convolutions) == {("f32 x f32", "high")}


def without_donation(monkeypatch):
    make = feed.make_dispatch
    monkeypatch.setattr(feed, "make_dispatch", lambda *a, **k: jax.jit(make(*a, **k).__wrapped__))


def of_unknown_length(monkeypatch):
    monkeypatch.setattr(feed, "make_dispatch", partial(feed.make_dispatch, fixed_length=False))


def wide_convolutions(monkeypatch):
    monkeypatch.setattr(ops, "convolution_nhwc", float32_convolution)


def sums_in_bfloat16(monkeypatch):
    mean = lax.pmean

    def pmean(tree, axis):
        narrow = mean(jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree), axis)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), narrow, tree)

    monkeypatch.setattr(step.lax, "pmean", pmean)


def sums_of_squares_besides(monkeypatch):
    mean = lax.pmean
    monkeypatch.setattr(
        step.lax, "pmean", lambda tree, axis: jax.tree.map(lambda x: mean(x, axis) - 1e-9 * mean(x * x, axis), tree)
    )


FAULTS = {
    "donated": without_donation,
    "trip counts": of_unknown_length,
    "convolutions": wide_convolutions,
    "dtype of the sums": sums_in_bfloat16,
    "numbers reduced": sums_of_squares_besides,
}


@needs_gpu_compiler
def test_seeded_faults_are_found(optimised, monkeypatch):
    """All of them in one program, since each compilation takes seconds."""
    for seed_fault in FAULTS.values():
        seed_fault(monkeypatch)
    assert set(program_faults(*compiled_training())) == set(FAULTS)


@needs_gpu_compiler
def test_a_call_of_the_host_is_refused(monkeypatch):
    """JAX does not lower Python callbacks for a device that is not here. `measure` would count them."""
    make = feed.make_train_step

    def make_step(*arguments):
        def train_step(*inputs):
            state, metrics = make(*arguments)(*inputs)
            jax.debug.print("{}", metrics["loss"])
            return state, metrics

        return train_step

    monkeypatch.setattr(feed, "make_train_step", make_step)
    with pytest.raises(RuntimeError, match="gpu"):
        compiled_training()


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_breaks_its_property_only(optimised, monkeypatch, fault):
    FAULTS[fault](monkeypatch)
    assert program_faults(*compiled_training()) == [fault]


@needs_tpu_compiler
@pytest.mark.slow
def test_the_training_program_of_a_tpu(optimised):
    faults = program_faults(*compiled_training("v5e:2x2"))
    assert set(faults) <= {"convolutions"}  # libtpu makes convolutions of float32 products


BUDGETS = {("conv_block", "h100:1"): 1.3, ("ddpm", "h100:1"): 4.2, ("conv_block", "v5e:1x1"): 1.1}
"""GB per device of the full-size networks, in bfloat16 at batch size 128: what was planned, and a tenth."""


@pytest.mark.slow
@pytest.mark.parametrize(("network", "name"), BUDGETS)
def test_memory_of_a_full_size_network(optimised, network, name):
    chips = target.parse_target(name)
    if not any(map(target.is_installed, target.COMPILERS[chips.platform][1])):
        pytest.skip(f"the compiler for {name} is not installed")
    config = preset(network, batch_size=128, precision="bfloat16")
    shape = (32, 32, 3 if network == "ddpm" else 1)
    lowered = lower_training(config, target.devices_of(chips), chips.platform, 50000, shape)
    figures = measure(lowered, lowered.program.compile(), 1, chips.chip)
    assert figures.memory.total < BUDGETS[network, name] * 1e9
    assert figures.aliased == lowered.donated and not figures.callbacks


# What was mended ---------------------------------------------------------------------------------------------------

TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax_ddpm import ops
from jax_ddpm.training.prepare import make_network
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_gradients, make_optimizer
from tests.small import small

images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
for accumulate in (1, 2):
    config, found = small(precision="bfloat16", accumulate=accumulate), []
    network = make_network(config, (8, 8, 1), False)
    graph, state = create_state(network, make_optimizer(config.training), True)
    for count in (1, 2):
        mesh = Mesh(np.asarray(jax.devices()[:count]), ("data",))
        batch = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        with ops.compile_for("gpu"):
            program = jax.jit(make_gradients(graph, config, mesh))
            loss, gradients, _ = program(jax.device_put(state, NamedSharding(mesh, PartitionSpec())), batch)
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves((loss, gradients))]))
    print(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0]))
"""


@pytest.mark.slow
def test_gradients_of_two_devices_are_those_of_one():
    """In bfloat16: the same up to roundings of the products of half a batch each. Measured 1.7e-3 and 1.0e-3."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True, env=environment, check=True
    )
    assert [float(line) < 4e-3 for line in done.stdout.split()] == [True, True]


def small_sampler(platform: str, devices: list) -> Lowered:
    """A sampler whose deepest level has 2x2 pixels, in bfloat16."""
    network = ConvBlockConfig(widths=(32, 64, 128), time_width=32)
    sampler = SamplerConfig("ddim", num_steps=2)
    config = replace(small(precision="bfloat16"), network=network, sampling=sampler)
    return lower_sampling(config, devices, platform, 8, (8, 8, 1))


def reversed_shapes(text: str) -> set[str]:
    """Shapes of the arrays that a program of StableHLO reverses."""
    return set(re.findall(r"stablehlo\.reverse .*: tensor<((?:\d+x)+)", text))


def test_2x2_maps_are_convolved_in_another_way_for_tpus_only():
    programs = {name: small_sampler(name, jax.devices()[:1]).program.as_text() for name in ("cpu", "gpu", "tpu")}
    assert {name: reversed_shapes(text) for name, text in programs.items()} == {
        "cpu": set(),
        "gpu": set(),
        "tpu": {"8x2x2x128x"},
    }


def sampler_of_a_tpu() -> tuple[set, dict]:
    """The shapes of the 3x3 kernels that the sampler's program for four TPUs reverses, and what it sends."""
    chips = target.parse_target("v5e:2x2")
    lowered = small_sampler("tpu", target.devices_of(chips))
    compiled = lowered.program.compile()
    found = {i.arrays[0].shape for i in Program(compiled.as_text()).by_name.values() if i.opcode == "reverse"}
    return {shape for shape in found if shape[:2] == (3, 3)}, measure(lowered, compiled, 4, chips.chip).collectives


@needs_tpu_compiler
@pytest.mark.slow
def test_no_kernel_is_reversed_in_a_sampler_of_a_tpu(optimised, monkeypatch):
    assert sampler_of_a_tpu() == (set(), {})
    jax.clear_caches()
    convolve = lambda x, kernel: lax.conv_general_dilated(  # noqa: E731
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    monkeypatch.setattr(ops, "convolve_2x2", convolve)
    assert sampler_of_a_tpu()[0] == {(3, 3, 64, 128), (3, 3, 128, 128)}
    jax.clear_caches()
