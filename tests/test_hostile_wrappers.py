"""Generated checkpoints and folders: networks in wrappers of all kinds, whole and broken, with harmful objects beside.

A network that is inside whole and once is found; everything else is refused in a few lines; nothing is executed.
`pytest -m slow` draws 12,000 of them.
"""

import argparse
import json
import os
import pathlib
import pickle
import random

import numpy as np
import pytest
import safetensors.torch
import torch

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.spec.network_config import AttentionConfig, ConvBlockConfig, DDPMConfig
from tests.layouts import AVERAGES, BUFFERS, LAYOUTS, ONLY_AVERAGES, optimizer, tables, under

CONFIGS = (
    ConvBlockConfig(widths=(32,), time_width=32),
    AttentionConfig(channels=32, multipliers=(1,), attention=(True,), blocks=1),
    DDPMConfig(widths=(32,), layers_per_block=1, down_attention=(False,), up_attention=(False,)),
)
WORDS = (
    "model",
    "net",
    "unet",
    "state_dict",
    "checkpoint",
    "weights",
    "diffusion",
    "denoise_fn",
    "module",
    "G",
    "x",
    "7",
)


class Harm:
    """Would make a folder if it were unpickled."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


HARMS = (
    Harm((os.mkdir, ("harm",))),
    Harm((os.system, ("mkdir harm",))),
    Harm((eval, ("__import__('os').mkdir('harm')",))),
    Harm((pathlib.Path.touch, (pathlib.Path("harm"),))),
)


@pytest.fixture(scope="module")
def networks():
    made = []
    for config in CONFIGS:
        network = unets.build(config, 1)
        weights.initialise(network, 0)
        raw = {name: torch.from_numpy(value) for name, value in weights.state_dict(network).items()}
        made.append((config, raw, {name: 1.01 * tensor for name, tensor in raw.items()}))
    return made


def beside(draw: random.Random, raw: dict) -> dict:
    """Things that stand beside weights in checkpoints."""
    things = {
        "optimizer": lambda: optimizer(raw),
        "epoch": lambda: draw.randrange(1000),
        "loss": lambda: np.float64(draw.random()),
        "losses": lambda: [draw.random() for _ in range(20)],
        "args": lambda: argparse.Namespace(lr=draw.random(), out=pathlib.PurePosixPath("runs")),
        "scheduler": lambda: {"last_epoch": 3, "_schedulers": [{"base_lrs": [0.1]}]},
        "tables": tables,
        "features": lambda: {"mean": torch.rand(3), "cov": np.eye(2)},
        "rng": lambda: torch.get_rng_state(),
        "none": lambda: None,
        "harm": lambda: draw.choice(HARMS),
        "harms": lambda: [draw.choice(HARMS), {"more": draw.choice(HARMS)}],
    }
    return {name: things[name]() for name in draw.sample(sorted(things), draw.randrange(5))}


def wrapped(draw: random.Random, raw: dict, ema: dict):
    """(content of a file, the weights that are to be taken)."""
    kind, layouts = draw.choice([("raw", LAYOUTS), ("ema", AVERAGES), ("only", ONLY_AVERAGES), ("raw", None)])
    if layouts is not None:
        content = draw.choice(list(layouts.values()))(raw, ema)
    else:
        prefix = "".join(f"{draw.choice(WORDS)}." for _ in range(draw.randrange(4)))
        content = under(prefix, raw)
        if draw.random() < 0.5:
            content |= tables() if draw.random() < 0.5 else under(prefix, tables())
    for _ in range(draw.randrange(3)):
        if draw.random() < 0.2:
            content = [content, optimizer(raw), draw.randrange(100)]
        else:
            content = {**beside(draw, raw), draw.choice(WORDS): content}
    return content, raw if kind == "raw" else ema


def broken(draw: random.Random, tensors: dict) -> dict:
    """The tensors with some missing, renamed, added or of another shape."""
    tensors = dict(tensors)
    for _ in range(draw.randrange(1, 4)):
        name = draw.choice(list(tensors))
        change = draw.choice(["remove", "rename", "shape", "add", "twice"])
        if change == "remove":
            del tensors[name]
        elif change == "rename":
            tensors["".join(draw.choice("ab.é\n\0") for _ in range(draw.randrange(200)))] = tensors.pop(name)
        elif change == "shape":
            tensors[name] = torch.zeros([draw.randrange(4) for _ in range(draw.randrange(6))])
        elif change == "add":
            tensors[f"{name}.more"] = torch.zeros(2, 2)
        else:
            tensors[f"module.{name}"] = tensors[name]
    return tensors


def write(draw: random.Random, content, folder: pathlib.Path) -> pathlib.Path:
    """Write the content in one of the formats, and return the path to load: of the file or of its folder."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    name = draw.choice(["m.pt", "m.ckpt", "m.pth.tar", "M.PT", "m", "m.safetensors", "model.bin", "diffusion.pkl"])
    is_flat = isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )
    kind = draw.choice(["zip", "zip", "legacy", "pickle", *(["safetensors", "shards"] if is_flat else [])])
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps(content, draw.randrange(6)))
    elif kind == "safetensors":
        safetensors.torch.save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
    elif kind == "shards":
        names, files = list(content), [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        for file, part in zip(files, (names[::2], names[1::2]), strict=True):
            safetensors.torch.save_file({key: content[key].clone() for key in part}, folder / file)
        places = {key: files[number % 2] for number, key in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return folder
    else:
        torch.save(content, folder / name, _use_new_zipfile_serialization=kind == "zip")
    if draw.random() < 0.3:
        (folder / "config.json").write_text(
            draw.choice(["{}", "[", '{"_class_name": "UNet2DModel"}', '{"training": 3}'])
        )
    if draw.random() < 0.2:
        torch.save(draw.choice(HARMS), folder / "optimizer.pt")
    return folder if draw.random() < 0.3 else folder / name


def damage(draw: random.Random, path: pathlib.Path) -> None:
    """Change a few bytes of a file, or cut it."""
    file = path if path.is_file() else sorted(path.iterdir())[0]
    content = bytearray(file.read_bytes())
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(max(1, len(content)))
        if draw.random() < 0.3:
            del content[place:]
        elif content:
            content[min(place, len(content) - 1)] = draw.randrange(256)
    file.write_bytes(content)


@pytest.mark.parametrize("count", [pytest.param(60, id="60"), pytest.param(12_000, id="12000", marks=pytest.mark.slow)])
def test_generated_checkpoints(count, networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    figures = {"found": 0, "read or refused": 0}
    for number in range(count):
        draw = random.Random(number)
        config, raw, ema = draw.choice(networks)
        is_whole = draw.random() < 0.7
        if not is_whole:
            raw, ema = (broken(draw, tensors) if draw.random() < 0.8 else tensors for tensors in (raw, ema))
        try:
            content, expected = wrapped(draw, raw, ema)
            path = write(draw, content, tmp_path / "folder")
        except (AttributeError, KeyError, RuntimeError, TypeError, safetensors.SafetensorError):
            continue  # a layout that needs tensors which are missing, or names that cannot be written
        if draw.random() < 0.1:
            is_whole = False
            damage(draw, path)
        package = jax_ddpm if number % 10 == 0 else torch_ref
        said = []
        try:
            model = package.load_model(path, log=said.append)
        except jax_ddpm.UserError as error:
            message = str(error)
            assert len(message) <= 1000 and len(message.splitlines()) <= 10, (number, message)
            settings_are_wrong = "config.json" in message and (tmp_path / "folder" / "config.json").exists()
            assert not is_whole or settings_are_wrong, (number, message)
            figures["read or refused"] += 1
        else:
            assert all(len(line) <= 1000 and len(line.splitlines()) == 1 for line in said), (number, said)
            if is_whole:
                values = model.state_dict() if package is torch_ref else weights.state_dict(model.network)
                assert model.info.network == config, number
                for name in set(expected) - set(BUFFERS):
                    np.testing.assert_array_equal(np.asarray(values[name]), expected[name], err_msg=f"{number} {name}")
            figures["found" if is_whole else "read or refused"] += 1
        assert not pathlib.Path("harm").exists(), number
    with capsys.disabled():
        print(f"\n{count} generated checkpoints and folders: {figures}")
    assert figures["found"] > 0.4 * count
