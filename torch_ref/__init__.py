"""The DDPM of `jax_ddpm` again, in PyTorch: the same seed draws the same noise, and ends in the same picture.

Needs torch, numpy and safetensors alone. The names below are loaded when they are first used.
"""

import importlib

PUBLIC = {
    "ConvBlockConfig": "network_config",
    "DiffusionConfig": "config",
    "ModelInfo": "config",
    "SamplerConfig": "config",
    "UserError": "errors",
    "make_tables": "schedules",
    "build": "unets",
    "load_model": "model_files",
    "sample": "samplers",
    "interpolate": "editing",
    "invert": "editing",
    "reconstruct": "editing",
    "img2img": "editing",
    "inpaint": "inpainting",
}
__all__ = sorted(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'torch_ref' has no attribute '{name}'")
    return getattr(importlib.import_module(f"torch_ref.{PUBLIC[name]}"), name)


def __dir__():
    return __all__
