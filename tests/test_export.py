"""Exported samplers: they draw the pictures of `sample`, in a process that cannot import this package."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from jax import export

import jax_ddpm
import torch_ref
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.data import to_uint8
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.flat_settings import sampling_settings
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig, NetworkConfig
from jax_ddpm.weights.model import Model
from tests.commands import refusal, succeed
from tests.small import jit
from torch_ref.sampling import samplers
from torch_ref.sampling.export import Step, example_inputs, file_settings

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
WITHOUT_US = "import sys; sys.modules['jax_ddpm'] = sys.modules['torch_ref'] = None\n"
NETWORK = ConvBlockConfig(widths=(32,), time_width=32)
SELF_CONDITIONED = LucidrainsConfig(
    **{"dim": 8, "dim_mults": (1,), "attn_heads": (1,), "attn_dim_head": (4,), "num_mem_kv": 1, "self_condition": True}
)
DIFFUSION = jax_ddpm.DiffusionConfig(timesteps=20, beta_end=0.4)


def model(network=NETWORK, seed=0) -> Model:
    built = unets.build(network, 1)
    weights.initialise(built, seed)
    return Model(built, ModelInfo(network=network, image_shape=(4, 4, 1), diffusion=DIFFUSION))


def program(containing: str) -> str:
    """The program of the page with these words."""
    programs = re.findall(r"^```py\w*\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [each for each in programs if containing in each]
    return found


def run(text: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_US + text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_same_pictures(images: np.ndarray, wanted: np.ndarray) -> None:
    """uint8; rounding may move a value across the middle between two levels."""
    difference = np.abs(images.astype(int) - wanted)
    assert images.dtype == np.uint8 and difference.max() <= 1 and np.mean(difference > 0) <= 0.01


def test_the_program_of_the_page_draws_the_pictures_of_the_command(command_run, tmp_path, capsys, monkeypatch):
    folder, _ = command_run
    flags = "--sampler", "ddim", "--num-steps", "5", "--eta", "0.5"
    said = succeed(capsys, monkeypatch, "export.py", folder, tmp_path / "sampler.stablehlo", *flags)
    assert "sampler.stablehlo, 0." in said
    run(program("export.deserialize"), tmp_path)
    succeed(capsys, monkeypatch, "sample.py", "--model", folder, "--out", tmp_path / "images.npz", *flags)
    assert_same_pictures(np.load(tmp_path / "images.npy"), np.load(tmp_path / "images.npz")["images"])
    assert "exists.\nChoose another output" in refusal(
        capsys, monkeypatch, "export.py", folder, tmp_path / "sampler.stablehlo"
    )


def test_labels_and_guidance_are_arguments(tmp_path):
    conditional = model(NETWORK.with_classes(3, null_label=True))
    path = jax_ddpm.export_sampler(conditional, tmp_path / "a.stablehlo", num_steps=3)
    sampler = export.deserialize(bytearray(path.read_bytes()))
    assert sampler.platforms == ("cpu", "cuda", "tpu")
    draw = jit(sampler.call)
    labels = [2, 0, 3]  # 3: none
    for weight in (1.0, 3.0):
        wanted = jax_ddpm.sample(conditional, 3, seed=2**32 - 1, labels=[2, 0, None], num_steps=3, guidance=weight)
        indices = np.arange(3, dtype=np.uint32)
        images = draw(np.uint32(2**32 - 1), indices, np.array(labels, np.int32), np.float32(weight))
        assert_same_pictures(np.asarray(images), to_uint8(wanted))


def test_a_guide_is_exported_with_the_model(tmp_path):
    strong, weak = model(NETWORK.with_classes(3, null_label=True)), model(NETWORK, 1)
    path = jax_ddpm.export_sampler(strong, tmp_path / "a.stablehlo", guide=weak, num_steps=3)
    arguments = np.uint32(5), np.arange(3, dtype=np.uint32), np.arange(3, dtype=np.int32)
    draw = jit(export.deserialize(bytearray(path.read_bytes())).call)
    for weight in (1.0, 3.0):
        guide = {} if weight == 1 else {"guide": weak, "guidance": weight}
        wanted = jax_ddpm.sample(strong, 3, seed=5, num_steps=3, **guide)
        assert_same_pictures(np.asarray(draw(*arguments, np.float32(weight))), to_uint8(wanted))
    unlabelled = jax_ddpm.export_sampler(weak, tmp_path / "b.stablehlo", guide=model(), num_steps=2)
    images = export.deserialize(bytearray(unlabelled.read_bytes())).call(*arguments[:2], np.float32(2))
    wanted = jax_ddpm.sample(weak, 3, seed=5, num_steps=2, guide=model(), guidance=2.0)
    assert_same_pictures(np.asarray(images), to_uint8(wanted))


def test_self_conditioning_is_exported_with_a_guide_without_it(tmp_path):
    strong, weak = model(SELF_CONDITIONED), model()
    path = jax_ddpm.export_sampler(strong, tmp_path / "a.stablehlo", guide=weak, num_steps=3)
    draw = jit(export.deserialize(bytearray(path.read_bytes())).call)
    wanted = jax_ddpm.sample(strong, 3, seed=5, num_steps=3, guide=weak, guidance=3.0)
    images = draw(np.uint32(5), np.arange(3, dtype=np.uint32), np.float32(3))
    assert_same_pictures(np.asarray(images), to_uint8(wanted))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"path": "a.onnx"}, "file name = a.onnx: expected one that ends in .stablehlo."),
        ({"guidance": 2.0}, "guidance = 2.0: the exported file takes the weight of guidance as an argument; leave"),
        ({"sampler": "midpoint"}, "sampler = midpoint: the objective eps has "),
    ],
)
def test_refusals(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        jax_ddpm.export_sampler(model(), **{"path": "a.stablehlo", **settings})
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class OwnConfig(NetworkConfig):
    """Of a network that calls Python."""

    name: Literal["calls_python"] = "calls_python"


class CallsPython(nnx.Module):
    def __call__(self, x, t):
        return jax.pure_callback(np.sin, x, x, vmap_method="sequential")


def test_a_network_that_calls_python_is_refused(tmp_path):
    own = Model(CallsPython(), ModelInfo(network=OwnConfig(), image_shape=(4, 4, 1), diffusion=DIFFUSION))
    with pytest.raises(UserError, match=r"because of code of your own \(.*callback"):
        jax_ddpm.export_sampler(own, tmp_path / "a.stablehlo")


SAMPLERS = {
    "ddpm": ({}, {}),
    "ddim": ({"sampler": "ddim", "eta": 1.0, "num_steps": 5}, {}),
    "dpmpp": ({"sampler": "dpmpp", "num_steps": 5}, {}),
    "heun": ({"sampler": "heun", "num_steps": 5}, {}),
    "heun from nearly pure noise": ({"sampler": "heun", "num_steps": 3}, {"objective": "v", "zero_terminal_snr": True}),
    "euler of edm": ({"sampler": "euler", "num_steps": 5}, {"objective": "edm"}),
    "heun of edm": ({"sampler": "heun", "num_steps": 5}, {"objective": "edm"}),
    "heun of flow": ({"sampler": "heun", "num_steps": 5}, {"objective": "flow"}),
    "midpoint of flow": ({"sampler": "midpoint", "num_steps": 5}, {"objective": "flow"}),
}


def torch_model(network=NETWORK, seed=0, **diffusion):
    built = torch_ref.build(network, 1)
    torch_ref.weights.initialise(built, seed)
    built.info = ModelInfo(network=network, image_shape=(4, 4, 1), diffusion=replace(DIFFUSION, **diffusion))
    return built.eval()


@pytest.mark.parametrize("name", ["ddpm", "dpmpp", "heun", "heun of edm"])
def test_a_loop_around_the_step_of_a_model_with_self_conditioning(name):
    settings, diffusion = SAMPLERS[name]
    model = torch_model(SELF_CONDITIONED, **diffusion)
    wanted = torch_ref.sample(model, 2, **settings)
    step, about, inputs, noise = loop_around(model, settings)
    x = walk(step, about, inputs, noise)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, has_guide", [*((name, False) for name in SAMPLERS), ("heun", True)])
def test_a_loop_around_the_step_of_a_sampler_is_the_sampler(name, has_guide):
    settings, diffusion = SAMPLERS[name]
    model = torch_model(NETWORK.with_classes(3, null_label=True), **diffusion)
    guide = torch_model(NETWORK.with_classes(3, null_label=True), 1, **diffusion) if has_guide else None
    wanted = torch_ref.sample(model, 2, labels=[2, None], guidance=3.0, guide=guide, **settings)
    step, about, inputs, noise = loop_around(model, settings, guide)
    assert set(about["timesteps"]) <= set(range(20)) and about["no_label"] == 3
    inputs |= {"labels": torch.tensor([2, 3]), "guidance": torch.tensor(3.0)}
    x = walk(step, about, inputs, noise)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), wanted, rtol=0, atol=1e-6)


def loop_around(model, settings, guide=None) -> tuple:
    """The step, the file's settings, inputs for two images, and their noise by its number."""
    sampler, config = sampling_settings(settings.get("sampler"), model.info.diffusion, others(settings))
    step, about = Step(model, config, sampler, torch.float32, guide), file_settings(model.info, config, sampler)
    inputs = example_inputs(model.info, config, sampler, torch.float32)
    noise = partial(samplers.noise_at, samplers.image_keys(0, np.arange(2)), shape=(4, 4, 1), dtype=torch.float32)
    return step, about, inputs | {"x": noise(about["first_noise"]) * about["sigma"]}, noise


