"""A training over several processes: what they compare at the start, and the steps of all but process 0.

The steps of process 0 are those of `loop`, as in a training of one process.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import jax_ddpm
from jax_ddpm import data
from jax_ddpm.spec.data_record import path_of, record_of
from jax_ddpm.spec.own_networks import import_flags
from jax_ddpm.spec.run_classes import with_classes
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import fsdp
from jax_ddpm.training.feed import Feed, Validation, make_program
from jax_ddpm.training.hosts import Hosts
from jax_ddpm.training.interrupt import SignalHandler
from jax_ddpm.training.placement import from_process_0, here
from jax_ddpm.training.prepare import count_steps, load_images, make_network
from jax_ddpm.training.progress import Intervals
from jax_ddpm.training.run_folder import flatten, version_of
from jax_ddpm.training.start_hosts import continue_with
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_optimizer

PACKAGES = ("jax-ddpm", "jax", "jaxlib", "flax", "optax", "numpy")
OF_ONE_HOST = ("data.data_dir", "data.manual_dir", "data.cache_dir", "training.init_from")
"""Settings with paths, which may differ between hosts."""


def is_joined() -> bool:
    """Whether this process is one of several. Does not start JAX's devices if it is alone."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def command_to_resume(folder: Path) -> list[str]:
    return ["jax-ddpm", "train", "--resume", "--out", str(folder), *import_flags()]


@contextmanager
def hosts_of_run(signals: SignalHandler, folder: Path, config: RunConfig, resume: bool) -> Iterator[Hosts | None]:
    """A context with the processes of this run, which have the same settings and versions; None if there is only one.

    Raises UserError in all processes if they differ.
    """
    if not is_joined():
        yield None
        return
    from jax._src.distributed import global_state  # JAX has no public name for the key-value store

    here = jax.process_index(), jax.process_count(), global_state.coordinator_address
    with Hosts(global_state.client, *here, signals, command_to_resume(folder)) as hosts:
        advice = "Give all of them the same flags, and install the same versions."
        hosts.compare("settings", settings_and_versions(config, resume), advice)
        yield hosts


def settings_and_versions(config: RunConfig, resume: bool) -> dict[str, object]:
    """What all processes of a training must have in common, by name."""
    settings = {name.split(".")[-1]: value for name, value in flatten(config).items() if name not in OF_ONE_HOST}
    if path_of(config.data.dataset):
        del settings["dataset"]  # the images are compared
    return {**settings, "resume": resume, **versions()}


def versions() -> dict[str, object]:
    """What all processes that work together must have in common, whatever they do, by name."""
    devices = jax.local_devices()
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{f"the version of {name}": version_of(name) for name in PACKAGES},
        "the source code of jax_ddpm": hash_of_source(),
        "the kind of devices": devices[0].device_kind,
        "the number of devices": len(devices),
    }


def hash_of_source() -> str:
    """The first digits of a SHA-256 of the files of this package."""
    folder, digest = Path(jax_ddpm.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def compare_images(hosts: Hosts, images: data.ImageData) -> None:
    """Raises UserError in all processes if their images or labels differ. The others wait until process 0 has its own.

    So process 0 alone fills a cache that they share.
    """
    record = record_of(images)
    if hosts.index == 0:
        hosts.set("loaded", "")
    values = {
        "the images": f"{record.describe()} ({record.fingerprint[:12]})",
        "the labels": record.labels and record.labels[:12],
        "the classes": record.class_names,
    }
    hosts.compare("images", values, "Give all of them the same images, in the same order.")


def follow(
    config: RunConfig, hosts: Hosts, signals: SignalHandler, mesh: Mesh, resume: bool, given: data.ImageData | None
) -> None:
    """Take the steps that process 0 announces, with its state and the images of this process. Writes nothing.

    Raises Interrupted if a signal ends the run.
    """
    hosts.wait("loaded")
    images = load_images(config, lambda text: None, resume, given)
    config = with_classes(config, images)
    compare_images(hosts, images)
    training, image_shape = config.training, images.train.shape[1:]
    labels = (images.labels, images.validation_labels) if training.conditional else (None, None)
    steps_per_epoch, total_steps = count_steps(config, len(images.train))
    optimizer = make_optimizer(training)
    dtype = np.float64 if training.precision == "float64" else np.float32
    # The weights come from process 0. So those of this process, and a file of --init-from, do not matter.
    network = make_network(config, image_shape, has_checkpoint=True)
    graph, state = create_state(network, optimizer, training.ema, dtype, training.power_ema)
    start = from_process_0(np.int32(0), fsdp.replicated(mesh))
    state = from_process_0(state, fsdp.state_shardings(state, mesh, training.fsdp))
    step = int(start)

    feed = Feed(images.train, config, mesh, labels[0])
    dispatch = make_program(graph, optimizer, config, total_steps, mesh, image_shape, feed.resident is not None)
    validate = Validation(graph, config, images.validation, mesh, labels[1])
    intervals = Intervals(config, steps_per_epoch, total_steps, len(images.validation) > 0)
    signals.message = f"Stopped. {continue_with(hosts.command)}"
    signals.deferred = True
    while (turn := hosts.next_turn()).steps or turn.part:
        if turn.part:
            here(fsdp.part_of_state(state, turn.part))
            continue
        state, _ = feed.run(dispatch, state, step, turn.steps)
        step += turn.steps
        if intervals.validation(step):
            validate(state)
    signals.deferred = False
    hosts.raise_if_stopped(turn)
