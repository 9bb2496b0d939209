"""`--no-check`: what the commands do after loading a file that does not say how its network was trained."""

import time
from dataclasses import dataclass

import numpy as np
import tyro

from jax_ddpm.spec.labels import label_array
from jax_ddpm.spec.noise_check import SECONDS, Predict, can_be_checked, describe, measure, noise_images

TOO_SLOW = f"Check left out: one pass of this network takes longer than {SECONDS:g} seconds here."
SECONDS_PER_OPERATION = 0.02  # to compile a convolution or matrix product and what belongs to it; measured 0.015
FLOPS_PER_SECOND = 1e10  # of two CPU cores
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # on CPUs: a few passes do not repay a longer compilation


@dataclass(frozen=True)
class CheckFlags:
    """The check of a file that does not say how its network was trained."""

    no_check: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not check it. The check gives the network pure noise, which one that predicts the noise returns at the last
    timestep. That shows T and whether it predicts the noise, takes at most ten seconds, and changes no setting."""


def say_check(flags, path, model) -> None:
    """Check a model that was loaded from `path` by a command, and print a line, if its file told no settings.

    flags: of the command. model: of either framework.
    """
    from jax_ddpm.spec.model_files import tells_diffusion  # here, so that --help appears at once

    if flags.check.no_check or not can_be_checked(model.info) or tells_diffusion(path, flags.loading.weights):
        return
    start = time.perf_counter()
    predict = predict_with_jax(model) if hasattr(model, "network") else predict_with_torch(model)
    left = SECONDS - (time.perf_counter() - start)
    print(TOO_SLOW if predict is None else describe(measure(predict, model.info, left), model.info))


def predict_with_jax(model) -> Predict | None:
    """The network of JAX, compiled for the images of the check; None if compiling or calling it would take too long."""
    import jax
    from flax import nnx

    graph, state = nnx.split(model.network)
    x = noise_images(model.info)
    labels = label_array(model.info, None, len(x))

    def predict(state, x, t):
        network = nnx.merge(graph, state)
        return network(x, t) if labels is None else network(x, t, labels=labels)

    is_fraction = model.info.diffusion.t_input.startswith("fraction")
    lowered = jax.jit(predict).lower(state, x, np.zeros(len(x), np.float32 if is_fraction else np.int32))
    text = lowered.as_text()
    operations = sum(text.count(name) for name in ("stablehlo.convolution", "stablehlo.dot_general", "custom_call"))
    flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
    if operations * SECONDS_PER_OPERATION + flops / FLOPS_PER_SECOND > SECONDS:
        return None
    compiled = lowered.compile(FAST_COMPILE if jax.default_backend() == "cpu" else None)
    return lambda x, t: np.asarray(compiled(state, x, t))


def predict_with_torch(model) -> Predict | None:
    """The network of PyTorch; None if a pass with one image takes too long."""
    import torch

    from torch_ref.dtypes import float_time

    parameter = next(model.parameters())

    @torch.no_grad()
    def predict(x, t):
        labels = label_array(model.info, None, len(x))
        images = torch.from_numpy(x).permute(0, 3, 1, 2).to(parameter)
        times = torch.from_numpy(t).to(parameter.device)
        times = float_time(times.to(parameter.dtype)) if times.is_floating_point() else times
        more = {} if labels is None else {"labels": torch.from_numpy(labels).to(parameter.device)}
        return model(images, times, **more).permute(0, 2, 3, 1).cpu().numpy()

    start = time.perf_counter()
    predict(noise_images(model.info)[:1], np.zeros(1, np.int32))
    return None if time.perf_counter() - start > SECONDS else predict
