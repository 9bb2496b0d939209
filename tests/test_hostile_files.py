"""Files made to break their readers: every one of them is read, or refused in a few lines; nothing else happens.

`pytest -m slow` draws 10,000 and more of them, the plain suite a few dozen of each kind.
"""

import dataclasses
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.data import load as load_images
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.json_text import to_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig, LayerNormConfig
from jax_ddpm.training.run_folder import read_config
from tests.small import small

LOADERS = (jax_ddpm.load_model, torch_ref.load_model)
NETWORK = ConvBlockConfig(widths=(32,), time_width=32)
INFO = ModelInfo(network=NETWORK, image_shape=(8, 8, 1), diffusion=DiffusionConfig(timesteps=20), step=3)
MEMORY = 2**30  # bytes that a test may add to the process


def cases(few: int, many: int):
    """Run a test on a few cases that are always the same, and, where it is slow, on many."""

    def mark(test):
        def with_examples(count, **more):
            checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
            return settings(max_examples=count, deadline=None, database=None, suppress_health_check=checks, **more)

        return pytest.mark.parametrize(
            "examples",
            [
                pytest.param(with_examples(few, derandomize=True), id=f"{few}"),
                pytest.param(with_examples(many), id=f"{many}", marks=pytest.mark.slow),
            ],
        )(test)

    return mark


