"""What a wheel holds, what an installation without TensorFlow can do, and what works on other systems than Linux."""

import email
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import jax_ddpm
from jax_ddpm import data
from jax_ddpm.spec.errors import UserError

ROOT = Path(__file__).parents[1]
BUILD = """
from setuptools import build_meta
print(build_meta.build_wheel("dist"), build_meta.build_sdist("dist"))
"""
FLAGS = "--widths 32 --time-width 32 --timesteps 20 --beta-end 0.4 --steps 3 --batch-size 16 --num-samples 4"
TINY = FLAGS.split(" ")


def run(*command, cwd, **changes):
    environment = {**os.environ, **changes}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("jax_ddpm", "torch_ref", "tests", "parity_tests", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-c", BUILD, cwd=source)
    (wheel,), (sdist,) = (list((source / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    return wheel, sdist


def sources() -> set[str]:
    names = {"jax_ddpm/plan/h100.txtpb", "jax_ddpm/report/page.html", "jax_ddpm/py.typed", "torch_ref/py.typed"}
    for package in ("jax_ddpm", "torch_ref"):
        names |= {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    return names


def test_the_wheel_holds_the_two_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        about = email.message_from_bytes(wheel.read(next(name for name in names if name.endswith("/METADATA"))))
    assert {name for name in names if ".dist-info/" not in name} == sources()
    needed = about.get_all("Requires-Dist")
    heavy = [line for line in needed if line.startswith(("tensorflow-cpu", "tensorflow>", "torch"))]
    assert {line.split("extra == ")[1] for line in heavy} == {
        '"data"',
        '"torch"',
        '"onnx"',
        '"test"',
        '"docs"',
        '"notebooks"',
    }


def test_the_sdist_holds_no_tests(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources() < names
    assert not {name.split("/")[0] for name in names} & {"tests", "parity_tests", "scripts", "docs"}


@pytest.mark.slow
def test_the_wheel_trains_outside_the_clone(built, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target]
    run(*pip, built[0], cwd=elsewhere)
    command, changes = target / "bin" / "jax-ddpm", {"PYTHONPATH": str(target)}
    where = "import jax_ddpm, torch_ref; print(jax_ddpm.__version__, jax_ddpm.__file__, torch_ref.__file__)"
    version, *files = run(sys.executable, "-c", where, cwd=elsewhere, **changes).split()
    assert all(Path(file).is_relative_to(target) for file in files)
    assert run(sys.executable, command, "--version", cwd=elsewhere, **changes) == f"jax-ddpm {version}\n"
    run(sys.executable, command, "train", *TINY, "--out", "run", cwd=elsewhere, **changes)
    assert "<html" in (elsewhere / "run" / "report.html").read_text("utf-8")


def test_the_version_of_a_source_tree_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert jax_ddpm.__version__ == "0+unknown"


# Without TensorFlow --------------------------------------------------------------------------------------------------


def test_a_data_set_that_has_to_be_prepared_names_the_extra(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    with pytest.raises(UserError) as caught:
        data.load("cifar10", 32, data_dir=str(tmp_path), cache_dir=str(tmp_path), log=lambda line: None)
    first, second = str(caught.value).splitlines()
    assert "cifar10 has to be prepared first, which needs TensorFlow" in first
    assert "pip install" in second and "jax-ddpm[data]" in second and '-e ".[data]"' in second
    assert not (tmp_path / "downloads").exists(), "it downloads nothing"


# Other systems -------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import builtins, ctypes, errno, fcntl, os, signal, sys

def open_elsewhere(file, *arguments, open=open, **settings):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file))
    return open(file, *arguments, **settings)

class LoadElsewhere(ctypes.CDLL):
    def __init__(self, name, *arguments, **settings):
        if name == "libc.so.6":
            raise OSError(f"{name}: no such file")
        super().__init__(name, *arguments, **settings)

def sync_elsewhere(file, sync=os.fsync, flags=fcntl.fcntl):
    number = file if isinstance(file, int) else file.fileno()
    if flags(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:  # as Windows answers
        raise OSError(errno.EBADF, "Bad file descriptor")
    sync(number)

builtins.open, ctypes.CDLL, os.fsync = open_elsewhere, LoadElsewhere, sync_elsewhere
fcntl = sys.modules["fcntl"]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in dir(os):
    if name.startswith(("posix_", "sched_")) or name in ("getuid", "geteuid", "fchmod", "killpg", "getpgid"):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
from jax_ddpm.commands import main
for line in sys.argv[1:]:
    sys.argv = ["jax-ddpm", *line.split(" ")]
    main.main()
"""


@pytest.mark.slow
def test_a_system_without_posix_trains_resumes_and_samples(tmp_path):
    """No fcntl, resource, /proc and glibc; files that are open for reading cannot be synced; console in cp1252."""
    commands = [
        f"train {FLAGS} --out run --checkpoint-every 2",
        "train --resume --out run --steps 4",
        "sample --model run --num-images 2 --out grid.png",
        "convert run model.safetensors",
    ]
    run(sys.executable, "-c", ELSEWHERE, *commands, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"3", "4"}
    assert (tmp_path / "grid.png").stat().st_size > 100 and (tmp_path / "model.safetensors").is_file()
