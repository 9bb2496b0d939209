"""The DDPM of `jax_ddpm` in PyTorch. The same seed gives the same noise and the same picture.

Needs torch, numpy, safetensors and pydantic. Settings and file formats come from `jax_ddpm.spec`, which imports no
framework. The names below are loaded when they are first used.
"""

import importlib

PUBLIC = {
    "ConvBlockConfig": "jax_ddpm.spec.network_config",
    "DiffusionConfig": "jax_ddpm.spec.diffusion_config",
    "ModelInfo": "jax_ddpm.spec.model_info",
    "SamplerConfig": "jax_ddpm.spec.diffusion_config",
    "UserError": "jax_ddpm.spec.errors",
    "make_tables": "torch_ref.schedules",
    "NetworkConfig": "jax_ddpm.spec.network_config",
    "build": "torch_ref.unets",
    "register": "torch_ref.unets",
    "register_objective": "jax_ddpm.spec.registered",
    "register_sampler": "jax_ddpm.spec.registered",
    "register_schedule": "jax_ddpm.spec.registered",
    "load_model": "torch_ref.weights",
    "load_noisy_classifier": "torch_ref.noisy_classifier",
    "sample": "torch_ref.sampling.samplers",
    "interpolate": "torch_ref.sampling.editing",
    "invert": "torch_ref.sampling.editing",
    "reconstruct": "torch_ref.sampling.editing",
    "img2img": "torch_ref.sampling.editing",
    "inpaint": "torch_ref.sampling.inpainting",
    "export_step": "torch_ref.sampling.export",
}
__all__ = sorted(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'torch_ref' has no attribute '{name}'")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__():
    return __all__
