"""The parent process of a benchmark: starts the contenders, compares their outputs, and times them in turns."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jax_ddpm.benchmark.job import MATRIX_PRODUCTS, Job
from jax_ddpm.spec.json_text import to_json

TURN_SECONDS = 1.0  # target length of a turn
# Largest differences to the output of the first contender: relative for loss and gradient norm, absolute for images in
# [-1, 1]. float32: sums are added in another order; the measured differences are 1e-6 (loss), 6e-6 (gradient norm) and
# 2e-6 (images). bfloat16 has 8 bits of precision, and torch's autocast rounds in other places. tf32
# has 11 bits; a tenth of bfloat16's is an estimate, not measured on a GPU.
TOLERANCES = {
    "float32": {"loss": 1e-5, "grad_norm": 1e-4, "x_0": 1e-4},
    "tf32": {"loss": 1e-3, "grad_norm": 1e-2, "x_0": 1e-2},
    "bfloat16": {"loss": 1e-2, "grad_norm": 1e-1, "x_0": 1e-1},
}


@dataclass
class Result:
    """The result of one contender."""

    seconds: list[float] = field(default_factory=list)
    """Seconds per step, one value for each turn."""
    about: dict = field(default_factory=dict)
    """As in `Contender`, with the numbers of its profile."""
    check: dict = field(default_factory=dict)
    """As in `Contender`."""
    peak_memory: int | None = None
    """Bytes."""
    left_out: str | None = None
    """Why this contender is left out of the comparison. None if it is compared."""


class Child:
    """The process of a contender."""

    def __init__(self, job: Job):
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the other contenders need GPU memory, too
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # the compile time is measured
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jax_ddpm.benchmark.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=environment,
        )
        self.ready = self.request(json.loads(to_json(job)))

    def request(self, content: Mapping) -> dict:
        """Send a request, and return the answer: {"unavailable": reason} if the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(content), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        last = self.log.read().strip().splitlines()[-1:]
        return {"unavailable": f"its process ended with code {code}: {' '.join(last)[:300]}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def measure(job: Job, contenders: Sequence[str], rounds: int, log: Callable[[str], None]) -> dict[str, Result]:
    """Time all contenders on one job, and a matrix product in each framework. Returns the results by name.

    Only contenders whose outputs agree are timed. They take turns, A B C A B C ..., `rounds` times.
    """
    results: dict[str, Result] = {}
    children: dict[str, Child] = {}
    try:
        for name in (*contenders, *matrix_products_for(contenders)):
            log(f"  {name}: preparing")
            child = children[name] = Child(replace(job, contender=name))
            results[name] = Result(
                about=child.ready.get("about", {}),
                check=child.ready.get("check", {}),
                left_out=child.ready.get("unavailable"),
            )
        check_outputs(results, TOLERANCES[job.run.training.precision])
        for name, result in results.items():
            if result.left_out:
                log(f"  {name}: left out, {result.left_out}")
                children.pop(name).close()
        for number in range(rounds):
            for name, child in children.items():
                time_turn(child, results[name])
            medians = (f"{name} {np.median(results[name].seconds):.3g} s" for name in children)
            log(f"  round {number + 1}: {', '.join(medians)}")
        for name, child in children.items():  # after the timed turns, because profiling slows a run
            if not results[name].left_out:
                results[name].about |= child.request({"profile": True}).get("profile", {})
    finally:
        for child in children.values():
            child.close()
    return results


def matrix_products_for(contenders: Sequence[str]) -> list[str]:
    """The matrix products for the frameworks of these contenders."""
    jax_product, torch_product = MATRIX_PRODUCTS
    return [jax_product] * ("jax" in contenders) + [torch_product] * any(name != "jax" for name in contenders)


def time_turn(child: Child, result: Result) -> None:
    """Let a contender work for about TURN_SECONDS, and add its time and memory to its result."""
    if result.left_out:
        return
    seconds_per_run = child.ready["step_seconds"] * child.ready["steps"]
    answer = child.request({"runs": max(1, round(TURN_SECONDS / seconds_per_run))})
    if "unavailable" in answer:
        result.left_out = answer["unavailable"]
        return
    result.seconds.append(answer["seconds"])
    result.peak_memory = answer["peak_memory"]


def check_outputs(results: Mapping[str, Result], tolerances: Mapping[str, float]) -> None:
    """Leave out contenders on another kind of device than the first one, or with another output."""
    available = {name: result for name, result in results.items() if not result.left_out}
    if not available:
        return
    first, reference = next(iter(available.items()))
    platform = reference.about["platform"]
    for result in available.values():
        if result.about["platform"] != platform:
            version, own = result.about["version"], result.about["platform"]
            result.left_out = f"{version} sees no {platform} here, and a {own} is not compared with a {platform}"
            continue
        for quantity, value in result.check.items():
            error = difference(quantity, value, reference.check[quantity])
            if not error <= tolerances[quantity]:
                result.left_out = f"its {quantity} differs from that of {first} by {error:.2g}: not compared"


def difference(quantity: str, value, reference) -> float:
    """Largest difference: absolute for images, else relative. inf if shapes differ or a value is not finite."""
    value, reference = np.asarray(value), np.asarray(reference)
    if quantity == "x_0" and value.shape != reference.shape:
        return np.inf
    error = np.abs(value.ravel() - reference.ravel()).max()
    error = error if quantity == "x_0" else error / np.abs(reference).max()
    return float(error) if np.isfinite(error) else np.inf