@pytest.fixture(autouse=True)
def frugal(tmp_path, monkeypatch):
    """No memory above MEMORY, and no file outside tmp_path, which is also where commands would write."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY
    assert not Path("harm").exists()


def read_or_refused(read, *arguments):
    try:
        return read(*arguments)
    except ValueError as error:  # UserError of either package
        assert type(error).__name__ == "UserError", repr(error)
        lines, are_refused_weights = str(error).splitlines(), "holds no complete network" in str(error)
        assert 1 <= len(lines) <= (10 if are_refused_weights else 2) and len(str(error)) <= 1000, error


def both(path):
    return [read_or_refused(load, path) for load in LOADERS]


@pytest.fixture(scope="module")
def values():
    network = unets.build(NETWORK, 1)
    weights.initialise(network, 0)
    return weights.state_dict(network)


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 10**400, True, 1e308, float("inf"), float("nan"), 0.5]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def changed_json(draw, good: dict):
    """`good` with some of its fields, at any depth, gone, replaced, renamed or doubled."""
    settings_ = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 4))):
        place = settings_
        while True:
            name = draw(st.sampled_from(sorted(place)))
            if not (isinstance(place[name], dict) and place[name]) or draw(st.integers(0, 3)) == 0:
                break
            place = place[name]
        change = draw(st.sampled_from(["replace", "replace", "number", "remove", "rename", "add"]))
        if change == "replace":
            place[name] = draw(JSON)
        elif change == "number":
            place[name] = draw(NUMBERS)
        elif change == "add":
            place[draw(st.text(max_size=6))] = draw(JSON)
        elif len(place) > 1:
            value = place.pop(name)
            if change == "rename":
                place[name + draw(st.sampled_from(["s", " ", "é", "\x00"]))] = value
    return settings_


def as_dict(config) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


@cases(40, 2500)
def test_settings(examples, tmp_path):
    @examples
    @given(changed_json(as_dict(small())), st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
    def check(changed, encoding):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(changed), encoding=encoding, errors="surrogatepass")
        config = read_or_refused(read_config, path)
        if config is not None:
            read_or_refused(config.check)

    check()


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{" * 1000, "null", "3", '{"a": 1' + "0" * 5000 + "}", "\x00", "NaN"]
)
def test_settings_that_are_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(jax_ddpm.UserError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def written(path, arrays, metadata=None):
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    return path


@cases(40, 2500)
def test_what_a_file_says_of_its_model(examples, values, tmp_path):
    @examples
    @given(changed_json(as_dict(INFO)))
    def check(changed):
        both(written(tmp_path / "model.safetensors", values, {"jax_ddpm": json.dumps(changed)}))

    check()


def test_a_network_larger_than_its_file(values, tmp_path):
    for network in (ConvBlockConfig(widths=(2**25,)), ConvBlockConfig(widths=(2**15, 2**16)), LayerNormConfig()):
        info = dataclasses.replace(INFO, network=network, image_shape=(28, 28, 1))
        assert both(written(tmp_path / "model.safetensors", values, {"jax_ddpm": to_json(info)})) == [None, None]


DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_]


@st.composite
def changed_arrays(draw, good: dict):
    arrays = dict(good)
    names = sorted(arrays)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(names))
        value = arrays.get(name, np.zeros(2, np.float32))
        change = draw(st.sampled_from(["remove", "rename", "prefix", "dtype", "shape", "transpose", "value", "add"]))
        if change == "remove":
            arrays.pop(name, None)
        elif change == "rename":
            arrays[draw(st.text(st.characters(codec="utf-8"), max_size=12))] = arrays.pop(name, value)
        elif change == "prefix":  # may now be there twice
            arrays[draw(st.sampled_from(["module.", "model.", "ema_model.", "network.module."])) + name] = value
        elif change == "dtype":
            arrays[name] = np.ascontiguousarray(value.astype(draw(st.sampled_from(DTYPES))))
        elif change == "shape":
            shape = draw(st.lists(st.integers(0, 4), max_size=6))
            arrays[name] = np.zeros(shape, np.float32)
        elif change == "transpose":
            arrays[name] = np.ascontiguousarray(value.T)
        elif change == "value" and value.size:
            arrays[name] = np.array(value, copy=True)
            with np.errstate(all="ignore"):
                number = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38, 0]))
                arrays[name].flat[0] = number if arrays[name].dtype.kind == "f" else 0
        else:
            arrays["more." + name] = value
    return arrays


@cases(25, 2000)
def test_arrays(examples, values, tmp_path):
    @examples
    @given(changed_arrays(values), st.sampled_from([None, to_json(INFO)]), st.sampled_from(["safetensors", "pt"]))
    def check(arrays, metadata, kind):
        path = tmp_path / f"model.{kind}"
        if kind == "safetensors":
            written(path, arrays, metadata and {"jax_ddpm": metadata})
        else:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
            torch.save(tensors if metadata is None else {"model_state_dict": tensors, "jax_ddpm": metadata}, path)
        both(path)

    check()


@st.composite
def changed_bytes(draw, good: bytes):
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 5))):
        near = draw(st.sampled_from([16, 200, len(content)]))
        place = draw(st.integers(0, max(0, min(near, len(content)) - 1)))
        change = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if change == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[place:]
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        else:
            content[place:place] = content[place : place + 20]
    return bytes(content)


@cases(40, 3000)
def test_bytes(examples, values, tmp_path):
    small_values = {name: value for name, value in values.items() if value.size < 100}
    whole = {"safetensors": written(tmp_path / "a.safetensors", small_values).read_bytes()}
    torch.save({name: torch.from_numpy(value) for name, value in small_values.items()}, tmp_path / "a.pt")
    whole["pt"] = (tmp_path / "a.pt").read_bytes()
    whole["pth"] = pickle.dumps({name: value.tolist() for name, value in small_values.items()}, protocol=2)

    @examples
    @given(st.sampled_from(sorted(whole)), st.data())
    def check(kind, data):
        path = tmp_path / f"model.{kind}"
        path.write_bytes(data.draw(changed_bytes(whole[kind])))
        both(path)

    check()


PICTURES = {"png": ("L", "RGB", "RGBA", "P", "I;16", "1"), "jpg": ("L", "RGB", "CMYK"), "gif": ("P",), "bmp": ("RGB",)}


@cases(30, 2500)
def test_pictures(examples, tmp_path):
    """Broken pictures are skipped and named; good ones come through."""
    (tmp_path / "some").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "some" / "good.png")
    whole = []
    for suffix, modes in PICTURES.items():
        for mode in modes:
            path = tmp_path / f"a.{suffix}"
            (Image.new(mode, (8, 8)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(path)
            whole.append((suffix, path.read_bytes()))
    (tmp_path / "a.webp").write_bytes(b"RIFF")
    whole.append(("webp", (tmp_path / "a.webp").read_bytes()))

    @examples
    @given(st.lists(st.sampled_from(whole), min_size=1, max_size=3), st.data())
    def check(chosen, data):
        for path in (tmp_path / "some").glob("bad*"):
            path.unlink()
        for number, (suffix, content) in enumerate(chosen):
            (tmp_path / "some" / f"bad{number}.{suffix}").write_bytes(data.draw(changed_bytes(content)))
        images = load_images(f"folder:{tmp_path / 'some'}", 8, cache_dir=tmp_path / "cache", validation_fraction=0.0)
        assert any((image[..., 0] == pixels).all() for image in images.train)
        assert all(len(note.splitlines()) == 1 for note in images.notes)

    check()


HEADERS = {
    "length of all memory": (2**63, {}),
    "length beyond the file": (10**6, {}),
    "no header": (0, {}),
    "beyond the end": (None, {"a": ("F32", [4], [0, 16])}),
    "overlapping": (None, {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [0, 4])}),
    "backwards": (None, {"a": ("F32", [1], [4, 0])}),
    "negative": (None, {"a": ("F32", [1], [-4, 0])}),
    "with a gap": (None, {"a": ("F32", [1], [4, 8])}),
    "huge shape": (None, {"a": ("F32", [2**40, 2**40], [0, 8])}),
    "shape that overflows to 8": (None, {"a": ("F32", [2**62, 4, 2], [0, 8])}),
    "huge empty shape": (None, {"a": ("F32", [0, 2**60], [0, 0])}),
    "unknown dtype": (None, {"a": ("X9", [1], [0, 4])}),
    "eight bits": (None, {"a": ("F8_E4M3", [8], [0, 8])}),
    "half a brain": (None, {"a": ("BF16", [4], [0, 8])}),
    "size and shape disagree": (None, {"a": ("F32", [3], [0, 8])}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_lying_headers(kind, tmp_path):
    length, entries = HEADERS[kind]
    header = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entries.items()}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 8)
    assert both(path) == [None, None]


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


class Nested:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('harm')",)


@pytest.mark.parametrize("harm", [Harm(), [Harm()], {"state_dict": {"a": Nested()}}, {Harm: 1}])
def test_pickles_that_would_run_code(harm, tmp_path):
    torch.save(harm, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(harm))
    torch.save(harm, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "b.pt", "c.bin"):
        assert both(tmp_path / name) == [None, None]


HUGE = (2**60).to_bytes(8, "little")
PICKLES = {  # by hand, for readers of pickles
    "a function that is called": b"cos\nsystem\n(S'mkdir harm'\ntR.",
    "an instance": b"(S'mkdir harm'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'mkdir harm'\no.",
    "a function that is filled": b"cos\nsystem\n}S'__code__'\nNsb.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a memo with room for 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes that the file does not have": b"\x80\x05\x8e" + HUGE + b".",
    "room for 2^60 bytes": b"\x80\x05\x96" + HUGE + b".",
    "a text of 2^60 letters": b"\x80\x04\x8d" + HUGE + b".",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + HUGE + b".",
    "a key that is 200,000 tuples deep": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "lists, 200,000 deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "2^60 lists": b"\x80\x02]q\x00" + b"".join(b"]h%ch%caq%c" % (i, i, i + 1) + b"h%ca" % i for i in range(60)) + b".",
    "a key of a million digits": b"\x80\x02}\x8b" + (400_000).to_bytes(4, "little") + b"\x07" * 400_000 + b"Ns.",
    "text that is no text": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "an empty persistent id": b"P\n.",
    "nothing but a stop": b"\x80\x02.",
    "unknown operations": b"\x80\x02\xff\xfe.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_by_hand(kind, tmp_path):
    (tmp_path / "a.pt").write_bytes(PICKLES[kind])
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as file:
        file.writestr("archive/data.pkl", PICKLES[kind])
    for name in ("a.pt", "b.pt"):
        assert both(tmp_path / name) == [None, None]


def test_archives_that_swell(tmp_path):
    """A zip whose pickle is 400 MB of zeros in 400 kB."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data.pkl", "w") as inner:
        for _ in range(400):
            inner.write(b"\0" * 2**20)
    assert both(path) == [None, None]


@pytest.mark.parametrize(
    "name", ["a model.safetensors", "a 'quoted' \"one\".safetensors", "ünï\n字.safetensors", "-x.safetensors"]
)
def test_names(name, values, tmp_path):
    assert None not in both(written(tmp_path / name, values, {"jax_ddpm": to_json(INFO)}))
    (tmp_path / name).write_bytes(b"")
    assert both(tmp_path / name) == [None, None]
