"""Is this installation right? A known network's model file in jax_ddpm and in torch_ref, on this device."""

from dataclasses import asdict

import jax
import numpy as np

from jax_ddpm.doctor.comparison import compare
from jax_ddpm.doctor.records import relative_error
from jax_ddpm.doctor.result import Result
from jax_ddpm.doctor.setup import SetupDifference
from jax_ddpm.weights import load_model

FLOAT32_BUDGET = 1e-4
"""Relative difference of the whole network in float32 on this device from PyTorch's float64."""


def compare_installation(path: str, diffusion=None) -> Result:
    """Compare jax_ddpm with torch_ref for a model file of a known network: in float64, and in float32 on this device.

    diffusion: an object whose fields are those of `DiffusionConfig`, for what the file does not say.

    Raises UserError for files that `load_model` does not take.
    """
    import torch

    import torch_ref
    from torch_ref.objectives.discrete import by_timestep

    given = {} if diffusion is None else asdict(diffusion)
    ours = load_model(path, log=lambda line: None, **given)
    theirs = torch_ref.load_model(path, log=lambda line: None, **given)
    height, width, channels = ours.info.image_shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels, height, width))
    t = rng.integers(0, ours.info.diffusion.timesteps, 2)
    result = compare(theirs, ours.network, (x, t), transfer_weights=False)
    on_device = np.asarray(ours(jax.numpy.asarray(x.transpose(0, 2, 3, 1), jax.numpy.float32), t))
    with torch.no_grad():
        predict = by_timestep(theirs.double(), theirs.info.diffusion)
        exact = predict(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    error = relative_error(on_device.transpose(0, 3, 1, 2), exact)
    device = jax.devices()[0].device_kind
    result.notes.append(
        f"In float32 on this device ({device}) the network differs from PyTorch's float64 by {error:.1e}; "
        f"up to {FLOAT32_BUDGET:.0e} is rounding."
    )
    if not error <= FLOAT32_BUDGET:
        sentence = f"In float32 on this device ({device}) jax_ddpm differs from PyTorch's float64 by {error:.1e}."
        result.setup.insert(0, SetupDifference("device", "float64", f"float32 on {device}", sentence, True))
    return result
