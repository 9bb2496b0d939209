"""The parent of a benchmark: starts the contenders, compares their outputs, lets them take turns, one at a time."""

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

TURN_SECONDS = 1.0  # a turn takes at least about so long
# How far outputs may be from jax_ddpm's: a share of the largest magnitude for loss and gradient norm, absolute for
# pictures in [-1, 1]. float32: sums in other orders; measured 1e-6, 6e-6 and 2e-6. bfloat16: eight bits of mantissa,
# and torch's autocast rounds at other places.
ALLOWED = {
    "float32": {"loss": 1e-5, "grad_norm": 1e-4, "x_0": 1e-4},
    "bfloat16": {"loss": 1e-2, "grad_norm": 1e-1, "x_0": 1e-1},
}


@dataclass
class Entry:
    """A contender's results: seconds per step of each turn, and what it told."""

    seconds: list[float] = field(default_factory=list)
    about: dict = field(default_factory=dict)
    check: dict = field(default_factory=dict)
    peak_memory: int | None = None
    left_out: str | None = None
    """Why it did not take part."""


class Child:
    """A contender's process."""

    def __init__(self, job: Job):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the others need memory of the GPU too
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # the time of compiling is measured
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jax_ddpm.benchmark.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.ready = self.order(json.loads(to_json(job)))

    def order(self, content: Mapping) -> dict:
        """The answer to an order; {"absent": reason} where the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(content), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        last = self.log.read().strip().splitlines()[-1:]
        return {"absent": f"its process ended with code {code}: {' '.join(last)[:300]}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def contest(job: Job, contenders: Sequence[str], rounds: int, log: Callable[[str], None]) -> dict[str, Entry]:
    """Measure contenders at one job, with matrix products among them; by name.

    Only outputs that agree are timed. Turns go A B C A B C ..., `rounds` times.
    """
    entries: dict[str, Entry] = {}
    children: dict[str, Child] = {}
    try:
        for name in (*contenders, *products_for(contenders)):
            log(f"  {name}: getting ready")
            child = children[name] = Child(replace(job, contender=name))
            entries[name] = Entry(
                about=child.ready.get("about", {}),
                check=child.ready.get("check", {}),
                left_out=child.ready.get("absent"),
            )
        judge(entries, ALLOWED[job.run.training.precision])
        for name, entry in entries.items():
            if entry.left_out:
                log(f"  {name}: left out, {entry.left_out}")
                children.pop(name).close()
        for number in range(rounds):
            for name, child in children.items():
                take_turn(child, entries[name])
            medians = (f"{name} {np.median(entries[name].seconds):.3g} s" for name in children)
            log(f"  round {number + 1}: {', '.join(medians)}")
        for name, child in children.items():  # after the turns: whoever watches slows
            if not entries[name].left_out:
                entries[name].about |= child.order({"profile": True}).get("profile", {})
    finally:
        for child in children.values():
            child.close()
    return entries


def products_for(contenders: Sequence[str]) -> list[str]:
    """The matrix products of the frameworks that take part."""
    jax_product, torch_product = MATRIX_PRODUCTS
    return [jax_product] * ("jax" in contenders) + [torch_product] * any(name != "jax" for name in contenders)


def take_turn(child: Child, entry: Entry) -> None:
    if entry.left_out:
        return
    unit = child.ready["unit_seconds"] * child.ready["steps"]
    answer = child.order({"units": max(1, round(TURN_SECONDS / unit))})
    if "absent" in answer:
        entry.left_out = answer["absent"]
        return
    entry.seconds.append(answer["seconds"])
    entry.peak_memory = answer["peak_memory"]


def judge(entries: Mapping[str, Entry], allowed: Mapping[str, float]) -> None:
    """Leave out whoever works on another kind of device than the first, or whose output differs from the first's."""
    present = {name: entry for name, entry in entries.items() if not entry.left_out}
    if not present:
        return
    first, reference = next(iter(present.items()))
    platform = reference.about["platform"]
    for entry in present.values():
        if entry.about["platform"] != platform:
            version, own = entry.about["version"], entry.about["platform"]
            entry.left_out = f"{version} sees no {platform} here, and a {own} is not compared with a {platform}"
            continue
        for quantity, value in entry.check.items():
            error = difference(quantity, value, reference.check[quantity])
            if not error <= allowed[quantity]:
                entry.left_out = f"its {quantity} differs from that of {first} by {error:.2g}: not compared"


def difference(quantity: str, value, reference) -> float:
    """Absolute for pictures, else relative; infinite where shapes differ or anything is not finite."""
    value, reference = np.asarray(value), np.asarray(reference)
    if quantity == "x_0" and value.shape != reference.shape:
        return np.inf
    error = np.abs(value.ravel() - reference.ravel()).max()
    error = error if quantity == "x_0" else error / np.abs(reference).max()
    return float(error) if np.isfinite(error) else np.inf
