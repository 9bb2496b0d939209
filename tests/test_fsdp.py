"""`--fsdp`: the training state split over devices. Child processes have several devices of the CPU."""

import json
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jax_ddpm.commands import train_torch
from jax_ddpm.plan.measure import seconds
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training import fsdp
from jax_ddpm.training.prepare import make_mesh
from tests.test_compiled import compiled_training, needs_gpu_compiler, optimised  # noqa: F401
from tests.test_distributed import FLAGS, assert_same_losses, trained
from tests.test_plan import MEASURED, V5E

FOUR = AbstractMesh((4,), ("data",))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3, 32, 64), 3), ((3, 3, 64, 64), 3), ((3, 3, 1024, 2), 2), ((4096,), 0), ((1000, 3), 0), ((999, 3), None)],
)
def test_the_axis_that_is_split(shape, axis):
    assert fsdp.split_axis(shape, 4) == axis
    wanted = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
    assert fsdp.split_shardings(jnp.zeros(shape), FOUR).spec == wanted


def test_small_arrays_are_whole_on_every_device():
    assert fsdp.split_axis((1023,), 1) is None and fsdp.split_axis((512,), 4) is None


def test_one_device_says_that_there_is_nothing_to_split():
    mesh = make_mesh(1)
    assert not fsdp.is_on(True, mesh) and not fsdp.is_on(False, FOUR) and fsdp.is_on(True, FOUR)
    assert fsdp.describe({}, mesh) == "fsdp has no effect: there is one device."
    state = {"kernel": jnp.zeros((1000, 1000)), "bias": jnp.zeros(100)}
    assert fsdp.bytes_of(state, fsdp.split_shardings(state, FOUR)) == 4 * (250_000 + 100)


def test_the_pytorch_reference_refuses_it():
    with pytest.raises(UserError, match=r"The PyTorch reference trains on one device: omit (--)?fsdp"):
        train_torch.main(["--fsdp"], "")


def test_a_gathered_array_is_sent_to_all_other_devices():
    gathered = {"all-gather": MEASURED.collectives["all-reduce"]}
    times = seconds(MEASURED.__class__(**{**vars(MEASURED), "collectives": gathered}), V5E.chip, 4)
    assert times.network == pytest.approx(3 * 4200 / 200e9)


PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh
from jax_ddpm import ops
from jax_ddpm.training import feed, fsdp
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.prepare import make_network
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer
from parity_tests.networks import CASES
from tests.small import small

platform, precision, network = sys.argv[2:]
ops.compile_for(platform).__enter__()
shape = (CASES[network].size, CASES[network].size, CASES[network].channels) if network else (8, 8, 1)
images = np.random.default_rng(0).integers(0, 256, (64, *shape), np.uint8)
mesh, found = Mesh(np.asarray(jax.devices()), ("data",)), {"losses": []}
for on in (False, True):
    config = small(fsdp=on, steps=4, precision=precision)
    config = replace(config, network=CASES[network].config) if network else config
    optimizer = make_optimizer(config.training)
    graph, state = create_state(make_network(config, shape, False), optimizer, True)
    state = jax.device_put(state, wanted := fsdp.state_shardings(state, mesh, on))
    batches = feed.Feed(images, config, mesh)
    dispatch = feed.make_program(graph, optimizer, config, 4, mesh, shape)
    losses = []
    for step in (0, 2):
        state, metrics = batches.run(dispatch, state, step, 2)
        losses += np.asarray(metrics["loss"][:2]).tolist()
    found["losses"].append([*losses, feed.Validation(graph, config, images[:20], mesh)(state)])
found["bytes"] = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
found["all_bytes"] = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
found["whole"] = [  # after the steps
    leaf.shape
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
]
checkpoints = Checkpoints(Path(sys.argv[1]), config.output, print)
checkpoints.save(4, state, {"best": None})
checkpoints.wait()
found["restored"], made = [], create_state(make_network(config, shape, False), optimizer, True)[1]
for count, on in ((1, False), (2, True), (2, False), (4, True)):
    few = Mesh(np.asarray(jax.devices()[:count]), ("data",))
    again, _ = checkpoints.restore(4, jax.device_put(made, fsdp.state_shardings(made, few, on)))
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), again, state)
    found["restored"].append(all(jax.tree.leaves(same)))
    found["restored"].append(jax.tree.leaves(again.params)[-1].sharding.num_devices == count)
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("platform", "precision", "network", "share"),
    [
        ("cpu", "float32", "", 0.3),
        pytest.param("gpu", "bfloat16", "", 0.3, marks=pytest.mark.slow),  # gradients of each device, averaged
        pytest.param("cpu", "float32", "superminddpm", 0.4, marks=pytest.mark.slow),  # BatchNorm; many small arrays
    ],
)
def test_four_devices_train_as_without_it_and_hold_a_quarter(tmp_path, platform, precision, network, share):
    options = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": options}
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), platform, precision, network]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(*found["losses"], rtol=1e-5)
    assert found["whole"] == [] and all(found["restored"])
    assert found["bytes"] < share * found["all_bytes"]


def faults_of_program(lowered, figures, num_parameters) -> list[str]:
    """Which properties the program for 8 H100 lacks: it gathers the parameters once, and sums the gradients once."""
    state, found = lowered.arguments["state"], figures.collectives
    parts = [math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params)]
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    split = sum(part for part, size in zip(parts, sizes, strict=True) if part < size)
    reduced = found.get("all-reduce", []) + found.get("reduce-scatter", [])
    met = {
        "donated": figures.aliased == lowered.donated,
        "large arrays": all(part < size for part, size in zip(parts, sizes, strict=True) if size >= 1024),
        "gathered": sum(array.size for array in found.get("all-gather", [])) == split,
        "dtype of the sums": {array.dtype for array in reduced} == {"f32"},
        "summed": num_parameters < sum(array.size for array in reduced) < 1.01 * num_parameters,
        "other traffic": set(found) <= {"all-gather", "all-reduce", "reduce-scatter"},
    }
    return [name for name, is_met in met.items() if not is_met]


@needs_gpu_compiler
def test_the_program_of_an_h100(optimised):  # noqa: F811
    assert faults_of_program(*compiled_training(fsdp=True)) == []


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["constrain_whole", "constrain_split"])
def test_a_seeded_fault_is_found(optimised, monkeypatch, fault):  # noqa: F811
    """A step that does not gather the parameters, and one that updates whole arrays on every device."""
    wrong = (lambda tree, mesh: tree) if fault == "constrain_whole" else fsdp.constrain_whole
    monkeypatch.setattr(fsdp, fault, wrong)
    assert faults_of_program(*compiled_training(fsdp=True, precision="float32"))


# Whole trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("usual") / "run", *FLAGS.split(), processes=1, devices=4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_is_the_same_with_it(usual, tmp_path, processes):
    flags = [*FLAGS.split(), "--fsdp", "--keep-best", "--power-ema", "--evaluate-every", "12", "--evaluate-images", "4"]
    flags += ["--evaluate-features", "pixels"]
    split = trained(tmp_path / "run", *flags, processes=processes, devices=4 // processes)
    assert_same_losses(split, usual)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "flag"), [(1, 1, "--fsdp"), (1, 2, "--fsdp"), (1, 4, "--no-fsdp"), (2, 2, "--fsdp")]
)
def test_a_run_resumes_with_and_without_it(usual, tmp_path, processes, devices, flag):
    shutil.copytree(usual, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "24")
    trained(tmp_path / "run", "--resume", flag, processes=processes, devices=devices)
    assert_same_losses(tmp_path / "run", usual)
