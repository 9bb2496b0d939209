"""The process of one contender: prepares the job, reports its output, and then runs on request.

The job and the requests are JSON lines on stdin; the answers are JSON lines on stdout. All other output goes to stderr.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from jax_ddpm.benchmark.job import Contender, Job, Unavailable
from jax_ddpm.process import check_devices, prepare_process, trim_and_hold_free_blocks
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import from_json


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content):
        print(json.dumps(content), file=answers, flush=True)

    prepare_process()
    try:
        job = from_json(Job, sys.stdin.readline(), "The job")
        contender = prepare(job)
        check = {name: np.asarray(value, np.float64).tolist() for name, value in contender.check.items()}
        answer(steps=contender.steps, step_seconds=timed(contender, 1), check=check, about=contender.about)
    except (Unavailable, UserError, ImportError, MemoryError) as error:
        answer(unavailable=" ".join(str(error).split()) or type(error).__name__)
        return
    trim_and_hold_free_blocks()  # after compiling and comparing outputs
    contender.reset_peak_memory()
    reset_resident_peak()
    for line in sys.stdin:
        request = json.loads(line)
        if "profile" in request:
            answer(profile=contender.profile())
            continue
        if job.what == "train":  # not timed: it allocates the memory that was freed after the last turn
            contender.run(1)
        seconds = timed(contender, request["runs"])
        answer(seconds=seconds, peak_memory=contender.peak_memory() or resident_peak())
        if job.what == "train":
            contender.reset_peak_memory()


def prepare(job: Job) -> Contender:
    """Import the framework of the job's contender, compile and warm up."""
    if job.contender.endswith("jax"):
        check_devices()
        from jax_ddpm.benchmark import jax_side as side
    else:
        from jax_ddpm.benchmark import torch_side as side
    if job.contender.startswith("matrix product"):
        return side.matrix_product(job)
    return side.train(job) if job.what == "train" else side.sample(job)


def timed(contender: Contender, runs: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    contender.run(runs)
    return (time.perf_counter() - start) / (runs * contender.steps)


def reset_resident_peak() -> None:
    """On Linux: reset the peak of the resident set, so that compilation does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def resident_peak() -> int | None:
    """Peak resident set in bytes: on Linux since `reset_resident_peak`, on macOS since the start; None on Windows."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return None
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    main()
