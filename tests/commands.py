"""The commands as tests call them: in a process of their own, or in the test's, and a run that many tests look at."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
FLAGS = ["--widths", "32", "--time-width", "32", "--timesteps", "20", "--beta-end", "0.4", "--steps", "6"]
FLAGS += ["--batch-size", "16", "--learning-rate", "1e-3", "--num-samples", "4", "--log-every", "2"]
FLAGS += ["--sampler", "dpmpp", "--num-steps", "9", "--power-ema", "--power-ema-every", "2"]


def command(script, *arguments, **changes):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **changes},
        check=False,
    )


def call(monkeypatch, script, *arguments) -> None:
    """Run a command in this process; float64, which the commands choose for a whole process, is off again after it."""
    x64 = jax.config.jax_enable_x64
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    finally:
        jax.config.update("jax_enable_x64", x64)


def refusal(capsys, monkeypatch, script, *arguments) -> str:
    """What a command says to wrong input, run in this process; asserts exit code 2, few lines and no traceback.

    One or two lines; refused weights may have ten.
    """
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, script, *arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if "--help" not in said:  # else it is the parser's own box
        assert 1 <= len(said.strip().splitlines()) <= (10 if "holds no complete network" in said else 2), said
    return said


def succeed(capsys, monkeypatch, script, *arguments) -> str:
    """What a command says, run in this process."""
    call(monkeypatch, script, *arguments)
    return capsys.readouterr().out
