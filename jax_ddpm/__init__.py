"""Denoising diffusion probabilistic models (DDPM) in JAX/Flax, proven step by step against a PyTorch twin.

Public names are imported on first use: `import jax_ddpm` itself imports neither JAX, torch nor TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers and editors do not call __getattr__; a test compares the three lists
    from jax_ddpm.sampling.editing import img2img, interpolate, invert, reconstruct
    from jax_ddpm.sampling.export import export_sampler
    from jax_ddpm.sampling.inpainting import inpaint
    from jax_ddpm.sampling.samplers import sample
    from jax_ddpm.schedules import make_tables
    from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
    from jax_ddpm.spec.errors import UserError
    from jax_ddpm.spec.model_info import ModelInfo
    from jax_ddpm.spec.network_config import ConvBlockConfig, NetworkConfig
    from jax_ddpm.spec.presets import preset
    from jax_ddpm.spec.registered import register_objective, register_sampler, register_schedule
    from jax_ddpm.spec.run_config import DataConfig, OutputConfig, RunConfig, TrainingConfig
    from jax_ddpm.training.load_run import load_run
    from jax_ddpm.training.loop import train
    from jax_ddpm.unets import build, register
    from jax_ddpm.weights.model import Model, load_model
    from jax_ddpm.weights.noisy_classifier import load_noisy_classifier

    __version__: str

PUBLIC = {
    "ConvBlockConfig": "spec.network_config",
    "DataConfig": "spec.run_config",
    "DiffusionConfig": "spec.diffusion_config",
    "ModelInfo": "spec.model_info",
    "OutputConfig": "spec.run_config",
    "RunConfig": "spec.run_config",
    "SamplerConfig": "spec.diffusion_config",
    "TrainingConfig": "spec.run_config",
    "UserError": "spec.errors",
    "make_tables": "schedules",
    "NetworkConfig": "spec.network_config",
    "build": "unets",
    "register": "unets",
    "register_objective": "spec.registered",
    "register_sampler": "spec.registered",
    "register_schedule": "spec.registered",
    "preset": "spec.presets",
    "Model": "weights.model",
    "load_model": "weights.model",
    "load_noisy_classifier": "weights.noisy_classifier",
    "sample": "sampling.samplers",
    "interpolate": "sampling.editing",
    "invert": "sampling.editing",
    "reconstruct": "sampling.editing",
    "img2img": "sampling.editing",
    "inpaint": "sampling.inpainting",
    "load_run": "training.load_run",
    "train": "training.loop",
    "export_sampler": "sampling.export",
}
__all__ = [
    "ConvBlockConfig",
    "DataConfig",
    "DiffusionConfig",
    "Model",
    "ModelInfo",
    "NetworkConfig",
    "OutputConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainingConfig",
    "UserError",
    "build",
    "export_sampler",
    "img2img",
    "inpaint",
    "interpolate",
    "invert",
    "load_model",
    "load_noisy_classifier",
    "load_run",
    "make_tables",
    "preset",
    "reconstruct",
    "register",
    "register_objective",
    "register_sampler",
    "register_schedule",
    "sample",
    "train",
]


def __getattr__(name: str):
    if name == "__version__":
        from importlib import metadata  # here: it imports many modules

        try:
            return metadata.version("jax-ddpm")
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"
    if name not in PUBLIC:
        raise AttributeError(f"module 'jax_ddpm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"jax_ddpm.{PUBLIC[name]}"), name)


def __dir__():
    return __all__
