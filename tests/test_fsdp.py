"""`--fsdp`: the training state split over devices. Child processes have several devices of the CPU."""

import json
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
from jax_ddpm.plan.measure import bytes_in, seconds
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
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh
from jax_ddpm.training import feed, fsdp
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.prepare import make_network
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer
from tests.small import small

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
mesh, found = Mesh(np.asarray(jax.devices()), ("data",)), {"losses": []}
for on in (False, True):
    config = small(fsdp=on, steps=4)
    optimizer = make_optimizer(config.training)
    graph, state = create_state(make_network(config, (8, 8, 1), False), optimizer, True)
    state = jax.device_put(state, wanted := fsdp.state_shardings(state, mesh, on))
    batches = feed.Feed(images, config, mesh)
    dispatch = feed.make_program(graph, optimizer, config, 4, mesh, (8, 8, 1))
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
found["restored"], made = [], create_state(make_network(config, (8, 8, 1), False), optimizer, True)[1]
for count, on in ((1, False), (2, True), (2, False), (4, True)):
    few = Mesh(np.asarray(jax.devices()[:count]), ("data",))
    again, _ = checkpoints.restore(4, jax.device_put(made, fsdp.state_shardings(made, few, on)))
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), again, state)
    found["restored"].append(all(jax.tree.leaves(same)))
    found["restored"].append(jax.tree.leaves(again.params)[-1].sharding.num_devices == count)
print(json.dumps(found))
"""


def test_four_devices_train_as_without_it_and_hold_a_quarter(tmp_path):
    options = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": options}
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(*found["losses"], rtol=1e-5)
    assert found["whole"] == [] and all(found["restored"])
    assert found["bytes"] < 0.3 * found["all_bytes"]


@needs_gpu_compiler
def test_the_program_of_an_h100_reduces_in_float32_and_keeps_no_whole_copy(optimised):  # noqa: F811
    lowered, figures, num_parameters = compiled_training(fsdp=True)
    assert figures.aliased == lowered.donated and figures.callbacks == 0
    reduced = figures.collectives["all-reduce"] + figures.collectives.get("reduce-scatter", [])
    assert {array.dtype for array in reduced} == {"f32"}
    assert num_parameters < sum(array.size for array in reduced) < 1.01 * num_parameters
    state = lowered.arguments["state"]
    large = [leaf for leaf in jax.tree.leaves((state.params, state.ema, state.optimizer)) if leaf.size >= 1024]
    assert large and all(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in large)
    assert figures.memory.arguments < bytes_in(state) + 1.1 * bytes_in(lowered.arguments["images"])


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