def walk(step, about, inputs, noise) -> torch.Tensor:
    """x_0 after all steps, as docs/export.md says."""
    for t in about["timesteps"]:
        more = {"noise": noise(t)} if "noise" in inputs else {}
        with torch.no_grad():
            outputs = step(**{**inputs, "t": torch.tensor(t), **more})
        inputs["x"] = outputs["x_next"]
        carried = {"x_0": "x_0_before", "lambda_t": "lambda_before"}
        inputs |= {carried[name]: outputs[name] for name in carried if name in outputs}
    return inputs["x"]


def others(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name != "sampler"}


@pytest.mark.parametrize(
    "path, settings, message",
    [
        ("a.stablehlo", {}, "file name = a.stablehlo: expected one that ends in .onnx or .pt2."),
        ("a.pt2", {"guide": torch_model(timesteps=10)}, "timesteps of the guide = 10: expected the model's, 20."),
        ("a.pt2", {"guidance": 2.0}, "guidance = 2.0: the exported file takes the weight of guidance as an argument"),
    ],
)
def test_refusals_of_a_step(path, settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        torch_ref.export_step(torch_model(), path, **settings)
    assert not list(tmp_path.iterdir())


def random_inputs(model, **settings) -> tuple[Step, dict[str, torch.Tensor]]:
    """The step, and inputs for three images, where the example had two."""
    sampler, config = sampling_settings(settings.get("sampler"), model.info.diffusion, others(settings))
    inputs = example_inputs(model.info, config, sampler, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, value in inputs.items():
        if value.ndim and value.is_floating_point():
            inputs[name] = torch.randn(3, *value.shape[1:], generator=generator)
    inputs["labels"] = torch.tensor([2, 0, 3])
    inputs["guidance"] = torch.tensor(1.5)
    return Step(model, config, sampler, torch.float32), inputs


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "euler", "heun"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_step_computes_what_the_step_does(suffix, sampler, tmp_path):
    model = torch_model(NETWORK.with_classes(3, null_label=True))
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript: pip install 'jax-ddpm[onnx]'")
        onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'jax-ddpm[onnx]'")
    path = torch_ref.export_step(model, tmp_path / f"step{suffix}", sampler=sampler)
    step, inputs = random_inputs(model, sampler=sampler)
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in step(**inputs).items()}
        if suffix == ".onnx":
            session = onnxruntime.InferenceSession(path)
            outputs = session.run(list(wanted), {name: value.numpy() for name, value in inputs.items()})
        else:
            results = torch.export.load(path).module()(**inputs)
            outputs = [results[name].numpy() for name in wanted]
    for name, output in zip(wanted, outputs, strict=True):
        np.testing.assert_allclose(output, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], *(["--sampler", name, "--num-steps", "5"] for name in ("ddim", "heun"))])
