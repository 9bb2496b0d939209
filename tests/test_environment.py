"""What goes wrong around a command: signals, memory, disk, devices, packages."""

import fcntl
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_ddpm
from jax_ddpm.commands import main
from jax_ddpm.commands.failures import explain
from jax_ddpm.spec.errors import UserError
from jax_ddpm.weights.model import load_model
from tests.commands import SCRIPTS, command, refusal, succeed
from tests.killing import TRAIN
from tests.small import small

# Signals -------------------------------------------------------------------------------------------------------------

CONTEXT = "import contextlib, gc, hashlib, os, signal, sys, time\nfrom jax_ddpm.commands import interrupts\n"


def ended(program: str, signals: int = 0) -> tuple[int, str, float]:
    """Exit code, stderr, and seconds from the signals, which are sent after it prints, to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", CONTEXT + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if signals:
        process.stdout.readline()
    began = time.perf_counter()
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said, time.perf_counter() - began


def test_ctrl_c_that_python_drops_ends_the_process():
    """As in the callback that JAX gives to the garbage collector: what it raises is printed and forgotten."""
    program = """
def callback(phase, info):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)
with interrupts.ended_by_ctrl_c():
    gc.callbacks.append(callback)
    gc.collect()
    print("not ended", file=sys.stderr)
"""
    assert ended(program)[:2] == (130, "Interrupted.\n")
    assert "not ended" in ended(program.replace("with interrupts.ended_by_ctrl_c():", "if True:"))[1]


@pytest.mark.parametrize(("signals", "grace"), [(2, 60), (1, 0.3)])
def test_ctrl_c_ends_what_python_does_not_interrupt(signals, grace):
    code, said, seconds = ended(
        f"""
interrupts.GRACE_SECONDS = {grace}
with interrupts.ended_by_ctrl_c():
    try:
        print("now", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes of C code
    finally:
        while True:  # if the signal came before that
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(60)
""",
        signals,
    )
    assert (code, said) == (130, "Interrupted.\n") and seconds < 30


def test_after_the_context_everything_is_as_before():
    def rules():
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        return signal.getsignal(signal.SIGINT), sys.unraisablehook, fd

    before = rules()
    with pytest.raises(SystemExit):
        main.run("convert", ["--help"], "convert")
    assert rules() == before


@pytest.mark.parametrize("package", ["tyro", "jax"])
def test_ctrl_c_in_the_first_second(package):
    """While a package is imported, of which Python tells when it has finished a part."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", SCRIPTS / "sample.py", "--model", "missing.pt"],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = next(line for line in process.stderr if re.search(rf"\| +{package}\.", line))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert [line for line in said.splitlines() if not line.startswith("import time:")] == ["Interrupted."]


