"""Somebody's checkpoint, converted and written back: its own class takes it strictly."""

import dataclasses
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import jax_ddpm
import torch_ref
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.layout import KeptArray, Layout, Names, Place
from jax_ddpm.spec.model_files import read_file
from jax_ddpm.spec.record_layout import MAX_KEPT
from jax_ddpm.spec.write_model import save_model, write_model
from tests.commands import refusal, succeed
from tests.layouts import AVERAGES, LAYOUTS, ONLY_AVERAGES

Arrays = (torch.Tensor, np.ndarray)
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
    assert "in the layout of the original" in said.splitlines()[-1]
    back = find(torch.load("back.pt", weights_only=True))
    other = make(1)
    other.load_state_dict(back, strict=True)
    assert list(other.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def entry(content, keys):
    """What keys lead to in a checkpoint, also through attributes of objects."""
    for key in keys:
        content = content[key] if isinstance(content, dict | list) else getattr(content, key)
    return content.state_dict() if isinstance(content, nn.Module) else content


@pytest.mark.parametrize("kind", [*LAYOUTS, *AVERAGES, *ONLY_AVERAGES])
def test_every_place_of_a_known_layout_is_filled(kind, tmp_path):
    """The tensors that the original has there, by name, and the other tensors of these dictionaries unchanged."""
    raw, average = network(0).state_dict(), network(1).state_dict()
    original = {**LAYOUTS, **AVERAGES, **ONLY_AVERAGES}[kind](raw, average)
    torch.save(original, tmp_path / "theirs.pt")
    model = torch_ref.load_model(tmp_path / "theirs.pt", 4, log=lambda line: None)
    values = {name: tensor.numpy() + 1 for name, tensor in model.state_dict().items()}
    save_model(tmp_path / "back.pt", values, model.info, layout=model.info.layout)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    places = model.info.layout.places
    assert len(places) == 1 or kind in (*AVERAGES, "twice the same")
    for place in places:
        before, after = entry(original, place.keys), entry(back, place.keys)
        if isinstance(before, list):
            before, after = dict(enumerate(before)), dict(enumerate(after))
        before = {name: torch.as_tensor(value) for name, value in before.items() if isinstance(value, Arrays)}
        kept = {name: value for name, value in after.items() if isinstance(value, torch.Tensor)}
        assert kept.keys() == before.keys()
        assert {name: value.shape for name, value in kept.items()} == {n: v.shape for n, v in before.items()}
        changed = [name for name in before if not torch.equal(before[name], kept[name])]
        sets = sum(len(values) - len(names.absent) for names in place.names)
        assert len(changed) == sets
    again = torch_ref.load_model(tmp_path / "back.pt", 4, log=lambda line: None)
    for name, value in values.items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value, err_msg=name)


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
    (place,) = trained.info.layout.places
    assert place.keys == ("model",) and place.names[0].prefix == "unet."


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
    assert "without 1 large arrays of the original: " in said
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
    "places",
    [
        [Place(("a",) * 1000, (Names(),))],
        [Place((10**9,), (Names(),))],
        [Place((-1,), (Names(),))],
        [Place((), (Names(),), is_list=True)],
        [Place((), (Names(),)), Place(("x", "x"), (Names(),))],
        [Place((), (), kept=(KeptArray("x", "<f4", (3,), "AAAA"),))],
        [Place((), (), kept=(KeptArray("x", "O", (1,), "AAAAAAAAAAA="),))],
        [Place((), (), kept=(KeptArray("x", "nonsense", (1,), "AAAA"),))],
        [Place((), (), kept=(KeptArray("x", "<f4", (1,), "ä"),))],
    ],
    ids=range(9),
)
def test_damaged_layouts_are_refused(places, tmp_path):
    layout = Layout(tuple(places))
    info = jax_ddpm.ModelInfo(network=NETWORK, image_shape=(4, 4, 1), diffusion=jax_ddpm.DiffusionConfig())
    write_model(tmp_path / "ours.safetensors", {"x": np.ones(1, np.float32)}, dataclasses.replace(info, layout=layout))
    read = read_file(tmp_path / "ours.safetensors")[1]
    assert read.layout == layout
    with pytest.raises(UserError, match=r"layout='plain'"):
        save_model(tmp_path / "back.pt", {"x": np.ones(1, np.float32)}, read, layout=read.layout)
    assert not (tmp_path / "back.pt").exists()


def test_writing_needs_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    info = jax_ddpm.ModelInfo(network=NETWORK, image_shape=(4, 4, 1), diffusion=jax_ddpm.DiffusionConfig())
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'jax-ddpm\[torch\]'"):
        save_model(tmp_path / "x.pt", {"x": np.ones(1, np.float32)}, info)
