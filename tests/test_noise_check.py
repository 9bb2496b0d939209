"""The check that needs no data, and what the arrays of a file tell about the diffusion."""

import dataclasses

import numpy as np
import pytest
import torch

import jax_ddpm
from jax_ddpm import weights
from jax_ddpm.schedules import make_betas
from jax_ddpm.spec import noise_check
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import messages_of_commands
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig, LayerNormConfig
from jax_ddpm.spec.told_by_arrays import schedule_of
from tests.commands import succeed

INFO = ModelInfo(ConvBlockConfig(widths=(32,), time_width=8), (8, 8, 1), DiffusionConfig())


def info_with(**diffusion) -> ModelInfo:
    return dataclasses.replace(INFO, diffusion=DiffusionConfig(**diffusion))


def predicts_noise(T):
    """A network trained with T timesteps: the noise, with an error that grows with the distance of t from T - 1."""

    def predict(x, t):
        t = t.astype(np.float64).reshape(-1, 1, 1, 1)
        return (1 - 0.05 - np.abs(t - (T - 1)) / T) * x

    return predict


def said(predict, info) -> str:
    with messages_of_commands():
        return noise_check.describe(noise_check.measure(predict, info), info)


def test_a_network_that_was_trained_with_the_assumed_T():
    text = said(predicts_noise(1000), INFO)
    assert (
        text.endswith("as one does that predicts the noise and was trained with T = 1000.") and "0.0026" in text
    )  # 0.05^2, and chance


@pytest.mark.parametrize("T", [200, 500, 4000])
def test_a_network_that_was_trained_with_another_T(T):
    assert f"it looks trained with T = {T}; assumed 1000: --timesteps {T}." in said(predicts_noise(T), INFO)
    assert f"was trained with T = {T}." in said(predicts_noise(T), info_with(timesteps=T))


def test_a_network_that_predicts_something_else():
    for predict in (lambda x, t: 0.3 * np.ones_like(x), lambda x, t: -0.2 * x, lambda x, t: np.full_like(x, np.nan)):
        assert "returns something else" in said(predict, INFO) and "--objective v" in said(predict, INFO)
        assert said(predict, info_with(objective="v")).endswith("as one does that predicts v.")
    assert "--objective eps" in said(predicts_noise(1000), info_with(objective="x0"))


def test_the_learned_variance_is_left_out():
    both = said(lambda x, t: np.concatenate([predicts_noise(1000)(x, t), 9 * x], axis=-1), INFO)
    assert both == said(predicts_noise(1000), INFO)


@pytest.mark.parametrize(
    ("t_input", "time"), [("index", 999), ("from_one", 1000), ("fraction", 0.999), ("fraction_from_one", 1.0)]
)
def test_the_network_receives_what_t_input_says(t_input, time):
    seen = []

    def predict(x, t):
        seen.append(t[0])
        return x

    noise_check.measure(predict, info_with(t_input=t_input))
    assert seen[0] == pytest.approx(time) and (len(seen) == 1) == t_input.startswith("fraction")


def test_a_table_is_not_read_beyond_its_rows():
    info = dataclasses.replace(INFO, network=LayerNormConfig(table_rows=500), diffusion=DiffusionConfig(timesteps=500))
    assert max(noise_check.candidates(info)) == 500
    from_one = dataclasses.replace(info, diffusion=DiffusionConfig(timesteps=499, t_input="from_one"))
    assert max(noise_check.candidates(from_one)) == 499


def test_fewer_timesteps_where_the_time_does_not_suffice():
    check = noise_check.measure(lambda x, t: x, INFO, seconds=0.0)
    assert list(check.errors) == [1000]
    assert len(noise_check.noise_images(INFO)) == 32
    assert len(noise_check.noise_images(dataclasses.replace(INFO, image_shape=(256, 256, 3)))) == 1


def test_models_that_are_not_checked():
    assert noise_check.can_be_checked(INFO)
    assert not noise_check.can_be_checked(info_with(objective="flow"))


@pytest.fixture(scope="module")
def state_dict():
    network = jax_ddpm.build(INFO.network)
    weights.initialise(network, 0)
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.state_dict(network).items()}


