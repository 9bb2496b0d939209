"""Denoising diffusion probabilistic models in JAX/Flax, proven step by step against a PyTorch twin.

The names below are loaded when they are first used: `import jax_ddpm` itself loads neither JAX, torch nor TensorFlow.
"""

import importlib

from jax_ddpm.cpu.flags import set_cpu_flags

set_cpu_flags()

PUBLIC = {
    "ConvBlockConfig": "network_config",
    "DataConfig": "config",
    "DiffusionConfig": "config",
    "ModelInfo": "config",
    "OutputConfig": "config",
    "RunConfig": "config",
    "SamplerConfig": "config",
    "TrainingConfig": "config",
    "UserError": "errors",
    "make_tables": "schedules",
    "NetworkConfig": "network_config",
    "build": "unets",
    "register": "unets",
    "preset": "presets",
    "Model": "model_files",
    "load_model": "model_files",
    "sample": "samplers",
    "interpolate": "editing",
    "invert": "editing",
    "reconstruct": "editing",
    "img2img": "editing",
    "inpaint": "inpainting",
    "train": "training.loop",
}
__all__ = sorted(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'jax_ddpm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"jax_ddpm.{PUBLIC[name]}"), name)


def __dir__():
    return __all__
