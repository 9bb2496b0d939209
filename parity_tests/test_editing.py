"""Editing in both frameworks: the same pictures from the same images and seeds; and faults in it are caught."""

from functools import cache
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

import jax_ddpm
import torch_ref
import torch_ref.rng
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from parity_tests.budgets import EDITING
from parity_tests.twins import DTYPES, TORCH, networks
from torch_ref.sampling import editing, inpainting

SIZE, T = 8, 40
g = np.random.default_rng(7)
IMAGES, MASK = g.uniform(-1, 1, (3, SIZE, SIZE, 3)), g.integers(0, 2, (SIZE, SIZE))
DDIM = ("ddim", 9)
CASES = {  # function, arguments, sampler, settings
    "inversion": ("invert", (IMAGES,), DDIM, {}),
    "reconstruction": ("reconstruct", (IMAGES,), DDIM, {}),
    "interpolation": ("interpolate", (3, 7, 4), DDIM, {"image_shape": (SIZE, SIZE, 3)}),
    "img2img": ("img2img", (IMAGES, 30, 5), ("ddpm", 20), {}),
    "img2img by DPM-Solver++": ("img2img", (IMAGES, 25), ("dpmpp", 10), {"seeds": (3, 1, 3)}),
    "inpainting": ("inpaint", (IMAGES, MASK, 5), ("ddpm", 9), {"resamplings": 3, "jump": 2}),
}


def edited(package, network, case, dtype):
    """The arrays of a case from one of the packages."""
    name, arguments, sampler, settings = CASES[case]
    config = DiffusionConfig(timesteps=T, beta_end=0.2)
    arguments = [a.astype(dtype) if a is IMAGES else a for a in arguments]
    kind = {"dtype": TORCH[dtype]} if package is torch_ref else {"dtype": dtype}
    settings = {"sampler": SamplerConfig(*sampler), "config": config, **settings, **kind}
    return getattr(package, name)(network, *arguments, **settings)


pair = cache(lambda dtype: networks(dtype, widths=(32,)))


@cache
def edited_by_jax(case, dtype):
    with jax.enable_x64(dtype == np.float64):
        return edited(jax_ddpm, pair(dtype)[1], case, dtype)


def apart(case, dtype) -> float:
    """The largest difference, in units of the largest magnitude, at least 1."""
    theirs, ours = edited_by_jax(case, dtype), edited(torch_ref, pair(dtype)[0], case, dtype)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == dtype
    return float(np.abs(ours - theirs).max() / max(1, np.abs(theirs).max()))


@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_both_frameworks_edit_alike(case, dtype):
    assert apart(case, dtype) <= EDITING[dtype]


def swap(target, name, make):
    return lambda: mock.patch.object(target, name, make(getattr(target, name)))


def straight(slerp):
    return lambda a, b, weights: np.tensordot(np.stack([1 - weights, weights], 1).astype(a.dtype), np.stack([a, b]), 1)


def mask_inverted(torch):
    return SimpleNamespace(**{**vars(torch), "where": lambda mask, a, b: torch.where(~mask, a, b)})


def visits_not_counted(schedule):
    def faulty(*arguments):
        timesteps, visits = schedule(*arguments)
        return timesteps, 0 * visits

    return faulty


def jumps_from_the_timestep_above(_):
    def faulty(tables, timesteps):
        following = np.append(timesteps[1:], -1)
        return np.where(following > timesteps, tables.alpha_bars[following] / tables.alpha_bars[timesteps], 1.0)

    return faulty


FAULTS = {
    "eps taken at the upper t": (
        swap(editing, "next_timesteps", lambda _: lambda chain, timesteps: np.arange(timesteps)),
        "inversion",
    ),
    "eps taken at t - 1": (
        swap(editing, "next_timesteps", lambda _: lambda chain, timesteps: np.arange(timesteps) - 1),
        "inversion",
    ),
    "clipped on the way down": (
        swap(editing, "replace", lambda replace: lambda config, clip: config),
        "reconstruction",
    ),
    "a straight line between seeds": (swap(editing, "slerp", straight), "interpolation"),
    "forward noise at the first timestep": (
        swap(editing, "noise_at", lambda noise_at: lambda keys, number, *a: noise_at(keys, 29, *a)),
        "img2img",
    ),
    "noised to start_t, sampled from below": (
        swap(editing, "sampling_timesteps", lambda _: lambda config, sampler, start_t: np.array([start_t])),
        "img2img",
    ),
    "mask inverted": (swap(inpainting, "torch", mask_inverted), "inpainting"),
    "known pixels with the step's noise": (
        swap(torch_ref.rng, "KNOWN", lambda _: torch_ref.rng.SAMPLING),
        "inpainting",
    ),
    "a jump with the known pixels' noise": (swap(torch_ref.rng, "JUMP", lambda _: torch_ref.rng.KNOWN), "inpainting"),
    "visits not counted": (swap(inpainting, "repaint_schedule", visits_not_counted), "inpainting"),
    "a jump from a step too high": (swap(inpainting, "jump_alpha_ratios", jumps_from_the_timestep_above), "inpainting"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault):
    patch, case = FAULTS[fault]
    with patch():
        assert apart(case, np.float32) > EDITING[np.float32]
