"""Both implementations against the schedulers of the diffusers package, state by state, with the same noise.

A formula stands for the network. Where the package errs, the reference is the paper's algebra in float64:
- its DDPM adds noise in the last step if that starts above t = 0 (trailing), although no step follows;
- its DDIM takes t - T // N for the next timestep, which is another than the next one (linspace, and any N that does not
  divide T), and by default pairs a clipped x_0 with the unclipped eps: asked for here is the eps of the clipped x_0;
- its trailing spacing accumulates T / N in floating point: for N = 61 it returns 62 timesteps, the last one -1;
- its linspace with N = 1 is t = 0, where x_T never was;
- its dynamic thresholding clamps s to sample_max_value, 1 by default, which makes it plain clipping;
- its tables are float32: at t = 999, where x_0 is a difference divided by 0.006, one rounding moves x_0 by 1e-5. They
  are replaced by float64 here, so that algorithms are compared.
"""

from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_ddpm.sampling.reverse
import jax_ddpm.sampling.steps
import torch_ref.sampling.reverse
import torch_ref.sampling.steps
from jax_ddpm.schedules import make_betas, make_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.spacing import spaced_timesteps
from parity_tests.budgets import SCHEDULERS, SOLVERS
from parity_tests.measures import channels_first, channels_last

STEPS, SHAPE = 10, (2, 4, 4, 3)
ALPHA_BARS = make_tables(dtype=np.float64).alpha_bars
NOISE = np.random.default_rng(5).standard_normal((1001, *SHAPE))  # of the step from t; x_T at 1000
OBJECTIVES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"posterior": "fixed_small", "beta": "fixed_large", "learned_range": "learned_range"}
FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])


def network(xp, objective: str, axis: int | None = None):
    """predict(x, t) whose x_0 is 1.1 tanh(1.5 x) + 0.2 cos(t / 100), beyond [-1, 1] here and there.

    With an axis: and after it, along this axis, the share of a learned variance, sin(x).
    """

    def predict(x, t):
        bars = xp.asarray(ALPHA_BARS)[t].reshape(-1, 1, 1, 1)
        x_0 = 1.1 * xp.tanh(1.5 * x) + 0.2 * xp.cos(xp.asarray(t, dtype=xp.float64) / 100).reshape(-1, 1, 1, 1)
        eps = (x - bars**0.5 * x_0) / (1 - bars) ** 0.5
        said = {"eps": eps, "x0": x_0, "v": bars**0.5 * eps - (1 - bars) ** 0.5 * x_0}[objective]
        return said if axis is None else xp.concatenate([said, xp.sin(x)], axis)

    return predict


def states(framework: str, config: dict, settings: dict) -> np.ndarray:
    """(N + 1, B, H, W, C): our states from x_T to x_0, float64."""
    config, settings = DiffusionConfig(**config), SamplerConfig(**settings)
    learned = config.variance == "learned_range"
    if framework == "jax":
        with jax.enable_x64(True), jax.disable_jit():  # step by step: to compile each scan takes a second
            predict, noise = network(jnp, config.objective, -1 if learned else None), jnp.asarray(NOISE)
            return np.asarray(walk(jax_ddpm.sampling, config, settings, predict, noise, lambda t: noise[t]))
    predict = network(torch, config.objective, 1 if learned else None)
    noise = torch.from_numpy(np.moveaxis(NOISE, -1, 2).copy())
    return np.moveaxis(walk(torch_ref.sampling, config, settings, predict, noise, lambda t: noise[t]).numpy(), 2, -1)


def walk(package, config, settings, predict, noise, draw_noise):
    chain = package.reverse.sampling_timesteps(config, settings)
    tables = package.reverse.schedule_tables(config, np.float64, chain)
    step = package.reverse.make_step(tables, config, settings, chain, predict)
    history = package.steps.first_history(noise[1000]) if settings.sampler == "dpmpp" else None
    return package.reverse.reverse_process(
        step, predict, noise[1000], chain, draw_noise, num_frames=len(chain) + 1, history=history
    )[1]


def scheduler_states(scheduler, objective: str, learned: bool = False, **arguments) -> np.ndarray:
    """The package's states, in x_t's own scale, each noise injected."""
    predict = network(torch, objective, 1 if learned else None)
    x, found = channels_first(NOISE[1000]), [NOISE[1000]]
    scaled = hasattr(scheduler, "sigmas") and not isinstance(scheduler, diffusers.DPMSolverMultistepScheduler)
    timesteps = scheduler.timesteps
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BARS)
    if hasattr(scheduler, "sigmas"):
        known = torch.sqrt((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod)
        nearest = (known.log()[:, None] - scheduler.sigmas[:-1].log()).abs().argmin(0)
        scheduler.sigmas = torch.cat([known[nearest], torch.zeros(1)])
    if scaled:  # its variable is x_t / sqrt(alpha_bar)
        x = x / ALPHA_BARS[int(timesteps[0])] ** 0.5
    for number, t in enumerate(timesteps):
        seen = scheduler.scale_model_input(x, t) if scaled else x
        noise = channels_first(NOISE[int(t)])
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, noise=noise, **s: noise):
            if isinstance(scheduler, diffusers.DDIMScheduler):
                arguments["variance_noise"] = noise
            said = predict(seen, torch.full((len(x),), int(t)))
            x = scheduler.step(said, t, x, **arguments).prev_sample
        after = timesteps[number + 1 :]
        if isinstance(scheduler, diffusers.HeunDiscreteScheduler) and number % 2 == 0 and len(after):
            continue  # half a step
        found.append(channels_last(x) * (ALPHA_BARS[int(after[0])] ** 0.5 if scaled and len(after) else 1.0))
    return np.stack(found)


