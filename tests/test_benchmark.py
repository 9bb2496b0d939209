"""The benchmark: what it measures, what it refuses to compare, and what it makes of the times."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_ddpm.commands.benchmark
from jax_ddpm.benchmark import contest, device_profile, results, scaling
from jax_ddpm.benchmark.contest import TOLERANCES, Result, check_outputs
from jax_ddpm.benchmark.job import MATRIX_PRODUCTS, Job
from tests.small import small

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "benchmark.py")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(contest, "TURN_SECONDS", 0.05)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def without_matrix_products(monkeypatch):
    """Their processes are tested with the command."""
    monkeypatch.setattr(contest, "matrix_products_for", lambda contenders: [])


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.slow
def test_the_command_measures_sampling(quick, monkeypatch, tmp_path, capsys):
    flags = ["--network", "conv_block", "--batch-size", 2, "--what", "sample", "--sampling-steps", 4, "--rounds", 2]
    command(monkeypatch, *flags, "--contenders", "jax", "torch", "torch-cuda-graphs", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "conv_block 16x16x1, sampling, batch 2, float32" in said and "GPU" in said
    (case,) = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert [row["contender"] for row in case["rows"]] == ["jax", "torch"]
    assert list(case["left_out"]) == ["torch-cuda-graphs"]
    assert {name: len(turns) for name, turns in case["turns"].items()} == dict.fromkeys(
        ["jax", "torch", *MATRIX_PRODUCTS], 2
    )
    for row in case["rows"]:
        assert row["seconds"] > 0 and row["peak_memory"] > 1e7 and row["share"] > 0
    assert case["rows"][0]["compile_seconds"] > 0
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000


@pytest.mark.slow
def test_training_steps_agree_and_are_timed(quick, without_matrix_products):
    """Loss and gradient norm of torch's step are compared with jax_ddpm's before either is timed."""
    job = Job("", "train", small(widths=(32,), batch_size=8, flip=True, clip_norm=0.5))
    entries = contest.measure(job, ["jax", "torch"], 1, lambda line: None)
    assert all(entry.left_out is None and len(entry.seconds) == 1 for entry in entries.values())
    assert set(entries["torch"].check) == {"loss", "grad_norm"}
    about = entries["jax"].about
    assert 1 <= about["donated_bytes"] / (4 * about["parameter_bytes"]) < 1.01  # parameters, average, two moments


def test_operations_of_a_network_do_not_depend_on_how_it_computes():
    """3x3 convolutions alone: two operations for each pair of channels, tap and pixel that is not padding."""
    from jax_ddpm.benchmark import jax_side
    from jax_ddpm.layers import Conv

    class Network(nnx.Module):
        def __init__(self, dtype):
            self.conv, self.dtype = Conv(3, 5, 3), dtype

        def __call__(self, x, t):
            return self.conv(x.astype(self.dtype))

    job = Job("", "train", small(widths=(32,), batch_size=8))
    b, (h, w, _) = 8, job.image_shape
    job = replace(job, image_channels=3)
    expected = 2 * b * 15 * (3 * h - 2) * (3 * w - 2)
    for dtype in (jnp.float32, jnp.bfloat16):
        assert jax_side.forward_flops(Network(dtype), job) == pytest.approx(expected, rel=0.05)  # and sums, casts


def entry(loss=1.0, norm=2.0, platform="cpu", **more) -> Result:
    about = {"platform": platform, "version": f"torch on {platform}", "compile_seconds": 0.0}
    return Result(about=about, check={"loss": [loss], "grad_norm": [norm]}, **more)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (entry(loss=1.001), "loss differs from that of jax by 0.001"),
        (entry(norm=2.1), "grad_norm differs"),
        (entry(loss=np.nan), "loss differs"),
        (entry(platform="gpu"), "sees no cpu here"),
    ],
)
def test_outputs_and_devices_that_differ_are_not_compared(other, reason):
    entries = {"jax": entry(), "torch": other, "torch-compile": entry(loss=1 + 1e-6)}
    check_outputs(entries, TOLERANCES["float32"])
    assert reason in entries["torch"].left_out
    assert entries["jax"].left_out is None and entries["torch-compile"].left_out is None


def test_figures():
    """Medians, ratios turn by turn, spread and shares, by hand."""
    entries = {
        "jax": Result(seconds=[0.1, 0.2, 0.4], about={"compile_seconds": 3.0, "flops_per_step": 6e9}),
        "torch": Result(seconds=[0.3, 0.2, 0.8], about={"compile_seconds": 0.0}, peak_memory=10**6),
        MATRIX_PRODUCTS[0]: Result(seconds=[0.5] * 3, about={"flops_per_step": 50e9}),
        "diffusers": Result(left_out="not here"),
    }
    case = results.summarise(Job("", "train", small(batch_size=16)), entries)
    ours, theirs = case["rows"]
    assert (ours["seconds"], ours["ratio"], ours["images_per_second"]) == (0.2, 1, 80)
    assert (theirs["seconds"], theirs["ratio"]) == (0.3, 2)
    np.testing.assert_allclose(theirs["spread"], 0.6 / 0.3)
    np.testing.assert_allclose([ours["flops_per_second"], ours["share"]], [30e9, 0.3])
    assert case["matrix_product_flops_per_second"] == {MATRIX_PRODUCTS[0]: 100e9}
    text = results.table(case)
    assert "diffusers: left out, not here" in text and "30%" in text and "100.0 GFLOP/s" in text
    sampled = results.summarise(Job("", "sample", small(batch_size=16)), entries)
    np.testing.assert_allclose(sampled["rows"][0]["images_per_second"], 16 / (1000 * 0.2))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--network", "nonsense"], "conv_block"),
        (["--contenders", "tensorflow"], "torch-compile"),
        (["--precision", "float64"], "bfloat16"),
        (["--rounds", "0"], "at least 1"),
        (["--out", "/dev/null/here"], "cannot be made"),
    ],
)
def test_wrong_input(flags, expected, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *flags)
    said = capsys.readouterr().err
    assert end.value.code == 2 and expected in said and "Traceback" not in said and len(said.splitlines()) <= 2


def test_what_a_device_did():
    """From a profile as a GPU's would be, by hand: streams overlap, and what is not theirs does not count."""

    def line(name, *events):
        return SimpleNamespace(
            name=name, events=[SimpleNamespace(name=n, start_ns=s, duration_ns=d) for n, s, d in events]
        )

    streams = (
        line("Stream #1(Compute)", ("fusion", 10, 20), ("convolution", 25, 15), ("fusion", 90, 20)),
        line("Stream #2(Memcpy)", ("MemcpyH2D", 35, 10), ("MemcpyD2D", 50, 5), ("MemcpyD2H", 60, 10)),
        line("XLA Ops", ("fusion", 0, 1000)),
    )
    planes = [
        SimpleNamespace(name="/device:GPU:1", lines=[line("Stream #1(Compute)", ("fusion", 0, 500))]),
        SimpleNamespace(name="/device:GPU:0", lines=streams),
        SimpleNamespace(name="/host:CPU", lines=[line("Stream", ("MemcpyD2H", 0, 900))]),
    ]
    found = device_profile.summarise_profile(planes, 4)
    assert found == {"busy_seconds": pytest.approx((35 + 5 + 10 + 20) / 4e9), "host_copies": 0.5}
    assert device_profile.summarise_profile(planes[2:], 4) == {}
    entries = {"jax": Result(seconds=[20e-9, 25e-9, 30e-9], about={"compile_seconds": 3.0, **found})}
    text = results.table(results.summarise(Job("", "train", small(batch_size=16)), entries))
    assert "jax: device busy 70% of the time, 0.5 copies from or to the host per step" in text


