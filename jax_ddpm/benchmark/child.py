"""One contender in its process: gets ready, tells its output, then runs whenever it is told to.

Jobs and orders come as JSON lines on stdin, answers go as JSON lines to stdout; all else that prints goes to stderr.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from jax_ddpm.benchmark.job import Absent, Contender, Job
from jax_ddpm.process import prepare_process, trim_and_hold_free_blocks
from jax_ddpm.spec.json_text import from_json


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content):
        print(json.dumps(content), file=answers, flush=True)

    prepare_process()
    try:
        job = from_json(Job, sys.stdin.readline(), "The job")
        contender = prepare(job)
        check = {name: np.asarray(value, np.float64).tolist() for name, value in contender.check.items()}
        answer(steps=contender.steps, unit_seconds=timed(contender, 1), check=check, about=contender.about)
    except (Absent, ImportError, MemoryError) as error:
        answer(absent=" ".join(str(error).split()) or type(error).__name__)
        return
    trim_and_hold_free_blocks()  # after compiling and comparing outputs
    contender.forget_peak()
    forget_peak()
    for line in sys.stdin:
        order = json.loads(line)
        if "profile" in order:
            answer(profile=contender.profile())
            continue
        if job.what == "train":  # as amid a run: memory that the last turn gave back is slow to come again
            contender.run(1)
        seconds = timed(contender, order["units"])
        answer(seconds=seconds, peak_memory=contender.peak_memory() or resident_peak())
        if job.what == "train":
            contender.forget_peak()


def prepare(job: Job) -> Contender:
    if job.contender.endswith("jax"):
        from jax_ddpm.benchmark import jax_side as side
    else:
        from jax_ddpm.benchmark import torch_side as side
    if job.contender.startswith("matrix product"):
        return side.matrix_product(job)
    return side.train(job) if job.what == "train" else side.sample(job)


def timed(contender: Contender, units: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    contender.run(units)
    return (time.perf_counter() - start) / (units * contender.steps)


def forget_peak() -> None:
    """Linux: the resident peak starts anew, so that compilation does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_peak() -> int | None:
    """Bytes: the largest resident set since `forget_peak`; on macOS since the start; None on Windows."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return None
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    main()