def assert_same_states(ours: np.ndarray, theirs: np.ndarray, budget: float):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=budget * max(1, np.abs(theirs).max()))


def clipping(clip: str) -> dict:
    return {"clip_sample": clip == "x0", "thresholding": clip == "dynamic", "sample_max_value": 1e9}


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_spacing(spacing):
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    for steps in (2, 3, 7, 10, 27, 31, 50, 300, 999, 1000):
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(spaced_timesteps(spacing, steps, ALPHA_BARS), scheduler.timesteps)


@FRAMEWORKS
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("objective", "clip"), [("eps", "x0"), ("v", "dynamic"), ("x0", "none")])
def test_ddpm(framework, spacing, variance, objective, clip):
    config = {"objective": objective, "variance": variance, "clip": clip, "clip_percentile": 0.9}
    scheduler = diffusers.DDPMScheduler(
        variance_type=VARIANCES[variance],
        prediction_type=OBJECTIVES[objective],
        timestep_spacing=spacing,
        dynamic_thresholding_ratio=0.9,
        **clipping(clip),
    )
    scheduler.set_timesteps(STEPS)
    ours = states(framework, config, {"num_steps": STEPS, "spacing": spacing})
    theirs = scheduler_states(scheduler, objective, variance == "learned_range")
    last = -1 if spacing == "trailing" else None
    assert_same_states(ours[:last], theirs[:last], SCHEDULERS)
    if clip == "x0":
        t = int(scheduler.timesteps[-1])
        x_0 = network(np, "x0")(ours[-2], np.full(2, t))
        np.testing.assert_allclose(ours[-1], np.clip(x_0, -1, 1), rtol=0, atol=1e-9)  # eq. 7 with alpha_bar_prev = 1


@FRAMEWORKS
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("objective", "clip"), [("eps", "x0"), ("v", "dynamic"), ("x0", "none")])
def test_ddim(framework, spacing, eta, objective, clip):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=OBJECTIVES[objective],
        timestep_spacing=spacing,
        dynamic_thresholding_ratio=0.9,
        **clipping(clip),
    )
    scheduler.set_timesteps(STEPS)
    config = {"objective": objective, "clip": clip, "clip_percentile": 0.9}
    ours = states(framework, config, {"sampler": "ddim", "num_steps": STEPS, "spacing": spacing, "eta": eta})
    assert_same_states(ours, scheduler_states(scheduler, objective, eta=eta, use_clipped_model_output=True), SCHEDULERS)


@FRAMEWORKS
@pytest.mark.parametrize("spacing", ["linspace", "logsnr"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_its_equation_12(framework, spacing, eta):
    ours = states(framework, {}, {"sampler": "ddim", "num_steps": STEPS, "spacing": spacing, "eta": eta})
    chain, predict = spaced_timesteps(spacing, STEPS, ALPHA_BARS), network(np, "eps")
    x, bars = NOISE[1000], np.cumprod(1 - make_betas("linear", 1000))
    for number, t in enumerate(chain):
        bar, bar_prev = bars[t], bars[chain[number + 1]] if number + 1 < STEPS else 1.0
        x_0 = (x - np.sqrt(1 - bar) * predict(x, np.full(2, t))) / np.sqrt(bar)
        x_0 = np.clip(x_0, -1, 1)
        eps = (x - np.sqrt(bar) * x_0) / np.sqrt(1 - bar)
        sigma = eta * np.sqrt((1 - bar_prev) / (1 - bar)) * np.sqrt(1 - bar / bar_prev)
        x = np.sqrt(bar_prev) * x_0 + np.sqrt(1 - bar_prev - sigma**2) * eps + sigma * NOISE[t]
        np.testing.assert_allclose(ours[number + 1], x, rtol=0, atol=1e-9)


@FRAMEWORKS
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize(("objective", "clip"), [("eps", "none"), ("v", "dynamic"), ("x0", "none")])
def test_dpmpp(framework, steps, objective, clip):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=OBJECTIVES[objective],
        thresholding=clip == "dynamic",
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1e9,
    )
    settings = {"sampler": "dpmpp", "num_steps": steps, "spacing": "logsnr"}
    chain = spaced_timesteps("logsnr", steps, ALPHA_BARS)
    scheduler.set_timesteps(timesteps=chain.tolist())
    ours = states(framework, {"objective": objective, "clip": clip, "clip_percentile": 0.9}, settings)
    assert_same_states(ours, scheduler_states(scheduler, objective), SOLVERS)


@FRAMEWORKS
@pytest.mark.parametrize("sampler", ["heun", "euler"])
@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
def test_edm(framework, sampler, objective, spacing):
    make = {"heun": diffusers.HeunDiscreteScheduler, "euler": diffusers.EulerDiscreteScheduler}[sampler]
    scheduler = make(beta_start=1e-4, beta_end=0.02, prediction_type=OBJECTIVES[objective])
    chain = spaced_timesteps(spacing, STEPS, ALPHA_BARS)
    scheduler.set_timesteps(timesteps=chain.tolist())
    settings = {"sampler": sampler, "num_steps": STEPS, "spacing": spacing}
    ours = states(framework, {"objective": objective, "clip": "none"}, settings)
    assert_same_states(ours, scheduler_states(scheduler, objective), SOLVERS)
