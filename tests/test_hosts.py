"""What the processes of one training tell each other, without other processes. `test_distributed` has those."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.commands.train import parse_run
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training import follow, hosts, start_hosts
from jax_ddpm.training.feed import make_dispatch
from jax_ddpm.training.hosts import Hosts, ProcessesDiffer, Turn, differences
from jax_ddpm.training.interrupt import Interrupted, SignalHandler
from jax_ddpm.training.placement import columns_here, from_process_0, here, put
from jax_ddpm.training.start_hosts import HostFlags
from tests.small import SMALL, small

ADDRESS = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}


class Store:
    """The key-value store of `jax.distributed`, for threads."""

    def __init__(self):
        self.texts: dict[str, str] = {}

    def key_value_set(self, key, text, allow_overwrite=False):
        self.texts[key] = text

    def key_value_delete(self, key):
        del self.texts[key]

    def key_value_dir_get(self, key):
        return [(name, text) for name, text in list(self.texts.items()) if name.startswith(key)]

    def blocking_key_value_get(self, key, milliseconds):
        end = time.monotonic() + milliseconds / 1000
        while time.monotonic() < end:
            if key in self.texts:
                return self.texts[key]
            time.sleep(0.002)
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")


@pytest.fixture
def pair(monkeypatch):
    """Processes 0 and 1 of a training, and the messages with which they end."""
    ended = []
    monkeypatch.setattr(hosts, "end_process", ended.append)
    monkeypatch.setattr(hosts, "PERIOD_SECONDS", 0.02)
    monkeypatch.setattr(hosts, "GONE_SECONDS", 0.1)
    monkeypatch.setattr(hosts, "say_when_jax_aborts", lambda message: None)
    store, both = Store(), []
    for i in range(2):
        host = Hosts(store, i, 2, "10.0.0.1:8476", SignalHandler(), ["jax-ddpm", "train", "--resume", "--out", "x"])
        host.prefix = "run"
        both.append(host)
    yield *both, ended
    for host in both:
        host.finished.set()


def entered(*processes):
    threads = [threading.Thread(target=host.__enter__) for host in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_process_0_decides_how_many_steps_a_dispatch_has(pair):
    first, second, _ = pair
    for steps in (10, 3, 0):
        first.announce(steps)
    assert [second.next_turn() for _ in range(3)] == [Turn(10), Turn(3), Turn(0)]
    second.raise_if_stopped(Turn(0))
    assert not first.stopped and not second.stopped
    for _ in range(50):
        first.announce(1)
    assert len(first.client.texts) == hosts.KEPT_TURNS


def test_a_signal_of_any_process_ends_the_run_of_all(pair):
    first, second, ended = pair
    entered(first, second)
    second.signals.signal_number, second.signals.deferred = signal.SIGTERM, True
    for _ in range(200):
        if first.signals.signal_number is not None:
            break
        time.sleep(0.01)
    assert first.signals.signal_number == signal.SIGTERM
    first.announce(0)
    turn = second.next_turn()
    assert turn == Turn(0, signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        second.raise_if_stopped(turn)
    assert stopped.value.number == signal.SIGTERM and not ended


def test_a_process_that_fails_ends_the_others(pair):
    first, second, ended = pair
    entered(first, second)
    second.__exit__(UserError, UserError("The images are gone.\nBring them back."), None)
    for _ in range(200):
        if ended:
            break
        time.sleep(0.01)
    assert ended[0] == f"{first.names[1]} has ended: The images are gone.\nBring them back."


def test_a_process_without_signs_of_life_is_named(pair, monkeypatch):
    first, second, ended = pair
    entered(first, second)
    monkeypatch.setattr(hosts, "DEAD_AFTER_SECONDS", 0.3)
    second.finished.set()  # its threads end
    for _ in range(300):
        if ended:
            break
        time.sleep(0.01)
    first.finished.set()
    lines = ended[0].splitlines()
    assert lines[0].startswith("Process 1 (on ") and "no sign of life" in lines[0]
    assert lines[1] == "To continue: jax-ddpm train --resume --out x"


def test_processes_that_differ_all_say_how(pair):
    first, second, _ = pair
    first.set("settings/1", '{"learning_rate": 0.1, "resume": false}')
    first.set("settings/0", '{"learning_rate": 0.2, "resume": false}')
    second.gather = first.gather = lambda key, text: {i: first.client.texts[f"run/settings/{i}"] for i in (0, 1)}
    for host in (first, second):
        with pytest.raises(ProcessesDiffer, match=r"learning_rate is 0\.2 in process 0, 0\.1 in process 1") as error:
            host.compare("settings", {}, "Give all of them the same flags.")
        assert len(str(error.value).splitlines()) == 2


def test_settings_that_must_be_the_same():
    values = follow.settings_and_versions(SMALL, resume=False)
    assert {"learning_rate", "batch_size", "dataset", "resume", "the version of jax"} <= set(values)
    other = follow.settings_and_versions(small(learning_rate=0.5, cache_dir="/elsewhere"), resume=True)
    names = {0: "Process 0 (on a)", 1: "Process 1 (on b)", 2: "Process 2 (on c)"}
    assert differences({0: values, 1: values, 2: other}, names) == (
        "learning_rate is 0.001 in process 0 (on a), 0.5 in process 2 (on c); "
        "resume is False in process 0 (on a), True in process 2 (on c)"
    )
    assert differences({0: values, 1: values}, names) == ""


def test_flags_and_environment():
    assert HostFlags().resolved(ADDRESS) == HostFlags()  # nothing happens without --distributed
    assert HostFlags(True).resolved(ADDRESS) == HostFlags(True, "10.0.0.1:8476", 4, 2)
    flags = HostFlags(True, "host:1", 2, 0)
    assert flags.resolved(ADDRESS) == flags
    words = ["--distributed", "--coordinator", "host:1", "--processes", "2", "--process-id", "0"]
    assert flags.arguments() == words and parse_run(words, "train").hosts == flags
    assert HostFlags(True).arguments() == ["--distributed"]  # found again in the environment


@pytest.mark.parametrize(
    "flags, environment, message",
    [
        (HostFlags(coordinator="a:1"), {}, "--coordinator is for .* add --distributed"),
        (HostFlags(True, coordinator="10.0.0.1"), {}, "expected host and port"),
        (HostFlags(True, coordinator="a:99999"), {}, "expected host and port"),
        (HostFlags(True, processes=0), {}, "at least 1"),
        (HostFlags(True, processes=2, process_id=2), {}, "expected 0 to 1, for 2 processes"),
        (HostFlags(True, process_id=-1), {}, "from 0"),
        (HostFlags(True), {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID=first: expected a number"),
    ],
)
def test_wrong_flags(flags, environment, message):
    with pytest.raises(UserError, match=message.replace("--", "(--)?")):
        flags.resolved(environment)


def test_a_coordinator_that_cannot_be_reached():
    with pytest.raises(UserError, match=r"The coordinator 127\.0\.0\.1:1 cannot be reached"):
        start_hosts.wait_for_coordinator("127.0.0.1:1", 0.1)


def test_the_last_line_says_how_to_continue(monkeypatch):
    command = ["jax-ddpm", "train", "--resume", "--out", "runs/x"]
    assert start_hosts.continue_with(command) == "To continue: jax-ddpm train --resume --out runs/x"
    monkeypatch.setattr(start_hosts, "started_with", HostFlags(True))
    assert start_hosts.continue_with(command) == (
        "To continue on every host: jax-ddpm train --resume --out runs/x --distributed"
    )


def test_arrays_of_one_process():
    replicated = NamedSharding(Mesh(np.asarray(jax.devices()[:1]), ("data",)), PartitionSpec())
    values = {"x": np.float32([-0.0, np.nan, 1e-42]), "n": np.int32(7), "h": jnp.bfloat16(-0.0)}
    placed = from_process_0(values, replicated)
    for name, value in values.items():
        assert np.asarray(placed[name]).tobytes() == np.asarray(value).tobytes()
        assert placed[name].dtype == value.dtype and placed[name].sharding == replicated
    assert all(jax.tree.leaves(jax.tree.map(lambda found, given: found is given, here(placed), placed)))
    assert put(values["x"], replicated).sharding == replicated
    assert columns_here(NamedSharding(replicated.mesh, PartitionSpec(None, "data")), (2, 8)) == slice(0, 8)


def test_batches_that_are_sent_by_step_are_the_same():
    """The program for several processes, whose data set is not on the devices, against the usual one."""

    def train_step(state, batch, labels):
        return state * 2 + jnp.sum(batch * labels[:, None]), {"loss": jnp.sum(batch)}

    images, labels = np.arange(24, dtype=np.uint8).reshape(12, 2), np.arange(12, dtype=np.int32)
    indices = np.random.default_rng(0).permutation(12).reshape(3, 4)
    usual, by_step = (make_dispatch(train_step, 3, by_step=flag) for flag in (False, True))
    expected = usual(jnp.int32(1), images, indices, np.int32(2), labels)
    found = by_step(jnp.int32(1), images[indices], indices, np.int32(2), labels[indices])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_process_says_its_line_where_jax_aborts_it():
    program = (
        "import os\nfrom jax_ddpm.training.start_hosts import say_when_jax_aborts\n"
        "say_when_jax_aborts('first'); say_when_jax_aborts('Process 0 has ended.'); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr.strip()) == (2, "Process 0 has ended.")
