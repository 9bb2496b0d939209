"""Power-function averages: their algebra, the snapshots of a run, and averages of other widths made of them."""

import json
import shutil
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.spec.ema_snapshots import find_snapshots, snapshot_path
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.power_ema import coefficients, gamma_of, inner_products, profile_error, reachable_widths
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.loop import train
from jax_ddpm.training.step import power_ema_update
from tests.commands import refusal, succeed
from tests.small import small

WIDTHS = (0.05, 0.1)
POWER = small(power_ema=True)


def quiet(line):
    pass


def averaged(values: np.ndarray, width: float) -> np.ndarray:
    """The averages (T,) of a width after each of T steps: integrals over values (T,) that are constant in each step."""
    edges = np.arange(len(values) + 1.0) ** (gamma_of(width) + 1)
    return np.cumsum(np.diff(edges) * values) / edges[1:]


def layout(steps, widths=WIDTHS):
    """Steps and exponents of all snapshots."""
    return np.repeat(steps, len(widths)), np.tile([gamma_of(width) for width in widths], len(steps))


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_that_the_paper_gives(width, gamma):
    assert gamma_of(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25, 0.288])
def test_the_exponent_gives_the_width_back(width):
    g = gamma_of(width)
    assert (g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5 == pytest.approx(width, rel=1e-12)
    tau = (np.arange(200_000) + 0.5) / 200_000
    profile = (g + 1) * tau**g
    mean = np.mean(profile * tau)
    assert np.sqrt(np.mean(profile * (tau - mean) ** 2)) == pytest.approx(width, rel=1e-6)


def test_the_update_is_the_integral_of_the_profile():
    values = np.random.default_rng(0).standard_normal(60).cumsum()
    for width in WIDTHS:
        with jax.enable_x64(True):

            def step(average, number, width=width):
                average = power_ema_update(average, jnp.asarray(values)[number], number, gamma_of(width))
                return average, average

            _, found = jax.lax.scan(step, jnp.float64(np.pi), jnp.arange(60))
        np.testing.assert_allclose(found, averaged(values, width), rtol=1e-12)


def test_the_update_is_exact_late_in_a_long_run():
    """In float32, 1 - 1/t has lost all digits of 1/t."""
    moved = power_ema_update(jnp.float32(0), jnp.float32(1), jnp.int32(2_000_000), gamma_of(0.05))
    assert float(moved) == pytest.approx(-np.expm1((gamma_of(0.05) + 1) * np.log1p(-1 / 2_000_001)), rel=1e-6)
    assert float(power_ema_update(jnp.float32(7), jnp.float32(1), jnp.int32(0), gamma_of(0.05))) == 1


def test_inner_products_are_those_of_the_profiles():
    steps, gammas = np.array([3.0, 10.0, 10.0]), np.array([6.94, 6.94, 16.97])
    tau = (np.arange(100_000) + 0.5) / 10_000
    profiles = [np.where(tau <= s, (g + 1) * tau**g / s ** (g + 1), 0) for s, g in zip(steps, gammas, strict=True)]
    expected = [[np.sum(p * q) / 10_000 for q in profiles] for p in profiles]
    np.testing.assert_allclose(inner_products(steps, gammas, steps, gammas), expected, rtol=1e-4)


def test_a_width_that_is_stored_is_taken_as_it_is():
    steps, gammas = layout(np.arange(10, 101, 10))
    c = coefficients(steps, gammas, 70, gamma_of(0.1))[: 2 * 7]
    assert profile_error(steps[:14], gammas[:14], 70, gamma_of(0.1)) < 1e-7
    np.testing.assert_allclose(coefficients(steps[:14], gammas[:14], 70, gamma_of(0.1)), np.eye(14)[13], atol=1e-12)
    assert c.shape == (14,)


@pytest.mark.parametrize("width", [0.02, 0.03, 0.07, 0.15, 0.2])
def test_other_widths_are_near_direct_averages(width):
    """Of random walks: the error falls with more snapshots, and is about as large as the profile's."""
    values = np.random.default_rng(1).standard_normal((64, 2000)).cumsum(axis=1)
    kept = np.array([[averaged(v, w) for w in WIDTHS] for v in values])
    direct, errors = np.array([averaged(v, width)[-1] for v in values]), []
    for count in (10, 20, 40):
        steps, gammas = layout(np.arange(1, count + 1) * (2000 // count))
        c = coefficients(steps, gammas, 2000, gamma_of(width))
        assert c.sum() == pytest.approx(1, abs=1e-12)
        stored = kept[:, :, steps[::2] - 1].swapaxes(1, 2).reshape(len(values), -1)
        spread = np.sqrt(np.mean((direct - values[:, -1]) ** 2))
        errors.append(np.sqrt(np.mean((stored @ c - direct) ** 2)) / spread)
        assert errors[-1] < 2 * profile_error(steps, gammas, 2000, gamma_of(width))
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


def test_more_snapshots_reach_more_widths():
    few, many = (reachable_widths(*layout(np.arange(1, n + 1) * (960 // n)), 960) for n in (8, 32))
    assert many[0] < 0.016 < 0.025 < few[0] < 0.05 and 0.1 < few[1] < many[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run whose weights are base + a(t) direction with a random walk a, and base, direction and a."""
    run = tmp_path_factory.mktemp("runs") / "made"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(asdict(POWER)))
    network = unets.build(POWER.network, 1)
    weights.initialise(network, 0)
    base, draw = weights.state_dict(network), np.random.default_rng(2)
    frozen = {name for name in base if name.endswith("J")}
    direction = {name: 0.01 * draw.standard_normal(value.shape) * (name not in frozen) for name, value in base.items()}
    walk = draw.standard_normal(320).cumsum()
    info = ModelInfo(network=POWER.network, image_shape=(8, 8, 1), diffusion=POWER.diffusion)

    def write(path, amount, step):
        path.parent.mkdir(exist_ok=True)
        values = {name: (base[name] + amount * direction[name]).astype(np.float32) for name in base}
        write_model(path, values, ModelInfo(**{**vars(info), "step": step}))

    for step in range(10, 321, 10):
        for width in WIDTHS:
            write(snapshot_path(run, step, width), averaged(walk, width)[step - 1], step)
    write(run / "model.safetensors", walk[-1], 320)
    return run, base, direction, walk


def test_a_model_of_another_width(made):
    """The same arrays in both frameworks, near the direct average; buffers to the last bit."""
    run, base, direction, walk = made
    said = []
    for width, step in ((0.03, None), (0.15, 200)):
        ours = jax_ddpm.load_model(run, ema_width=width, step=step, log=said.append)
        theirs = torch_ref.load_model(run, ema_width=width, step=step, log=quiet)
        values, at = weights.state_dict(ours.network), step or 320
        for name, value in theirs.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), values[name])
        assert ours.info.step == theirs.info.step == at
        amount = averaged(walk, width)[at - 1]
        for name, value in values.items():
            scale = np.abs(walk[at - 1] - amount) * np.abs(direction[name]).max()
            np.testing.assert_allclose(value, base[name] + amount * direction[name], atol=0.03 * scale + 1e-6)
            if not direction[name].any():
                np.testing.assert_array_equal(value, base[name].astype(np.float32))
    assert "average of width 0.03 at step 320, combined from the snapshots of 32 steps" in said[0]
    assert "width 0.15 at step 200, combined from the snapshots of 20 steps" in said[1]


def test_a_snapshot_is_a_model_and_its_own_width(made):
    run, *_ = made
    stored = load_file(snapshot_path(run, 320, 0.1))
    for source in ({"path": run, "ema_width": 0.1}, {"path": snapshot_path(run, 320, 0.1)}):
        values = weights.state_dict(jax_ddpm.load_model(**source, log=quiet).network)
        for name, value in stored.items():
            np.testing.assert_allclose(values[name], value, rtol=2e-7, atol=1e-10)


def test_the_commands_take_a_width(made, tmp_path, capsys, monkeypatch):
    run, *_ = made
    out = tmp_path / "model.safetensors"
    said = succeed(capsys, monkeypatch, "convert.py", run, out, "--ema-width", 0.07)
    assert "average of width 0.07 at step 320" in said
    wanted = weights.state_dict(jax_ddpm.load_model(run, ema_width=0.07, log=quiet).network)
    assert all(np.array_equal(wanted[name], value) for name, value in load_file(out).items())
    flags = ("--num-images", 2, "--sampler", "ddim", "--num-steps", 2, "--ema-width", 0.07)
    for framework in ("jax", "torch"):
        picture = tmp_path / f"{framework}.npz"
        said = succeed(
            *(capsys, monkeypatch, "sample.py", "--model", run, *flags, "--framework", framework, "--out", picture)
        )
        assert "average of width 0.07" in said
    ours, theirs = (np.load(tmp_path / f"{framework}.npz")["x0"] for framework in ("jax", "torch"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_sweep_over_widths(made, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(made[0], tmp_path / "run")
    flags = ("--num-images", 8, "--sampler", "ddim", "--num-steps", 2, "--features", "pixels")
    given = ("--reference", "validation:digits", "--cache-dir", tmp_path, *flags, "--out", tmp_path / "scores.json")
    said = succeed(capsys, monkeypatch, "evaluate.py", run, *given, "--sweep", "ema_width=0.03,0.2,None")
    assert "1 of 3: ema_width=0.03" in said and "3 of 3: ema_width=None" in said
    points = json.loads((tmp_path / "scores.json").read_text())
    assert [point["ema_width"] for point in points] == [0.03, 0.2, None]
    assert points[0]["scores"]["fid"] != points[1]["scores"]["fid"]
    results = jax_ddpm.load_run(run).evaluations
    assert [(each["weights"], each["ema_width"]) for each in results] == [("ema", 0.03), ("ema", 0.2), ("ema", None)]
    assert (run / "evaluation" / "sweep.png").is_file()
    said = refusal(capsys, monkeypatch, "evaluate.py", run, *given, "--sweep", "ema_width=0.03,0.001")
    assert "ema_width = 0.001" in said and "do not reach it" in said


def without_snapshots(run):
    shutil.rmtree(run / "power_ema")
    return run, {}


def with_one_step(run):
    for snapshot in find_snapshots(run):
        if snapshot.step != 50:
            snapshot.path.unlink()
    return run, {}


def with_another_array(run):
    save_file({"a": np.zeros(2, np.float32)}, snapshot_path(run, 200, 0.1), {"jax_ddpm": "{}"})
    return run, {}


def cut_off(run):
    path = snapshot_path(run, 200, 0.1)
    path.write_bytes(path.read_bytes()[:-100])
    return run, {}


WRONG = {
    "no number": (lambda run: (run, {"ema_width": "0.1"}), "ema_width = 0.1: expected a number"),
    "nothing": (lambda run: (run, {"ema_width": 0.0}), "ema_width = 0.0: expected a number above 0 and below 0.288"),
    "the whole training": (lambda run: (run, {"ema_width": 0.3}), "expected a number above 0 and below 0.288"),
    "too narrow": (lambda run: (run, {"ema_width": 0.004}), "Expected a width that they reach: 0.01"),
    "too wide": (lambda run: (run, {"ema_width": 0.2885}), "do not reach it"),
    "a step without snapshot": (lambda run: (run, {"step": 55}), "step = 55: expected one of the 32 steps"),
    "raw weights": (lambda run: (run, {"weights": "raw"}), "do not go together"),
    "a file": (lambda run: (run / "model.safetensors", {}), "is not the folder of a run"),
    "no snapshots": (without_snapshots, "has no snapshots in power_ema/"),
    "snapshots of one step": (with_one_step, "has snapshots of only one step, 50"),
    "another array in a snapshot": (with_another_array, "other arrays"),
    "a snapshot that is cut off": (cut_off, "200-0.1.safetensors"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_loaded(kind, made, tmp_path):
    change, expected = WRONG[kind]
    path, arguments = change(shutil.copytree(made[0], tmp_path / "run"))
    for package in (jax_ddpm, torch_ref):
        with pytest.raises(UserError) as error:
            package.load_model(path, **{"ema_width": 0.1, **arguments})
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"power_ema_every": 5}, "power_ema_every = 5: only for a run with power_ema"),
        ({"power_ema": True, "power_ema_every": -1}, "power_ema_every = -1: expected 0 or more"),
        ({"power_ema_widths": (0.1, 0.05)}, "expected two widths, the smaller one first"),
        ({"power_ema_widths": (0.05, 0.4)}, "power_ema_widths = 0.4: expected a number above 0 and below 0.288"),
    ],
)
def test_settings_that_cannot_be_used(changes, expected):
    with pytest.raises(UserError) as error:
        small(**changes).check()
    assert expected in str(error.value)


def test_a_run_stores_snapshots(command_run):
    run, result = command_run
    found = find_snapshots(run)
    assert [(each.step, each.width) for each in found] == [(s, w) for s in (2, 4, 6) for w in WIDTHS]
    size = sum(each.path.stat().st_size for each in found) / 1e6
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Power-function averages")]
    assert "widths 0.05 and 0.1: snapshots of both every 2 steps" in line
    assert float(line.split(" MB")[0].split()[-1].replace(",", "")) == pytest.approx(size, rel=0.1)
    assert jax_ddpm.load_model(run, ema_width=0.05, log=quiet).info.step == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 24 steps with a snapshot every 3."""
    config = small(power_ema=True, power_ema_every=3)
    return train(config, tmp_path_factory.mktemp("runs") / "trained", log=quiet)


@pytest.mark.slow
def test_a_resumed_run_stores_the_same_snapshots(trained, tmp_path):
    """A run that was killed after step 16 has later snapshots; they are written again."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "24")
    snapshot_path(run, 21, 0.1).write_bytes(b"of the killed run")
    (run / "power_ema" / ".24-0.1.safetensors.1.a").write_bytes(b"a draft")
    train(small(power_ema=True, power_ema_every=3), run, resume=True, log=quiet)
    assert {path.name for path in (run / "power_ema").iterdir()} == {
        path.name for path in (trained / "power_ema").iterdir()
    }
    for each in find_snapshots(trained):
        assert snapshot_path(run, each.step, each.width).read_bytes() == each.path.read_bytes()


@pytest.mark.slow
def test_the_averages_of_a_run_are_near_direct_ones(trained, tmp_path):
    """A second run with the same weights keeps the averages of other widths."""
    widths = (0.07, 0.15)
    other = train(small(power_ema=True, power_ema_widths=widths), tmp_path / "other", log=quiet)
    raw = weights.state_dict(jax_ddpm.load_model(other, weights="raw", log=quiet).network)
    for width in widths:
        made = weights.state_dict(jax_ddpm.load_model(trained, ema_width=width, log=quiet).network)
        direct = load_file(snapshot_path(other, 24, width))
        apart = sum(np.sum((made[name] - direct[name]) ** 2) for name in made)
        spread = sum(np.sum((raw[name] - direct[name]) ** 2) for name in made)
        assert 0 < np.sqrt(apart / spread) < 0.1
