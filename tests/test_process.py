"""What prepares a process for JAX: the cache of compiled programs, and XLA's flags, on CPUs alone."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jax_ddpm import process
from jax_ddpm.cpu import flags as cpu_flags
from jax_ddpm.process import computes_on_cpu, use_compilation_cache

COMPILE = """
from jax_ddpm.process import use_compilation_cache
print(use_compilation_cache())
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jax.numpy.linalg.qr(jax.numpy.sin(x) @ x))(jax.numpy.ones((7, 7)))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def start(home, **changes):
    environment = {key: v for key, v in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **changes}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True
    )
    folder, hits = result.stdout.split()
    return folder, int(hits)


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    folder, hits = start(tmp_path)
    assert folder.startswith(str(tmp_path / "jax_ddpm" / "compiled")) and hits == 0
    assert start(tmp_path)[1] > 0


def test_the_users_choice_and_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert use_compilation_cache() is None and os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert use_compilation_cache() is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ


PRODUCTS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
OTHERS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
WIDTH, HALF = "--xla_cpu_prefer_vector_width=512", "--xla_cpu_prefer_vector_width=256"


@pytest.mark.parametrize(
    ("before", "features", "after"),
    [
        ("", b"flags: avx512f avx512_bf16", f"{PRODUCTS} {WIDTH}"),
        ("", b"flags: avx512f", PRODUCTS),
        ("--xla_dump_to=x", b"", f"--xla_dump_to=x {PRODUCTS}"),
        (OTHERS, b"avx512_bf16", f"{OTHERS} {WIDTH}"),
        (HALF, b"avx512_bf16", f"{HALF} {PRODUCTS}"),
    ],
)
def test_cpu_flags_are_added_never_over_ones_own(monkeypatch, before, features, after):
    monkeypatch.setattr(cpu_flags, "jaxlib_has", lambda *names: True)
    monkeypatch.setattr(cpu_flags, "cpu_features", lambda: features)
    monkeypatch.setenv("XLA_FLAGS", before)
    cpu_flags.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == after


def test_a_flag_that_jaxlib_lacks_is_not_set(monkeypatch):
    assert cpu_flags.jaxlib_has("xla_backend_optimization_level")
    assert not cpu_flags.jaxlib_has("xla_backend_optimization_level", "xla_no_such_" + "flag")
    monkeypatch.setattr(cpu_flags, "jaxlib_has", lambda *names: False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    cpu_flags.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


def printed(program, *without, **changes) -> str:
    """What a program prints, in an environment without some variables and with others."""
    environment = {name: value for name, value in os.environ.items() if name not in without} | changes
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_jax_takes_the_flags():
    """XLA ends the process for a flag or a value that it does not know. They are set with the first operations."""
    program = """
import os
import jax_ddpm
before = os.environ.get("XLA_FLAGS")
from jax_ddpm import ops
import jax
x = jax.numpy.ones((2, 2))
print(before, bool(os.environ.get("XLA_FLAGS")), jax.jit(ops.matmul)(x, x)[0, 0])
"""
    assert (
        printed(program, "XLA_FLAGS", JAX_PLATFORMS="cpu") == f"None {cpu_flags.jaxlib_has(cpu_flags.MATMUL_FLAG)} 2.0"
    )


PREPARED = """
import os, sys
from jax_ddpm.process import prepare_process
prepare_process()
assert "jax" not in sys.modules
print(os.environ.get("XLA_FLAGS"))
"""


def test_no_flag_is_set_for_a_plugin(tmp_path):
    """A plugin for GPUs or TPUs ends the process for a flag of CPUs."""
    (tmp_path / "jax_plugins").mkdir()
    assert printed(PREPARED, "XLA_FLAGS", "JAX_PLATFORMS", PYTHONPATH=str(tmp_path)) == "None"
    assert printed(PREPARED, "XLA_FLAGS", JAX_PLATFORMS="cuda,cpu") == "None"
    on_cpu = printed(PREPARED, "XLA_FLAGS", PYTHONPATH=str(tmp_path), JAX_PLATFORMS="cpu")
    assert (on_cpu != "None") == cpu_flags.jaxlib_has(cpu_flags.MATMUL_FLAG)


@pytest.mark.parametrize(
    ("platforms", "expected"), [("cpu", True), ("cpu,cuda", True), ("cuda,cpu", False), ("tpu", False), ("cuda", False)]
)
@pytest.mark.parametrize("plugin", [False, True])
def test_jax_platforms_decides_whatever_is_installed(monkeypatch, tmp_path, plugin, platforms, expected):
    if plugin:
        install_plugin(tmp_path, monkeypatch)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert computes_on_cpu() == expected


def install_plugin(folder, monkeypatch):
    (folder / "jax_plugins").mkdir()
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("platforms", [None, ""])
def test_without_jax_platforms_a_plugin_decides(monkeypatch, tmp_path, platforms):
    """Installed as a part of jax_plugins, as an entry point, or libtpu."""
    monkeypatch.delenv("JAX_PLATFORMS")
    if platforms is not None:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with monkeypatch.context() as patch:
        install_plugin(tmp_path, patch)
        assert not computes_on_cpu()
    (tmp_path / "plugin-1.dist-info").mkdir()
    (tmp_path / "plugin-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (tmp_path / "plugin-1.dist-info" / "entry_points.txt").write_text("[jax_plugins]\nxpu = plugin\n")
    (tmp_path / "jax_plugins").rmdir()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert not computes_on_cpu()
    for found, expected in (("libtpu", False), ("jax", True)):  # as if nothing but this were installed
        util = SimpleNamespace(find_spec=lambda name, found=found: name == found or None)
        metadata = SimpleNamespace(entry_points=lambda group: ())
        monkeypatch.setattr(process, "importlib", SimpleNamespace(util=util, metadata=metadata))
        assert computes_on_cpu() == expected
