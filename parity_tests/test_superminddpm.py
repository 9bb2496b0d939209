"""The network `superminddpm`: files of its trainer, settings, and the check by pure noise of a network without t."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import torch_ref
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.noise_check import candidates, describe, measure
from jax_ddpm.spec.presets import preset
from jax_ddpm.spec.recognise_superminddpm import recognise_superminddpm
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig
from tests.commands import succeed

CONFIG = SuperMinDDPMConfig(widths=(4, 6))


def trainer_file(path, T: int) -> dict[str, np.ndarray]:
    """A file with the names and tables of its trainer: sqrt_beta_t and others for t = 0 to T."""
    network = torch_ref.unets.build(CONFIG, 1)
    torch_ref.weights.initialise(network, 3)
    beta = (0.02 - 1e-4) * torch.arange(0, T + 1, dtype=torch.float32) / T + 1e-4
    alpha_bar = torch.cumsum(torch.log(1 - beta), 0).exp()
    tables = {"alpha_t": 1 - beta, "sqrt_beta_t": beta.sqrt(), "alphabar_t": alpha_bar, "sqrtab": alpha_bar.sqrt()}
    tables |= {"mab_over_sqrtmab": beta / (1 - alpha_bar).sqrt()}
    torch.save({**{f"eps_model.{name}": value for name, value in network.state_dict().items()}, **tables}, path)
    return torch_ref.weights.state_dict(network)


def test_files_of_the_trainer(tmp_path, capsys, monkeypatch):
    """T and the betas come from its tables; there and back, every bit is equal."""
    values, lines = trainer_file(tmp_path / "theirs.pth", T=500), []
    model = torch_ref.load_model(tmp_path / "theirs.pth", log=lines.append)
    assert model.info.network == CONFIG
    told = {"timesteps": 500, "schedule": "linear", "beta_start": 0.0001398, "beta_end": 0.02}
    assert model.info.diffusion == replace(preset("superminddpm").diffusion, **told)
    assert any('"sqrt_beta_t" in the file says: timesteps=500' in line for line in lines)
    succeed(
        *(capsys, monkeypatch, "convert.py", tmp_path / "theirs.pth", tmp_path / "ours.safetensors"),
        *("--image-size", 8, "--no-check"),
    )
    succeed(capsys, monkeypatch, "convert.py", tmp_path / "ours.safetensors", tmp_path / "back.pth")
    back, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("back.pth", "theirs.pth"))
    for name, value in values.items():
        np.testing.assert_array_equal(back[f"eps_model.{name}"].numpy(), value)
    assert torch.equal(back["sqrt_beta_t"], theirs["sqrt_beta_t"])


def test_the_check_by_pure_noise_says_that_t_is_not_used(tmp_path):
    trainer_file(tmp_path / "theirs.pth", T=100)
    info = torch_ref.load_model(tmp_path / "theirs.pth", image_size=8, t_input="index", log=lambda line: None).info
    assert candidates(info) == [100]
    assert "does not use t" in describe(measure(lambda x, t: 0.9 * x, info), info)


@pytest.mark.parametrize("settings", [{"widths": ()}, {"widths": (0,)}, {"kernel_size": 6}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        SuperMinDDPMConfig(**settings).check()


def test_another_stack_of_convolutions_is_not_recognised():
    values = {"conv.0.0.weight": np.zeros((4, 1, 7, 7)), "conv.1.weight": np.zeros((2, 4, 3, 3))}
    assert recognise_superminddpm(values) is None
    assert recognise_superminddpm({**values, "conv.1.weight": np.zeros((1, 4, 3, 3))}).config.widths == (4,)