def test_the_numpy_program_of_the_page_draws_the_same_pictures(flags, command_run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript: pip install 'jax-ddpm[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'jax-ddpm[onnx]'")
    folder, _ = command_run
    succeed(capsys, monkeypatch, "export.py", folder, tmp_path / "step.onnx", *flags)
    run(program("onnxruntime.InferenceSession"), tmp_path)
    succeed(capsys, monkeypatch, "sample.py", "--model", folder, "--out", tmp_path / "images.npz", *flags)
    assert_same_pictures(np.load(tmp_path / "images.npy"), np.load(tmp_path / "images.npz")["images"])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"sampler": "ddpm", "num_steps": 3}, {"sampler": "dpmpp", "num_steps": 5}])
def test_the_program_for_pytorch_draws_pictures_of_a_model_with_self_conditioning(settings, tmp_path):
    conditioned = torch_model(SELF_CONDITIONED)
    torch_ref.export_step(conditioned, tmp_path / "step.pt2", **settings)
    text = program("onnxruntime.InferenceSession").replace("import onnxruntime", "import torch")
    start, end = text.index("session = "), text.index("height, width")
    run(text[:start] + program("torch.export.load") + text[end:], tmp_path)
    wanted = torch_ref.sample(conditioned, 16, **settings)
    assert_same_pictures(np.load(tmp_path / "images.npy"), to_uint8(wanted))
