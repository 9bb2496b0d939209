"""Runs of `train_jax.py` in processes of their own, hurt on purpose at a chosen moment.

`python tests/killing.py HOOKS FLAG ...` trains with these flags. HOOKS is JSON, a list of (function, n, action): when
the function is called for the nth time, the process sends itself a signal (the action is its name), or takes on a
limit of that many bytes for each file it writes (the action is a number; -1 lifts it), or the function is not called
(the action is "skip"). With HOOKS each dispatch is one step, so that calls can be counted.
"""

import functools
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "scripts" / "train_jax.py"


def start(*arguments, hooks=(), stdout=subprocess.PIPE, **environment) -> subprocess.Popen:
    flags = f"{environment.pop('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # compiles twice as fast
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(hooks), *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment, "XLA_FLAGS": flags},
    )


def ended(*arguments, hooks=(), **environment) -> tuple[int, str]:
    """The exit code and what was said."""
    process = start(*arguments, hooks=hooks, **environment)
    said = process.communicate()[0]
    return process.returncode, said


def act(action) -> None:
    if isinstance(action, str):
        os.kill(os.getpid(), getattr(signal, action))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (action, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def hook(function: str, n: int, action) -> None:
    module, _, name = function.partition(":")
    *holders, name = name.split(".")
    holder = importlib.import_module(module)
    for part in holders:
        holder = getattr(holder, part)
    original, calls = getattr(holder, name), 0

    @functools.wraps(original)
    def hurting(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == n and action == "skip":
            return None
        if calls == n:
            act(action)
        return original(*arguments, **settings)

    setattr(holder, name, hurting)


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        importlib.import_module("jax_ddpm.training.feed").MAX_DISPATCH_SECONDS_ON_CPU = 0
        hook(*each)
    sys.argv = [str(TRAIN), *sys.argv[2:]]
    runpy.run_path(str(TRAIN), run_name="__main__")
