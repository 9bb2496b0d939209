"""Folders of the diffusers package, read and written, and what is refused."""

import inspect
import json
import re
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import jax_ddpm
import torch_ref
from jax_ddpm import unets, weights
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec import diffusers_network, diffusers_scheduler
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import initial_weights, read_file, read_model
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig, DDPMConfig
from jax_ddpm.spec.write_model import check_output, save_model, write_model
from parity_tests import budgets
from parity_tests.diffusers_models import SMALL, blocks, package_model
from parity_tests.measures import channels_first

torch.set_num_threads(1)
PACKAGES = pytest.mark.parametrize("package", [jax_ddpm, torch_ref], ids=["jax", "torch"])


# Folders that the package writes --------------------------------------------------------------------------------------


def changed_json(path, **changes):
    """Set fields of a JSON file; ... removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def info_of(path, **diffusion):
    return asdict(read_model(path, **diffusion)[1])


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the folder with the package's choices."""
    return Path(shutil.copytree(folders["the package's choices"], tmp_path / "copy"))


PACKAGES_CHOICES = DDPMConfig(
    **{"widths": (8, 16), "layers_per_block": 1, "down_attention": (False, True), "up_attention": (True, False)},
    **{"attention_head_dim": 8, "norm_num_groups": 4, "norm_eps": 1e-5, "downsample_padding": 1},
    **{"flip_sin_to_cos": True, "freq_shift": 0, "dropout": 0.0},
)


def test_settings_of_a_model(folders):
    info = info_of(folders["the package's choices"])
    assert info["network"] == asdict(PACKAGES_CHOICES) and info["image_shape"] == (8, 8, 3)
    assert info["diffusion"] == asdict(DiffusionConfig())  # the DDPM paper's, as there is no scheduler,
    given = info_of(folders["the package's choices"], timesteps=50, schedule="cosine")  # unless it is given
    assert given["diffusion"] == asdict(DiffusionConfig(timesteps=50, schedule="cosine"))
    info = info_of(folders["learned variance, not square"])
    assert info["network"]["learned_variance"] and info["image_shape"] == (4, 8, 3)
    assert info["diffusion"] == asdict(DiffusionConfig(variance="learned_range"))


