"""Somebody's checkpoint, converted and written back: its own class takes it strictly."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import jax_ddpm
import torch_ref
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.layout import MAX_KEPT, KeptArray, Layout
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.spec.write_model import save_model, write_model
from tests.commands import refusal, succeed

NETWORK = jax_ddpm.ConvBlockConfig(widths=(32,), time_width=16)
FLAGS = ("--image-size", 4)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return torch_ref.build(NETWORK, 1)


class Diffusion(nn.Module):
    """As many training programs have it: the network as a part, and tables as buffers."""

    def __init__(self, seed=0, tables=("betas", "alphas_cumprod"), length=1000):
        super().__init__()
        self.unet = network(seed)
        for name in tables:
            self.register_buffer(name, torch.rand(length, dtype=torch.float64))
        self.register_buffer("num_updates", torch.tensor(7))


def averaged(seed):
    return torch.optim.swa_utils.AveragedModel(network(seed))


CHECKPOINTS = {
    "a state dict": (network, lambda sd: sd, lambda back: back),
    "a dictionary": (network, lambda sd: {"model": sd, "optimizer": {}, "epoch": 3}, lambda back: back["model"]),
    "a list": (network, lambda sd: [None, {"net": sd}, 5], lambda back: back[1]["net"]),
    "a class around it": (Diffusion, lambda sd: {"state": {"model": sd}}, lambda back: back["state"]["model"]),
    "an average": (averaged, lambda sd: {"ema": sd}, lambda back: back["ema"]),
    "averaged weights in a list": (
        network,
        lambda sd: {"model": sd, "ema": {"shadow_params": [v for n, v in sd.items() if n != "time_emb.0.J"]}},
        lambda back: back["model"],
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_way_there_and_back(kind, tmp_path, monkeypatch, capsys):
    make, wrap, find = CHECKPOINTS[kind]
    theirs = make(0)
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(theirs.state_dict()), "theirs.pt")
    succeed(capsys, monkeypatch, "convert.py", "theirs.pt", "ours.safetensors", *FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = succeed(capsys, monkeypatch, "convert.py", "ours.safetensors", "back.pt")
    assert "state dict" in said.splitlines()[-1]
    back = find(torch.load("back.pt", weights_only=True))
    other = make(1)
    other.load_state_dict(back, strict=True)
    assert list(other.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with `theirs.pt`."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Diffusion().state_dict()}, "theirs.pt")
    return tmp_path


def test_other_layouts_are_asked_for(place, capsys, monkeypatch):
    def keys(*arguments):
        succeed(capsys, monkeypatch, "convert.py", *arguments, *FLAGS)
        return set(torch.load(arguments[1], weights_only=True))

    succeed(capsys, monkeypatch, "convert.py", "theirs.pt", "ours.safetensors", *FLAGS)
    ours, bare = {"model_state_dict", "jax_ddpm"}, set(network().state_dict())
    assert keys("theirs.pt", "direct.pt") == ours, "with the settings"
    assert keys("direct.pt", "a.pt") == {"model"}, "as the checkpoint it came from"
    assert keys("ours.safetensors", "b.pt", "--layout", "plain") == ours
    torch.save(network(2).state_dict(), "bare.pt")
    assert keys("ours.safetensors", "c.pt", "--layout", "bare.pt") == bare
    trained = torch_ref.load_model("ours.safetensors")
    assert trained.info.layout.keys == ("model",) and trained.info.layout.prefix == "unet."


def test_layouts_that_do_not_fit(place, capsys, monkeypatch):
    succeed(capsys, monkeypatch, "convert.py", "theirs.pt", "ours.safetensors", *FLAGS)
    torch.save(torch_ref.build(jax_ddpm.ConvBlockConfig(widths=(32, 64)), 1).state_dict(), "other.pt")
    for output, layout, problem in (
        ("x.pt", "other.pt", "other arrays"),
        ("x.safetensors", "plain", "only for a .pt"),
        ("x.pt", "missing.pt", "does not exist"),
    ):
        said = refusal(capsys, monkeypatch, "convert.py", "ours.safetensors", output, "--layout", layout)
        assert problem in said
        assert not (place / output).exists()


def test_arrays_that_are_too_large_to_keep_are_named(place, capsys, monkeypatch):
    torch.save({"model": Diffusion(length=MAX_KEPT // 2).state_dict()}, "large.pt")
    succeed(capsys, monkeypatch, "convert.py", "large.pt", "ours.safetensors", *FLAGS)
    said = succeed(capsys, monkeypatch, "convert.py", "ours.safetensors", "back.pt")
    assert "1 large arrays of the original are missing: " in said
    missing = set(Diffusion().state_dict()) - set(torch.load("back.pt", weights_only=True)["model"])
    assert len(missing) == 1 and missing < {"betas", "alphas_cumprod"} and missing.pop() in said


def test_names_of_attention_in_older_versions_of_diffusers_come_back(tmp_path, monkeypatch, capsys):
    config = jax_ddpm.spec.network_config.DDPMConfig(
        widths=(32,), layers_per_block=1, down_attention=(True,), up_attention=(False,), attention_head_dim=None
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(name):
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    values = {older(name): value for name, value in torch_ref.build(config, 1).state_dict().items()}
    monkeypatch.chdir(tmp_path)
    torch.save(values, "theirs.bin")
    succeed(capsys, monkeypatch, "convert.py", "theirs.bin", "ours.safetensors", "--image-size", 8)
    succeed(capsys, monkeypatch, "convert.py", "ours.safetensors", "back.pt")
    back = torch.load("back.pt", weights_only=True)
    assert back.keys() == values.keys() and any(".proj_attn." in name for name in back)
    for name, value in values.items():
        np.testing.assert_array_equal(back[name].numpy(), value.numpy(), err_msg=name)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(keys=("a",) * 1000),
        Layout(keys=(10**9,)),
        Layout(keys=(-1,)),
        Layout(kept=(KeptArray("x", "<f4", (3,), "AAAA"),)),
        Layout(kept=(KeptArray("x", "O", (1,), "AAAAAAAAAAA="),)),
        Layout(kept=(KeptArray("x", "nonsense", (1,), "AAAA"),)),
        Layout(kept=(KeptArray("x", "<f4", (1,), "ä"),)),
    ],
    ids=range(7),
)
def test_damaged_layouts_are_refused(layout, tmp_path):
    info = jax_ddpm.ModelInfo(network=NETWORK, image_shape=(4, 4, 1), diffusion=jax_ddpm.DiffusionConfig())
    write_model(tmp_path / "ours.safetensors", {"x": np.ones(1, np.float32)}, dataclasses.replace(info, layout=layout))
    read = read_file(tmp_path / "ours.safetensors")[1]
    assert read.layout == layout
    with pytest.raises(UserError, match=r"--layout plain"):
        save_model(tmp_path / "back.pt", {"x": np.ones(1, np.float32)}, read, layout=read.layout)
    assert not (tmp_path / "back.pt").exists()