def load(path, **settings):
    lines = []
    return jax_ddpm.load_model(path, 8, log=lines.append, **settings).info.diffusion, lines


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("linear", {"timesteps": 500, "beta_start": 2e-4, "beta_end": 0.04}),
        ("scaled_linear", {"timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}),
        ("cosine", {"timesteps": 300}),
    ],
)
def test_betas_beside_the_weights_tell_the_schedule(name, settings, state_dict, tmp_path):
    betas = make_betas(name, settings["timesteps"], settings.get("beta_start", 1e-4), settings.get("beta_end", 0.02))
    buffers = {"betas": torch.tensor(betas, dtype=torch.float32), "sqrt_alphas": torch.ones(len(betas))}
    prefixed = {f"model.{key}": value for key, value in state_dict.items()}
    torch.save({"model": prefixed | buffers}, tmp_path / "a.pt")
    diffusion, lines = load(tmp_path / "a.pt")
    assert diffusion == DiffusionConfig(schedule=name, **settings)
    assert any(line.startswith('The array "betas" in the file says: timesteps=') for line in lines)
    assert not any("Assumed" in line and "timesteps" in line for line in lines)
    torch.save({"net": state_dict, "alphas_cumprod": torch.tensor(np.cumprod(1 - betas))}, tmp_path / "b.pt")
    assert load(tmp_path / "b.pt")[0] == DiffusionConfig(schedule=name, **settings)
    assert load(tmp_path / "b.pt", timesteps=70)[0] == DiffusionConfig(timesteps=70)


def test_betas_of_another_kind_are_kept_as_they_are():
    betas = np.linspace(0.01, 0.5, 7) ** 3
    told = schedule_of(betas)
    assert told["schedule"] == "trained" and told["trained_betas"] == tuple(betas) and told["timesteps"] == 7


@pytest.mark.parametrize("wrong", [[0.5, -0.1], [0.1, np.nan], [[0.1, 0.2]], [0.1], [1, 2]])
def test_other_arrays_of_that_name_tell_nothing(wrong, state_dict, tmp_path):
    torch.save({"net": state_dict, "betas": torch.tensor(wrong)}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt")[0] == DiffusionConfig()


def test_betas_that_contradict_each_other_tell_nothing(state_dict, tmp_path):
    torch.save(
        {"net": state_dict, "a": {"betas": torch.full((5,), 0.1)}, "b": {"betas": torch.full((6,), 0.1)}},
        tmp_path / "a.pt",
    )
    assert load(tmp_path / "a.pt")[0] == DiffusionConfig()


def test_a_table_of_500_timesteps_tells_T(tmp_path):
    network = jax_ddpm.build(LayerNormConfig(table_rows=500))
    weights.initialise(network, 0)
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in weights.state_dict(network).items()}, tmp_path / "a.pt")
    lines = []
    assert jax_ddpm.load_model(tmp_path / "a.pt", log=lines.append).info.diffusion == DiffusionConfig(timesteps=500)
    assert "T = 500, as the network's table of timesteps has 500 rows (timesteps)." in lines
    given = jax_ddpm.load_model(tmp_path / "a.pt", t_input="from_one", log=lines.append)
    assert given.info.diffusion.timesteps == 499


def test_the_commands_say_what_the_check_found(state_dict, tmp_path, capsys, monkeypatch):
    path, other = tmp_path / "a.pt", tmp_path / "b.safetensors"
    torch.save(state_dict, path)
    convert = "convert.py", path, other, "--image-size", "8"
    assert "Check: given pure noise, the network returns something else" in succeed(capsys, monkeypatch, *convert)
    assert "Check" not in succeed(capsys, monkeypatch, *convert, "--no-check")
    again = succeed(capsys, monkeypatch, "convert.py", other, tmp_path / "c.safetensors")
    assert "Check" not in again  # the file says its settings
    sample = "sample.py", "--model", path, "--image-size", "8", "--timesteps", "4", "--num-images", "1"
    drawn = succeed(capsys, monkeypatch, *sample, "--framework", "torch", "--out", tmp_path / "x.png")
    assert "Check: given pure noise, the network returns something else" in drawn