def test_absent_fields_have_the_packages_defaults(folder):
    of_model = {name: p.default for name, p in inspect.signature(UNet2DModel.__init__).parameters.items()}
    theirs, ours = diffusers_network, {}
    ours |= theirs.SHARED_FIELDS | theirs.CONVERTED_FIELDS | {name: v[0] for name, v in theirs.SUPPORTED_VALUES.items()}
    for name, value in ours.items():
        assert of_model[name] == (tuple(value) if isinstance(value, list) else value), name
    assert set(of_model) - {"self", *ours} == {"num_train_timesteps"}
    before = info_of(folder)
    defaults = dict.fromkeys(set(json.loads((folder / "config.json").read_text())) - {"_class_name", *SMALL}, ...)
    changed_json(folder / "config.json", **{**defaults, **blocks("-a", "a-")})
    assert info_of(folder) == before
    assert UNet2DModel.from_pretrained(folder).config.attention_head_dim == 8


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_old_names_of_attention(name, folder):
    values = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {re.sub("|".join(map(re.escape, old)), lambda m: old[m[0]], key): v for key, v in values.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in renamed and len(renamed) == len(values)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    save = torch.save if name.endswith(".bin") else safetensors.torch.save_file
    save(renamed, folder / name)
    for path in (folder, folder / name):  # the second as a bare file
        loaded = read_file(path)[0]
        assert set(loaded) == set(values)
        for key, value in values.items():
            np.testing.assert_array_equal(loaded[key], value.numpy(), err_msg=key)
    for package in (jax_ddpm, torch_ref):
        package.load_model(folder)
    save({**renamed, "mid_block.attentions.0.to_q.bias": torch.zeros(16)}, folder / name)
    with pytest.raises(ValueError, match=r"mid_block\.attentions\.0\.to_q\.bias twice"):
        read_model(folder)


SCHEDULERS = {
    "paper": ({"variance_type": "fixed_large"}, {"variance": "beta"}),
    "package": ({}, {"variance": "posterior"}),
    "short, not clipped": (
        {"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.3, "clip_sample": False},
        {"timesteps": 50, "beta_start": 1e-3, "beta_end": 0.3, "clip": "none", "variance": "posterior"},
    ),
    "cosine, x0": (
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "variance_type": "fixed_small_log"},
        {"schedule": "cosine", "objective": "x0", "variance": "posterior"},
    ),
    "learned variance": ({"variance_type": "learned_range"}, {"variance": "learned_range"}),
    "v": ({"prediction_type": "v_prediction"}, {"objective": "v", "variance": "posterior"}),
    "scaled linear": (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample_range": 2.5},
        {
            "schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "variance": "posterior",
            "clip_range": 2.5,
        },
    ),
    "sigmoid": (
        {"beta_schedule": "sigmoid", "variance_type": "fixed_large_log"},
        {"schedule": "sigmoid_betas", "variance": "beta"},
    ),
    "a table": (
        {"trained_betas": [0.01, 0.3, 0.2], "num_train_timesteps": 3},
        {"schedule": "trained", "trained_betas": (0.01, 0.3, 0.2), "timesteps": 3, "variance": "posterior"},
    ),
    "zero terminal SNR": (
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"zero_terminal_snr": True, "objective": "v", "variance": "posterior"},
    ),
    "thresholding": (
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0},
        {"clip": "dynamic", "clip_percentile": 0.9, "clip_max": 3.0, "variance": "posterior"},
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("flat", [True, False])
def test_pipelines(name, flat, folders, tmp_path):
    theirs, ours = SCHEDULERS[name]
    scheduler = DDPMScheduler(**theirs)
    DDPMPipeline(UNet2DModel.from_pretrained(folders["the package's choices"]), scheduler).save_pretrained(tmp_path)
    if flat:
        for file in (*(tmp_path / "unet").iterdir(), *(tmp_path / "scheduler").iterdir()):
            file.rename(tmp_path / file.name)
        (tmp_path / "unet").rmdir(), (tmp_path / "scheduler").rmdir()
    info = info_of(tmp_path)
    assert info["network"] == asdict(PACKAGES_CHOICES)
    assert info["diffusion"] == asdict(DiffusionConfig(**ours))
    tables = schedule_tables(DiffusionConfig(**info["diffusion"]))
    budget = budgets.DIFFUSERS_RESCALED_BETAS if "zero_terminal_snr" in ours else budgets.DIFFUSERS_BETAS
    np.testing.assert_allclose(scheduler.betas.numpy(), tables.betas, rtol=0, atol=budget)
    with pytest.raises(ValueError, match="timesteps = 7 was given"):
        info_of(tmp_path, timesteps=7)
    if not flat:
        assert info_of(tmp_path / "unet", timesteps=7)["network"] == asdict(PACKAGES_CHOICES)


def test_every_scheduler_is_read(folder, capsys):
    """Each class with its defaults, and with other training settings."""
    for name, nearest in diffusers_scheduler.SCHEDULERS.items():
        for settings in ({}, {"beta_schedule": "scaled_linear", "beta_end": 0.3, "num_train_timesteps": 40}):
            try:
                scheduler = getattr(diffusers, name)(**settings)
            except ImportError:  # DPMSolverSDEScheduler without torchsde
                continue
            scheduler.save_pretrained(folder)
            info = read_model(folder)[1]
            tables = schedule_tables(info.diffusion)
            np.testing.assert_allclose(scheduler.betas.numpy(), tables.betas, rtol=0, atol=budgets.DIFFUSERS_BETAS)
            assert info.diffusion.objective == "eps" and info.diffusion.variance == "posterior"
            assert info.diffusion.clip == ("x0" if scheduler.config.get("clip_sample", True) else "none")
            said = capsys.readouterr().out
            assert (f"--sampler {nearest}" in said) == (name not in ("DDPMScheduler", "DDPMParallelScheduler"))
            given = {key: ... for key in scheduler.config if key.startswith("beta_")}
            if not settings:
                changed_json(folder / "scheduler_config.json", **given)  # as an old file, with the class's defaults
                assert read_model(folder)[1] == info


REFUSED = {
    "another model": ({"_class_name": "UNet2DConditionModel"}, "_class_name = 'UNet2DConditionModel'"),
    "no class": ({"_class_name": ...}, "_class_name = None"),
    "another block": (
        {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
        "down_block_types = .'SkipDownBlock2D'",
    ),
    "up for down": ({"up_block_types": ["DownBlock2D", "UpBlock2D"]}, "up_block_types"),
    "blocks no list": ({"up_block_types": 3}, "up_block_types = 3"),
    "one block too many": ({"up_block_types": ["UpBlock2D"] * 3}, "up_attention.*expected 2 values"),
    "class embedding": ({"class_embed_type": "projection"}, "class_embed_type = 'projection'.*timestep or identity"),
    "number of classes": ({"num_class_embeds": 10}, "num_class_embeds = None .config.json: 10"),
    "another activation": ({"act_fn": "tanh"}, "act_fn = 'tanh' .expected silu or swish or gelu or mish or relu"),
    "spatial norm": ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift.*'default' or 'scale_shift'"),
    "another middle": ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type = 'UNetMidBlock2DCrossAttn'"),
    "scaled middle": ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4"),
    "groups of the middle": ({"attn_norm_num_groups": 3}, "attn_norm_num_groups = 3.*divisor of the last width, 16"),
    "Fourier features": ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
    "no time width": ({"time_embedding_dim": -8}, "time_embedding_dim = -8: expected at least 1"),
    "other resampling": ({"downsample_type": "fir", "upsample_type": "fir"}, "downsample_type = 'fir'.*upsample_type"),
    "heads that do not divide": ({"attention_head_dim": 3}, "attention_head_dim = 3"),
    "output channels": ({"out_channels": 4}, "out_channels = 4 .expected 3 or 6"),
    "unknown field": ({"later_invention": True}, "later_invention = True"),
    "mistyped": ({"norm_eps": "1e-5"}, "norm_eps"),
    "no widths": ({"block_out_channels": []}, "widths"),
    "odd width": ({"block_out_channels": [9, 16], "norm_num_groups": 1}, "widths.*even"),
    "negative padding": ({"downsample_padding": -1}, "downsample_padding = -1"),
    "frequency shift": ({"freq_shift": 4}, "freq_shift = 4"),
    "sample size": ({"sample_size": "8"}, "sample_size = '8'"),
    "sample size that cannot be halved": ({"sample_size": [8, 9]}, r"image_size = \(8, 9\)"),
    "no channels": ({"in_channels": 0}, "in_channels = 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_models(name, folder):
    change, named = REFUSED[name]
    changed_json(folder / "config.json", **change)
    with pytest.raises(UserError, match=f"(?s){named}") as error:
        read_model(folder)
    assert str(error.value).count("\n") <= 1


REFUSED_SCHEDULERS = {
    "another scheduler": ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name = 'ScoreSdeVeScheduler'"),
    "another schedule": ({"beta_schedule": "laplace"}, "beta_schedule = 'laplace' .expected linear or scaled_linear"),
    "another number of betas": ({"trained_betas": [0.1, 0.2]}, "number of trained_betas = 2: expected T = 1000"),
    "betas that are none": ({"trained_betas": [0.1, 2], "num_train_timesteps": 2}, "trained_betas = 0.1 to 2"),
    "learned variance": ({"variance_type": "learned"}, "variance_type = 'learned'"),
    "flow": ({"use_flow_sigmas": True}, "use_flow_sigmas = True"),
    "flow's prediction": ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
    "continuous time": ({"timestep_type": "continuous"}, "timestep_type = 'continuous' .expected discrete"),
    "unknown field": ({"later_invention": 3}, "later_invention = 3"),
    "clip range": ({"clip_sample_range": -1.0}, "clip_range = -1.0: expected more than 0"),
    "mistyped": ({"num_train_timesteps": "many"}, "timesteps"),
}


@pytest.mark.parametrize("name", REFUSED_SCHEDULERS)
def test_refused_schedulers(name, folder):
    change, named = REFUSED_SCHEDULERS[name]
    DDPMScheduler().save_pretrained(folder)
    changed_json(folder / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=f"(scheduler_config.*)?{named}"):
        read_model(folder)


@PACKAGES
def test_broken_folders(package, folder):
    def refused(match):
        with pytest.raises(UserError, match=match):
            package.load_model(folder)

    (folder / "model_index.json").write_text('{"_class_name": "LDMPipeline", "vqvae": [], "unet": [], "scheduler": []}')
    refused(r"a pipeline of vqvae, unet, scheduler \(LDMPipeline\)")
    (folder / "model_index.json").unlink()
    (folder / "config.json").write_text("[1]")
    refused("config.json is not a JSON object")
    (folder / "config.json").write_text("{")
    refused("config.json cannot be read as JSON")
    (folder / "config.json").unlink()
    refused("config.json cannot be read as JSON")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    refused("has no model.safetensors")
    (folder / "model_index.json").write_text("{}")
    refused("has no weights: expected diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin")


def test_training_starts_from_a_folder(folders):
    path = folders["the package's choices"]
    config = DDPMConfig(**{**PACKAGES_CHOICES.arguments, "dropout": 0.4})
    assert set(initial_weights(path, config)) == set(package_model("the package's choices").state_dict())
    other = DDPMConfig(**{**config.arguments, "flip_sin_to_cos": False, "attention_head_dim": 4})
    with pytest.raises(UserError, match=r"attention_head_dim = 8 \(expected 4\), flip_sin_to_cos = True"):
        initial_weights(path, other)


# Folders that the package reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["the paper's choices", "learned variance, not square"])
def test_folders_that_are_written_are_the_packages(name, folders, tmp_path):
    model = jax_ddpm.load_model(folders[name], timesteps=30, beta_end=0.3, variance="posterior", objective="v")
    values = weights.state_dict(model.network)
    check_output(tmp_path / "made" / "here", diffusers=True)
    save_model(tmp_path / "made" / "here", values, model.info, diffusers=True)
    again, loading = UNet2DModel.from_pretrained(tmp_path / "made" / "here", output_loading_info=True)
    assert not any(loading.values())
    same = {key: v for key, v in package_model(name).config.items() if not key.startswith("_")}
    assert {key: v for key, v in again.config.items() if not key.startswith("_")} == json.loads(json.dumps(same))
    for key, value in package_model(name).state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], value, err_msg=key)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "made" / "here")
    settings = pipeline.scheduler.config
    assert (settings.num_train_timesteps, settings.beta_end, settings.beta_schedule) == (30, 0.3, "linear")
    assert (settings.prediction_type, settings.variance_type, settings.clip_sample) == (
        *("v_prediction", "fixed_small", True),
    )
    np.testing.assert_array_equal(pipeline.unet.conv_in.weight.detach(), values["conv_in.weight"])
    assert jax_ddpm.load_model(tmp_path / "made" / "here").info == model.info
    assert asdict(torch_ref.load_model(tmp_path / "made" / "here").info) == asdict(model.info)


def test_every_network_is_written_and_read_again(folders, tmp_path):
    for name, folder in folders.items():
        network, channels, size, _ = diffusers_network.read_network(folder / "config.json")
        info = ModelInfo(network=network, image_shape=(*size, channels), diffusion=DiffusionConfig())
        written = diffusers_network.write_network(info)
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert diffusers_network.read_network(tmp_path / "config.json") == (network, channels, size, None), name
        with torch.device("meta"):
            shapes = {key: v.shape for key, v in UNet2DModel.from_config(written).state_dict().items()}
        assert shapes == {key: v.shape for key, v in package_model(name).state_dict().items()}, name
    mixed = DDPMConfig(resnet_downsample=(False, True, False, False), down_attention=(True, True, False, False))
    info = ModelInfo(network=mixed, image_shape=(32, 32, 3), diffusion=DiffusionConfig())
    with pytest.raises(UserError, match="one downsample_type counts for all levels with attention"):
        diffusers_network.write_network(info)


WRITTEN_SCHEDULERS = [
    DiffusionConfig(schedule="scaled_linear", beta_end=0.012, zero_terminal_snr=True, objective="v", clip_range=2.5),
    DiffusionConfig(schedule="sigmoid_betas", variance="posterior", clip="none"),
    DiffusionConfig(schedule="trained", timesteps=3, trained_betas=(0.125, 0.25, 0.5), objective="x0"),
    DiffusionConfig(schedule="cosine", clip="dynamic", clip_percentile=0.9, clip_max=1.5),
    DiffusionConfig(clip="dynamic"),  # no largest threshold
]


@pytest.mark.parametrize("diffusion", WRITTEN_SCHEDULERS)
def test_every_schedule_is_written_and_read_again(diffusion, tmp_path):
    scheduler = DDPMScheduler.from_config(diffusers_scheduler.write_diffusion(diffusion))
    scheduler.save_pretrained(tmp_path)
    assert diffusers_scheduler.read_diffusion(tmp_path / "scheduler_config.json") == (diffusion, [])
    rescaled = diffusion.zero_terminal_snr
    budget = budgets.DIFFUSERS_RESCALED_BETAS if rescaled else budgets.DIFFUSERS_BETAS
    np.testing.assert_allclose(scheduler.betas, schedule_tables(diffusion).betas, rtol=0, atol=budget)
    x = torch.linspace(-3, 3, 12).reshape(1, 3, 2, 2)  # the scheduler runs with what was written
    assert torch.isfinite(scheduler.step(x, 1, x).prev_sample).all()


def test_sigmoid_of_jabri_is_not_the_packages():
    with pytest.raises(UserError, match="beta_schedule of diffusers cannot express sigmoid: expected linear, scaled"):
        diffusers_scheduler.write_diffusion(DiffusionConfig(schedule="sigmoid"))


def convert(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "convert.py"), run_name="__main__")


