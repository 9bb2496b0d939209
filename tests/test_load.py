"""Long runs in one process: memory and speed stay what they were. Five minutes on two cores."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.killing import start

STEPS = 200_000
IMAGES = 100_000
TINY = ["--widths", 32, "--time-width", 32, "--timesteps", 10, "--beta-end", 0.4, "--batch-size", 2, "--num-samples", 4]

SAMPLE = """
import sys
import jax_ddpm
model = jax_ddpm.load_model(sys.argv[1])
for seed in range(int(sys.argv[2]) // 500):
    assert jax_ddpm.sample(model, 500, seed).shape == (500, 8, 8, 1)
"""


def memory_of(process) -> list[int]:
    """Resident kilobytes of a process, four times a second until it ends."""
    sizes = []
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as file:
            sizes += [int(line.split()[1]) for line in file if line.startswith("VmRSS")]
        time.sleep(0.25)
    assert process.returncode == 0
    return sizes


def assert_flat(sizes):
    sizes = sizes[len(sizes) // 20 :]  # without its start
    tenth = len(sizes) // 10
    assert np.median(sizes[-tenth:]) < 1.05 * np.median(sizes[:tenth])


@pytest.mark.slow
def test_training_and_sampling_for_long(tmp_path):
    folder = tmp_path / "run"
    flags = [*TINY, "--steps", STEPS, "--log-every", 100, "--checkpoint-every", 5000, "--out", folder]
    with open(tmp_path / "said", "w") as said:
        assert_flat(memory_of(start(*flags, stdout=said)))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["images_per_second"] for row in rows]
    assert np.median(speeds[-len(rows) // 10 :]) > 0.8 * np.median(speeds[: len(rows) // 10])
    assert {row["step"] for row in rows} >= set(range(100, STEPS + 1, 100))
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [STEPS - 5000, STEPS]

    assert_flat(memory_of(subprocess.Popen([sys.executable, "-c", SAMPLE, str(folder), str(IMAGES)])))
