"""The --help of every command: complete, with examples, quick, and without loading JAX or PyTorch."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from jax_ddpm import NetworkConfig
from jax_ddpm.commands import flags, main, train
from jax_ddpm.commands.train import RunFlags, parse_run
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.presets import PRESETS

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROGRAM = """
import sys
from jax_ddpm.commands import main
sys.argv[0] = "jax-ddpm"
try:
    main.main()
finally:
    print("loaded:", *({"jax", "torch", "tensorflow", "orbax"} & set(sys.modules)))
"""


def run(*arguments, **changes):
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **changes}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", env=environment, timeout=60
    )


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help(command):
    done = run("-c", PROGRAM, command, "--help")
    assert done.returncode == 0 and not done.stderr
    said, _, loaded = done.stdout.partition("loaded:")
    assert loaded.split() == []
    assert f"usage: jax-ddpm {command} " in said
    examples = re.findall(rf"^  jax-ddpm {command}(?: .*)?$", said, re.MULTILINE)
    assert 1 <= len(examples) <= 3
    assert not re.search(r"None|\(default: \)|--name\b", said)
    names = re.findall(r"^│ (-\S+|[A-Z]+)", said, re.MULTILINE)
    texts = re.split(r"^│ (?:-\S+|[A-Z]+)", said, flags=re.MULTILINE)[1:]
    assert len(names) > 2
    bare = [name for name, text in zip(names, texts, strict=True) if not re.search(r"\s[\w`.]+,? [\w`]+", text)]
    assert bare == [], "flags without a text"


def test_benchmarks_flags_are_in_groups():
    said = run("-c", PROGRAM, "benchmark", "--help").stdout
    assert re.findall("╭─ (.*) options", said) == ["cases", "method", "output"]


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_examples_parse(command):
    module = importlib.import_module(f"jax_ddpm.commands.{command.replace('-', '_')}")
    kind = next((value for name, value in vars(module).items() if name == f"{command.title()}Flags"), None)
    for example in module.EXAMPLES:
        arguments = shlex.split(example)
        if kind is not None:
            assert flags.parse(kind, arguments, "", ())
        elif "--resume" not in arguments:  # else there has to be a run
            assert isinstance(parse_run(arguments, ""), RunFlags)


def test_scripts_are_named_as_they_were_called():
    for script in sorted(SCRIPTS.glob("*.py")):
        said = run(script, "--help").stdout
        assert f"usage: python scripts/{script.name} " in said and f"  python scripts/{script.name}" in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--version"], ["trian"]])
def test_the_command_alone(arguments):
    done = run("-c", PROGRAM, *arguments)
    said, _, loaded = done.stdout.partition("loaded:")
    assert loaded.split() == []
    if arguments == ["trian"]:
        assert done.returncode == 2 and "trian" in done.stderr and all(name in done.stderr for name in main.COMMANDS)
    elif arguments == ["--version"]:
        assert re.fullmatch(r"jax-ddpm \d\S+\n", said)
    else:
        assert done.returncode == 0 and all(f"  {name}  " in said for name in main.COMMANDS)


def test_a_terminal_that_cannot_show_the_boxes():
    done = run("-c", PROGRAM, "sample", "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "--num-images" in done.stdout
    assert "invalid choice" in run("-c", PROGRAM, "sample", "--clip", "x", PYTHONIOENCODING="cp1252").stderr


def test_the_word_none_unsets_what_a_preset_sets():
    assert PRESETS["attention"].training.clip_norm == 1.0
    assert parse_run(["--preset", "attention", "--clip-norm", "None"], "").config.training.clip_norm is None
    assert parse_run(["--preset", "attention", "--clip-norm", "2.5"], "").config.training.clip_norm == 2.5
    assert parse_run(["--preset", "attention"], "").config.training.clip_norm == 1.0


@dataclass(frozen=True)
class OwnConfig(NetworkConfig):
    """Arguments of somebody's network."""

    name: Literal["own"] = "own"
    width: int = 8
    """Channels."""
    groups: int | None = None
    """Groups of the norms."""


def test_a_registered_network_has_flags(monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "own", OwnConfig)
    monkeypatch.setitem(PRESETS, "own", replace(PRESETS["tiny"], preset="own", network=OwnConfig()))
    flags = ["--preset", "own", "--width", "16", "--groups", "4"]
    assert parse_run(flags, "").config.network == OwnConfig(width=16, groups=4)
    with pytest.raises(SystemExit):
        parse_run(["--preset", "own", "--help"], "")
    said = capsys.readouterr().out
    assert "Groups of the norms." in said and "--name" not in said


def test_a_full_size_network_on_a_cpu_names_the_tiny_preset_first(monkeypatch, capsys):
    monkeypatch.setattr("jax_ddpm.training.loop.train", lambda *_: print("it trains"))

    def lines(*arguments):
        train.main(arguments, "")
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    first, second, third = lines("--dataset", "fashion_mnist")
    assert "job for a GPU or a TPU" in first and "--preset tiny" in second and third == "it trains"
    for others in ([], ["--dataset", "mnist", "--preset", "tiny"], ["--preset", "conv_block", "--widths", "32", "64"]):
        assert lines(*others) == ["it trains"]
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert lines("--dataset", "fashion_mnist") == ["it trains"]
