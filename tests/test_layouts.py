"""Checkpoints in the layouts of public training code: what is found in them, said, chosen and refused."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import AttentionConfig, ConvBlockConfig
from tests.layouts import AVERAGES, LAYOUTS, ONLY_AVERAGES, Wrapper, under

CONFIG = ConvBlockConfig(widths=(32,), time_width=32)
PACKAGES = pytest.mark.parametrize("package", [jax_ddpm, torch_ref], ids=["jax", "torch"])


def initialised(config, channels=3):
    network = unets.build(config, channels)
    weights.initialise(network, 1)
    return {name: torch.from_numpy(value) for name, value in weights.state_dict(network).items()}


@pytest.fixture(scope="module")
def raw():
    return initialised(CONFIG)


@pytest.fixture(scope="module")
def ema(raw):
    return {name: 1.01 * tensor for name, tensor in raw.items()}


def load(path, package=torch_ref, **settings):
    """The loaded weights by name, the model's metadata, and the lines that were said."""
    said = []
    model = package.load_model(path, log=said.append, **settings)
    values = model.state_dict() if package is torch_ref else weights.state_dict(model.network)
    return {name: np.asarray(value) for name, value in values.items()}, model.info, said


def assert_taken(values, expected):
    """That the trained arrays are those; buffers of an average may be those of the raw weights."""
    for name in expected:
        if name != "time_emb.0.J":
            np.testing.assert_array_equal(values[name], expected[name].numpy(), err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_weights_are_found(layout, raw, ema, tmp_path):
    torch.save(LAYOUTS[layout](raw, ema), tmp_path / "file")
    values, info, said = load(tmp_path / "file")
    assert info.network == CONFIG and info.image_shape[2] == 3
    assert_taken(values, raw)
    assert said[0].startswith(f"Took the weights in {tmp_path / 'file'}") and said[-1].startswith("Assumed")
    assert all(line.startswith('The array "') for line in said[1:-1])  # where betas lie beside the weights
    assert all(len(line.splitlines()) == 1 for line in said)
    with pytest.raises(UserError, match="holds no complete EMA weights, only raw weights"):
        load(tmp_path / "file", weights="ema")


@pytest.mark.parametrize("layout", AVERAGES)
def test_averages_win_and_raw_weights_can_be_chosen(layout, raw, ema, tmp_path):
    torch.save(AVERAGES[layout](raw, ema), tmp_path / "file")
    for asked, kind, expected in ((None, "EMA", ema), ("ema", "EMA", ema), ("raw", "raw", raw)):
        values, info, said = load(tmp_path / "file", weights=asked)
        assert info.network == CONFIG
        assert_taken(values, expected)
        assert said[0].startswith(f"Took the {kind} weights in {tmp_path / 'file'}"), said
        assert "raw weights" in said[0] if kind == "EMA" else "EMA weights" in said[0], said


@pytest.mark.parametrize("layout", ONLY_AVERAGES)
def test_averages_alone(layout, raw, ema, tmp_path):
    torch.save(ONLY_AVERAGES[layout](raw, ema), tmp_path / "file")
    values, _, said = load(tmp_path / "file")
    assert_taken(values, ema)
    assert said[0].startswith("Took the EMA weights")
    with pytest.raises(UserError, match="holds no complete raw weights, only EMA weights"):
        load(tmp_path / "file", weights="raw")


@pytest.mark.parametrize("layout", ["shadow_params without buffers", "shadow without buffers", "names without dots"])
def test_averages_of_a_network_that_is_recognised_by_a_buffer(layout, tmp_path):
    raw = initialised(AttentionConfig(channels=32, multipliers=(1,), attention=(False,), blocks=1))
    ema = {name: 1.01 * tensor for name, tensor in raw.items()}
    torch.save(AVERAGES[layout](raw, ema), tmp_path / "file")
    values, _, said = load(tmp_path / "file")
    assert said[0].startswith("Took the EMA weights")
    for name in values:
        expected = raw if name == "time_emb.freqs" else ema
        np.testing.assert_array_equal(values[name], expected[name].numpy(), err_msg=name)


@PACKAGES
@pytest.mark.parametrize("layout", ["Lightning", "a pickled module", "prefix nn_model."])
def test_both_frameworks_take_the_same(package, layout, raw, ema, tmp_path):
    torch.save(LAYOUTS[layout](raw, ema), tmp_path / "file")
    values, _, said = load(tmp_path / "file", package)
    assert_taken(values, raw)
    assert said == load(tmp_path / "file")[2]


def test_the_line_names_key_prefix_and_what_is_left_out(raw, ema, tmp_path):
    torch.save(AVERAGES["model and ema with both halves"](raw, ema), tmp_path / "m.pt")
    line = load(tmp_path / "m.pt")[2][0]
    assert line.startswith(f'Took the EMA weights in {tmp_path / "m.pt"}["ema"] under "ema_model.model.". Left out: ')
    assert '["model"] under "model." (raw weights)' in line and "initted" in line
    said = load(tmp_path / "m.pt", weights="raw")[2]
    assert said[0].startswith(f'Took the raw weights in {tmp_path / "m.pt"}["model"] under "model."')


# Files whose name or format is not that of torch.save --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["m.ckpt", "m.pth.tar", "m.pkl", "m.PT", "model", "pytorch_model.bin", "m.safetensors"]
)
def test_the_name_of_a_file_does_not_matter(name, raw, tmp_path):
    torch.save({"model": raw}, tmp_path / name)
    assert_taken(load(tmp_path / name)[0], raw)
    torch.save({"model": raw}, tmp_path / name, _use_new_zipfile_serialization=False)
    assert_taken(load(tmp_path / name)[0], raw)
    safetensors.torch.save_file(raw, tmp_path / name)
    assert_taken(load(tmp_path / name)[0], raw)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles(protocol, raw, tmp_path):
    for content in (raw, {name: tensor.numpy() for name, tensor in raw.items()}):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"net": content, "step": np.int64(3)}, protocol))
        assert_taken(load(tmp_path / "m.pkl")[0], raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_numbers(dtype, raw, tmp_path):
    tensors = {name: tensor.to(dtype) for name, tensor in raw.items()}
    for legacy in (False, True):
        torch.save(tensors, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        values = load(tmp_path / "m.pt")[0]
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(values[name], tensor.float().numpy(), err_msg=name)


def test_views_and_shared_memory(raw, tmp_path):
    """Tensors that are transposed, or parts of one piece of memory, as flat optimisers leave them."""
    flat = torch.cat([tensor.ravel() for tensor in raw.values()])
    sizes = [tensor.numel() for tensor in raw.values()]
    parts = {n: part.view(raw[n].shape) for n, part in zip(raw, flat.split(sizes), strict=True)}
    parts["output.weight"] = raw["output.weight"].transpose(0, 1).contiguous().transpose(0, 1)
    torch.save(parts, tmp_path / "m.pt")
    assert_taken(load(tmp_path / "m.pt")[0], raw)


def test_reading_needs_no_pytorch(raw, tmp_path, monkeypatch):
    from jax_ddpm.spec.model_files import read_model

    torch.save({"model": raw}, tmp_path / "m.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    values, _ = read_model(tmp_path / "m.pt", log=lambda line: None)
    np.testing.assert_array_equal(values["output.weight"], raw["output.weight"].numpy())


@pytest.mark.parametrize("kind", ["torch", "safetensors", "numpy"])
def test_arrays_can_be_written_to(kind, raw, tmp_path):
    """PyTorch warns of others."""
    from jax_ddpm.spec.model_files import read_file

    path = tmp_path / "m"
    if kind == "safetensors":
        safetensors.torch.save_file(raw, path)
    else:
        torch.save({name: tensor.numpy() if kind == "numpy" else tensor for name, tensor in raw.items()}, path)
    assert all(value.flags.writeable and value.flags.c_contiguous for value in read_file(path)[0].values())


# Folders --------------------------------------------------------------------------------------------------------


def test_a_folder_with_one_model_file(raw, tmp_path):
    torch.save(raw, tmp_path / "weights.ckpt")
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "config.json").write_text("{}")
    assert_taken(load(tmp_path)[0], raw)
    torch.save(raw, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"holds several model files \(other\.pt, weights\.ckpt\): name one of them"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_model_in_several_files(suffix, raw, tmp_path):
    names, stem = list(raw), "pytorch_model" if suffix == "bin" else "model"
    parts = {f"{stem}-0000{part}-of-00002.{suffix}": names[part - 1 :: 2] for part in (1, 2)}
    save = torch.save if suffix == "bin" else safetensors.torch.save_file
    for file, part in parts.items():
        save({name: raw[name] for name in part}, tmp_path / file)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    for path in (tmp_path, index, tmp_path / next(iter(parts))):
        assert_taken(load(path)[0], raw)
    (tmp_path / next(iter(parts))).unlink()
    with pytest.raises(UserError, match=r"-00001-of-00002.* does not exist"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../m.pt"}}))
    with pytest.raises(UserError, match="files of other folders"):
        load(tmp_path)


def test_variants_in_half_precision(raw, tmp_path):
    half = {name: tensor.half() for name, tensor in raw.items()}
    safetensors.torch.save_file(half, tmp_path / "model_weights.fp16.safetensors")
    np.testing.assert_array_equal(load(tmp_path)[0]["output.weight"], half["output.weight"].float())
    torch.save(raw, tmp_path / "model_weights.bin")
    assert_taken(load(tmp_path)[0], raw)  # full precision before half precision


# Refusals ---------------------------------------------------------------------------------------------------------


def refused(path, **settings) -> str:
    messages = set()
    for package in (jax_ddpm, torch_ref):
        with pytest.raises(UserError) as error:
            package.load_model(path, log=lambda line: None, **settings)
        messages.add(str(error.value))
    (message,) = messages
    assert len(message) <= 1000
    return message


def test_networks_that_are_not_complete(raw, tmp_path):
    broken = dict(raw)
    del broken["output.bias"], broken["time_emb.1.weight"]
    broken["time_emb.1.weight"], broken["more.weight"] = torch.ones(32, 31), torch.ones(2)
    torch.save({"net": under("module.", broken), "other": {"a": torch.ones(3)}}, tmp_path / "m.pt")
    lines = refused(tmp_path / "m.pt").splitlines()
    assert 3 <= len(lines) <= 10
    for said in (
        f"{tmp_path / 'm.pt'} holds no complete network that is known here",
        f'It holds: ["net"] ({len(broken)} arrays), ["other"] (1 arrays).',
        'Nearest: conv_block in ["net"] under "module."',
        "Missing: module.output.bias (3,)",
        "Unexpected: module.more.weight.",
        "Other shapes: module.time_emb.1.weight is (32, 31), expected (32, 32).",
    ):
        assert any(line.startswith(said) for line in lines), said


def test_other_networks_are_compared_by_their_names(raw, tmp_path):
    torch.save({"model": {f"encoder.layer{i}.weight": torch.ones(2) for i in range(500)}}, tmp_path / "m.pt")
    said = refused(tmp_path / "m.pt")
    assert '["model"] (500 arrays)' in said and "encoder.layer0.weight" in said and "no arrays" not in said
    part = {name: tensor for name, tensor in raw.items() if name.startswith("enc_convs") and ".seq1.0" not in name}
    torch.save({"model": under("net.", part | {"x": torch.ones(1)})}, tmp_path / "m.pt")
    said = refused(tmp_path / "m.pt")
    assert 'Nearest: conv_block. In ["model"] under "net.", ' in said and "docs/your-own-network.md" in said
    assert f" of {len(part) + 1} arrays" in said and "more have only the name) are as in conv_block." in said
    assert "Missing: " in said and "Unexpected: net.x." in said


def test_files_without_arrays(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    assert "holds no arrays of numbers" in refused(tmp_path / "m.pt")


def test_several_networks(raw, ema, tmp_path):
    torch.save({"generator": raw, "refiner": ema}, tmp_path / "m.pt")
    said = refused(tmp_path / "m.pt")
    assert 'holds 2 complete networks with different values: ["generator"], ["refiner"]' in said
    torch.save({"generator": raw, "refiner": ema, "ema": ema}, tmp_path / "m.pt")
    assert_taken(load(tmp_path / "m.pt")[0], ema)


OTHER_FILES = {
    "nothing": (b"", "is empty"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "an error of a server": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "JSON": (b'{"error": "not found"}', "is JSON"),
    "gzip": (b"\x1f\x8b\x08\x00", "unpack"),
    "tar": (b"model.pt".ljust(257, b"\0") + b"ustar\x0000", "tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "text": (b"hello", "is not a model file"),
    "a cut zip": (b"PK\x03\x04", "cannot be read as a PyTorch checkpoint"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_files_that_are_something_else(kind, tmp_path):
    content, said = OTHER_FILES[kind]
    (tmp_path / "m.pt").write_bytes(content)
    assert said in refused(tmp_path / "m.pt")


def test_torchscript(raw, tmp_path):
    torch.jit.script(Wrapper(raw)).save(str(tmp_path / "m.pt"))
    said = refused(tmp_path / "m.pt")
    assert "TorchScript" in said and "torch.jit.load" in said


# Settings that a file does not tell ----------------------------------------------------------------------------------

ATTENTION = AttentionConfig(channels=32, multipliers=(1,), attention=(True,), blocks=1)


@pytest.fixture(scope="module")
def attention():
    return initialised(ATTENTION)


def test_what_is_assumed_is_said(attention, tmp_path):
    torch.save(attention, tmp_path / "m.pt")
    _, info, said = load(tmp_path / "m.pt")
    assert info.network.heads == 8
    assert "heads=8 (network_settings={'heads': VALUE})" in said[1] and "images of 32x32 (image_size)" in said[1]
    assert "timesteps=1000" in said[1] and "objective='eps'" in said[1]
    _, info, said = load(tmp_path / "m.pt", network_settings={"heads": 4}, image_size=8, timesteps=50)
    assert info.network.heads == 4 and info.image_shape == (8, 8, 3) and info.diffusion.timesteps == 50
    assert "heads" not in said[1] and "image-size" not in said[1] and "--timesteps" not in said[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 5}, "heads = 5"),
        ({"heads": "four"}, "heads"),
        ({"tails": 4}, "tails"),
        ({"channels": 64}, "channels = 64 was given, but the weights or their settings say 32"),
    ],
)
def test_settings_that_do_not_fit(settings, said, attention, tmp_path):
    torch.save(attention, tmp_path / "m.pt")
    assert said in refused(tmp_path / "m.pt", network_settings=settings)


def test_settings_of_our_own_files_are_not_overruled(attention, tmp_path):
    torch.save(attention, tmp_path / "m.pt")
    from jax_ddpm.spec.write_model import write_model

    values, info, _ = load(tmp_path / "m.pt", network_settings={"heads": 4})
    write_model(tmp_path / "m.safetensors", values, info)
    assert load(tmp_path / "m.safetensors", network_settings={"heads": 4})[1:] == (info, [])
    assert "heads = 8 was given" in refused(tmp_path / "m.safetensors", network_settings={"heads": 8})
    assert "attention has no setting tails" in refused(tmp_path / "m.safetensors", network_settings={"tails": 8})
    assert "does not say whether they are EMA or raw" in refused(tmp_path / "m.safetensors", weights="raw")
    shutil.copy(tmp_path / "m.safetensors", tmp_path / "m")
    assert load(tmp_path / "m")[1] == info


# Tensors that lie about their storage -----------------------------------------------------------------------------


class Lie:
    """Pickled as a tensor with this offset, shape and strides over two numbers."""

    def __init__(self, offset, shape, strides):
        self.arguments = (offset, shape, strides)

    def __reduce__(self):
        storage = torch.ones(2).storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.arguments, False, {})


@pytest.mark.parametrize(
    "lie",
    [
        *((0, (3,), (1,)), (2, (1,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (1, 1)), (0, (2,), (2,)), (0, (2,), (-1,))),
        *((0, (10**12,), (0,)), (0, (2**70,), (1,)), (0, (1,) * 40, (1,) * 40), (0, (2,), (1, 1)), (0, (True,), (1,))),
        (0, (-1,), (1,)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_that_are_larger_than_their_storage(lie, raw, tmp_path):
    torch.save({**raw, "output.bias": Lie(*lie)}, tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt")
    assert "cannot be read as a PyTorch checkpoint" in message or "Missing: output.bias" in message


def test_a_storage_that_is_shorter_than_the_file_says(raw, tmp_path):
    torch.save(raw, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as file:
        entries = {entry.filename: file.read(entry) for entry in file.infolist()}
    largest = max((name for name in entries if "/data/" in name), key=lambda name: len(entries[name]))
    entries[largest] = entries[largest][:-400]
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    assert "is damaged: an array cannot be read" in refused(tmp_path / "m.pt")


def test_a_damaged_copy_of_the_weights(raw, tmp_path):
    """Two equal networks are compared, so damage to the second one is found."""
    torch.save({"model": raw, "state_dict": {name: tensor.clone() for name, tensor in raw.items()}}, tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    place = content.rindex(raw["output.weight"].numpy().tobytes())
    content[place] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    assert "is damaged: an array cannot be read (Bad CRC-32" in refused(tmp_path / "m.pt")


@pytest.mark.parametrize("beside", [{}, {"config.json": '{"_class_name": "UNet2DModel"}'}])
def test_folders_with_pointers_of_git_lfs(beside, tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(OTHER_FILES["a pointer of Git LFS"][0])
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    assert "run git lfs pull" in refused(tmp_path)