def test_ctrl_c_while_it_draws(command_run, tmp_path):
    flags = ["--model", command_run[0], "--num-images", "100000", "--batch-size", "8", "--out", tmp_path / "x.npz"]
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "sample.py", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "step/s" not in process.stderr.read(20):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.endswith("Interrupted.\n") and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def start_on_terminal():
    """In the new process: makes its stdin the controlling terminal. SIGHUP counts, even if these tests run by nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(tmp_path):
    terminal, program_side = pty.openpty()
    flags = "--widths 32 --time-width 32 --timesteps 10 --beta-end 0.4 --batch-size 8 --steps 100000 --log-every 1"
    process = subprocess.Popen(
        [sys.executable, TRAIN, *flags.split(), "--out", tmp_path / "run"],
        stdin=program_side,
        stdout=program_side,
        stderr=program_side,
        start_new_session=True,
        preexec_fn=start_on_terminal,
    )
    os.close(program_side)
    try:
        said = b""
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            said += os.read(terminal, 1000)
            assert process.poll() is None, said
        os.close(terminal)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name.isdecimal()


# Memory, disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.zeros(2**50, np.uint8),
        lambda: jnp.zeros(2**50, jnp.uint8).block_until_ready(),
        lambda: torch.zeros(2**50, dtype=torch.uint8),
    ],
    ids=["numpy", "jax", "torch"],
)
def test_out_of_memory_says_what_to_lower(allocate, monkeypatch, capsys):
    monkeypatch.setattr("jax_ddpm.commands.sample.main", lambda *_: allocate())
    with pytest.raises(SystemExit) as end:
        main.run("sample", [], "")
    first, second = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "not enough memory" in first and "--batch-size" in second


@contextmanager
def small_files():
    """No file may grow beyond 1,000 bytes: what a full disk does, but with another error number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("convert.py", ["RUN", "x.safetensors"]),
        ("convert.py", ["RUN", "x.pt"]),
        ("sample.py", ["--model", "RUN", "--num-images", 16, "--out", "x.npz"]),
        ("sample.py", ["--model", "RUN", "--num-images", 16, "--out", "x.png"]),
        ("report.py", ["RUN", "--out", "x.html"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_a_full_disk(script, flags, command_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(size=(16, 8, 8, 1))
    monkeypatch.setattr("jax_ddpm.commands.drawing.draw_images", lambda *_: (noise, {}))
    arguments = [command_run[0] if flag == "RUN" else flag for flag in flags]
    with small_files():
        said = refusal(capsys, monkeypatch, script, *arguments)
    assert str(flags[-1]) in said and ("cannot be written" in said or "File too large" in said)
    assert not list(tmp_path.iterdir()), "half of a file was left"


# Devices, packages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_platform_that_is_not_there(platform, command_run, tmp_path):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    result = command("sample.py", "--model", command_run[0], "--out", tmp_path / "x.png", JAX_PLATFORMS=platform)
    first, second = result.stderr.splitlines()[-2:]  # a CUDA plugin without CUDA logs its error before
    assert result.returncode == 2 and f"JAX_PLATFORMS={platform}" in first and "JAX_PLATFORMS=cpu" in second


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': nothing")])
def test_devices_that_do_not_start_are_user_errors_in_python_too(error, monkeypatch, command_run, tmp_path):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"none is visible|Unable to initialize"):
        load_model(command_run[0])
    with pytest.raises(UserError, match=r"none is visible|Unable to initialize"):
        jax_ddpm.train(small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("jaxlib", "raise OSError('libm.so.9: cannot open shared object file')"),
        ("flax", "raise ModuleNotFoundError(\"No module named 'flax'\", name='flax')"),
        ("tyro", "1 / 0"),
    ],
)
def test_a_broken_package(package, code, command_run, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code)
    result = command("sample.py", "--model", command_run[0], PYTHONPATH=str(tmp_path))
    first, second = result.stderr.splitlines()[-2:]  # a CUDA plugin without CUDA logs its error before
    assert result.returncode == 2 and f"Python package {package} cannot be imported" in first and "nstall" in second


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), KeyError("memory"), ImportError("x", name="jax_ddpm.data")]
)
def test_mistakes_in_the_program_keep_their_traceback(error, monkeypatch):
    def mistake(*_):
        raise error

    monkeypatch.setattr("jax_ddpm.commands.convert.main", mistake)
    with pytest.raises(type(error)):
        main.run("convert", [], "")
    assert explain(error, "convert") is None


# Home ----------------------------------------------------------------------------------------------------------------


def test_a_tilde_after_an_equals_sign_is_the_home_folder(command_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(command_run[0] / "model.safetensors", tmp_path / "a.safetensors")
    succeed(capsys, monkeypatch, "sample.py", "--model=~/a.safetensors", "--num-images=2", "--out=~/x.png")
    succeed(capsys, monkeypatch, "convert.py", "~/a.safetensors", "~/b.safetensors")
    assert (tmp_path / "x.png").is_file() and (tmp_path / "b.safetensors").is_file()
    assert not Path("~").exists()