def test_convert_command(folders, tmp_path, monkeypatch, capsys):
    convert(
        monkeypatch,
        folders["three layers, attention on the way down"],
        tmp_path / "model.safetensors",
        "--timesteps",
        "40",
    )
    convert(monkeypatch, tmp_path / "model.safetensors", tmp_path / "made", "--format", "diffusers")
    assert DDPMPipeline.from_pretrained(tmp_path / "made").scheduler.config.num_train_timesteps == 40
    x, t = channels_first(np.ones((1, 8, 8, 3), np.float32)), torch.tensor([5])
    with torch.no_grad():
        again, first = (
            UNet2DModel.from_pretrained(f)(x, t).sample
            for f in (tmp_path / "made", folders["three layers, attention on the way down"])
        )
    np.testing.assert_array_equal(again, first)

    def refused(match, *arguments):
        with pytest.raises(SystemExit) as end:
            convert(monkeypatch, *arguments, "--format", "diffusers")
        assert end.value.code == 2
        assert re.search(match, capsys.readouterr().err)

    refused("is not empty", tmp_path / "model.safetensors", tmp_path / "made")
    refused(
        "clip_sample of diffusers cannot express state: expected x0, dynamic, none",
        tmp_path / "model.safetensors",
        tmp_path / "b",
        "--clip",
        "state",
    )
    other = unets.build(ConvBlockConfig(widths=(32,), time_width=8))
    weights.initialise(other, 1)
    write_model(
        tmp_path / "other.safetensors",
        weights.state_dict(other),
        ModelInfo(
            network=ConvBlockConfig(widths=(32,), time_width=8), image_shape=(8, 8, 1), diffusion=DiffusionConfig()
        ),
    )
    refused(
        "Only ddpm can be written as a diffusers folder, not conv_block", tmp_path / "other.safetensors", tmp_path / "c"
    )