def test_scaling_curves():
    """Exponents interval by interval, for cases that differ in one thing only."""

    def case(batch_size, width, seconds):
        rows = [{"contender": "jax", "seconds": seconds}, {"contender": "torch", "seconds": 2 * batch_size}]
        about = {"network": "conv_block", "what": "train", "precision": "float32", "image_shape": (16, 16, 1)}
        return about | {"batch_size": batch_size, "arguments": {"widths": [width]}, "rows": rows}

    ours, theirs, wider, _ = scaling.curves([case(16, 32, 3.0), case(4, 32, 1.0), case(8, 32, 1.0), case(4, 64, 4.0)])
    assert (ours["contender"], ours["axis"], ours["values"]) == ("jax", "batch size", [4, 8, 16])
    assert ours["seconds"] == [1.0, 1.0, 3.0]
    np.testing.assert_allclose(ours["exponents"], [0, np.log2(3)])
    np.testing.assert_allclose(theirs["exponents"], [1, 1])
    assert (wider["axis"], wider["values"]) == ("width", [32, 64])
    (line,) = scaling.lines([ours])
    assert line == (
        "conv_block, training, float32, jax, image size 16, width 32: "
        "time grows as batch size^p, batch size 4 to 8 to 16: p = 0.00, 1.58"
    )


def test_the_command_measures_sizes(monkeypatch, tmp_path, capsys):
    """Of times that are invented: as many seconds a step as an image has pixels."""

    def measured(job, contenders, rounds, log):
        return {"jax": Result(seconds=[float(job.image_shape[0] ** 2)], about={"compile_seconds": 3.0})}

    monkeypatch.setattr(jax_ddpm.commands.benchmark, "measure", measured)
    flags = ["--network", "conv_block", "--batch-size", 2, "--what", "sample", "--sampling-steps", 2, "--rounds", 1]
    command(monkeypatch, *flags, "--contenders", "jax", "--image-size", 8, 16, "--width", 32, "--out", tmp_path)
    assert "time grows as image size^p, image size 8 to 16: p = 2.00" in capsys.readouterr().out
    (curve,) = json.loads((tmp_path / "results.json").read_text())["scaling"]
    assert curve["values"] == [8, 16] and (tmp_path / "scaling.png").stat().st_size > 1000
