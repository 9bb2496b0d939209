"""Denoising diffusion probabilistic models (DDPM) in JAX/Flax, proven step by step against a PyTorch twin.

Public names are imported on first use: `import jax_ddpm` itself imports neither JAX, torch nor TensorFlow.
"""

import importlib

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
__all__ = sorted(PUBLIC)


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
