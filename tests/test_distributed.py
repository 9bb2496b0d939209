"""Trainings by two processes of two devices each, on this machine, against one process of four devices."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[1] / "scripts"
FLAGS = "--preset digits --batch-size 16 --steps 24 --widths 32 --time-width 32 --timesteps 20 --beta-end 0.4 "
FLAGS += "--log-every 4 --validate-every 12 --checkpoint-every 8 --sample-every 12 --num-samples 4"
STREAMED = "feed.MAX_RESIDENT_BYTES = 0"  # images are read for each dispatch
IMPATIENT = "start_hosts.WAIT_SECONDS = 15"
LOSS = 1e-5  # four gradients are added up in another order


def start(folder, *flags, processes=2, devices=2, first="", ids=None, of_last=(), script="train_jax.py"):
    """Processes (subprocess.Popen) of one training in a folder, or of another command of `scripts/`.

    first: a statement that each executes first. ids: start only these. of_last: more flags for the last process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = f"import runpy\nfrom jax_ddpm.training import feed, start_hosts\n{first}\n"
    program += f"runpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')"
    options = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    started = []
    for i in range(processes) if ids is None else ids:
        together = ["--distributed", "--coordinator", address, "--processes", processes, "--process-id", i]
        words = [*flags, "--out", folder, *(together if processes > 1 else [])]
        words += of_last if i == processes - 1 else ()
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": options},
            )
        )
    return started


def ended(started: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """The exit codes, and what the processes said themselves: Gloo's lines come from JAX's runtime for CPUs."""
    said = [process.communicate(timeout=600)[0] for process in started]
    gloo = ("[Gloo]", "peer ranks")  # two of its lines can be mixed
    lines = [
        [line for line in text.splitlines() if line.strip() and not any(words in line for words in gloo)]
        for text in said
    ]
    return [process.returncode for process in started], ["\n".join(each) for each in lines]


def trained(folder: Path, *flags, **how) -> Path:
    codes, said = ended(start(folder, *flags, **how))
    assert not any(codes), said
    assert not any(said[1:]), "only process 0 says something"
    return folder


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def assert_same_losses(folder: Path, other: Path) -> None:
    found, expected = rows(folder), rows(other)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(
            [r[name] for r in found if name in r], [r[name] for r in expected if name in r], LOSS
        )


def assert_same_bits(folder: Path, other: Path) -> None:
    found, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def await_checkpoint(folder: Path, step: int) -> None:
    end = time.monotonic() + 400
    while not (folder / "checkpoints" / str(step)).is_dir():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one") / "run", *FLAGS.split(), processes=1, devices=4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two") / "run", *FLAGS.split())


def test_two_processes_train_like_one(one, two):
    assert_same_losses(two, one)
    assert json.loads((two / "config.json").read_text())["starts"][0]["processes"] == 2
    for name in ("step-0000012.png", "step-0000024.png", "grid.png", "data.png", "forward.png"):
        assert np.abs(pixels(one / "samples" / name) - pixels(two / "samples" / name)).max() <= 1


@pytest.mark.parametrize("processes, devices", [(1, 1), (1, 2), (1, 4), (2, 2)])
def test_any_number_of_devices_and_processes_resumes(two, tmp_path, processes, devices):
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "24")
    trained(tmp_path / "run", "--resume", processes=processes, devices=devices)
    assert_same_losses(tmp_path / "run", two)
    if processes == 2:
        assert_same_bits(tmp_path / "run", two)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(two, tmp_path, victim):
    started = start(tmp_path / "run", *FLAGS.split())
    await_checkpoint(tmp_path / "run", 8)
    started[victim].kill()
    killed = time.monotonic()
    started[1 - victim].wait(timeout=60)
    assert time.monotonic() - killed < 60
    codes, said = ended(started)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2
    reason, command = said[1 - victim].splitlines()[-2:]
    assert reason.startswith(f"Process {victim} (on {socket.gethostname()}) has ")
    assert command.startswith("To continue on every host, each with its own --process-id: jax-ddpm train --resume")
    trained(tmp_path / "run", "--resume")
    assert_same_losses(tmp_path / "run", two)
    assert_same_bits(tmp_path / "run", two)


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_process_ends_both_at_the_same_step(tmp_path, receiver):
    started = start(tmp_path / "run", *FLAGS.split(), "--steps", "4000")
    await_checkpoint(tmp_path / "run", 8)
    started[receiver].send_signal(signal.SIGTERM)
    codes, said = ended(started)
    assert codes == [128 + signal.SIGTERM] * 2
    assert all("Stopped. To continue on every host" in text.splitlines()[-1] for text in said)
    assert "Finishing this step and saving" in said[receiver]
    assert "Finishing this step and saving" not in said[1 - receiver]
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == list(range(4, found[-1]["step"] + 1, 4))
    last = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 0 <= last - found[-1]["step"] < 4


def test_each_process_reads_its_own_images(tmp_path):
    flags = [*FLAGS.split(), "--conditional", "--keep-best", "--power-ema", "--steps", "12"]
    one = trained(tmp_path / "one", *flags, processes=1, devices=4, first=STREAMED)
    two = trained(tmp_path / "two", *flags, first=STREAMED)
    assert_same_losses(two, one)
    assert {path.name for path in two.rglob("*")} >= {path.name for path in one.rglob("*.safetensors")}


def test_processes_with_other_settings_are_refused(tmp_path):
    codes, said = ended(start(tmp_path / "run", *FLAGS.split(), of_last=["--learning-rate", 0.5]))
    assert codes == [2, 2] and said[0] == said[1]
    assert said[0].startswith("The processes of this training differ: learning_rate is 0.002 in process 0 (on ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "present, message", [(0, "Not all of the 2 processes came within 15 s"), (1, "The coordinator")]
)
def test_a_process_alone_says_that_the_others_are_missing(tmp_path, present, message):
    codes, said = ended(start(tmp_path / "run", *FLAGS.split(), ids=[present], first=IMPATIENT))
    assert codes == [2] and said[0].splitlines()[-2].startswith(message)
