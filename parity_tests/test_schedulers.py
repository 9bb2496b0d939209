"""Both implementations against the schedulers of the diffusers package, state by state, with the same noise.

A formula stands for the network. Where the package errs, the reference is the paper's algebra in float64:
- its DDPM adds noise in the last step if that starts above t = 0 (trailing), although no step follows;
- its DDIM takes t - T // N for the next timestep, which is another than the next one (linspace, and any N that does not
  divide T), and by default pairs a clipped x_0 with the unclipped eps: asked for here is the eps of the clipped x_0;
- its trailing spacing accumulates T / N in floating point: for N = 61 it returns 62 timesteps, the last one -1;
- its linspace with N = 1 is t = 0, where x_T never was;
- its dynamic thresholding clamps s to sample_max_value, 1 by default, which makes it plain clipping;
- its solvers take 2^-24 for an alpha_bar of 0;
- its DDPM takes the square root of a negative number for fixed_large_log;
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
from jax_ddpm.schedules import make_betas, make_tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.spacing import spaced_timesteps
from parity_tests.budgets import RESCALED_BETAS, SCHEDULERS, SOLVERS
from parity_tests.measures import channels_first, channels_last

STEPS, SHAPE = 10, (2, 4, 4, 3)
ALPHA_BARS = make_tables(dtype=np.float64).alpha_bars
TO_NOISE = {"schedule": "scaled_linear", "zero_terminal_snr": True}
ENDING_IN_NOISE = make_tables(**TO_NOISE, dtype=np.float64).alpha_bars
NOISE = np.random.default_rng(5).standard_normal((1001, *SHAPE))  # of the step from t; x_T at 1000
OBJECTIVES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"posterior": "fixed_small", "beta": "fixed_large", "learned_range": "learned_range"}
FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])


def network(xp, objective: str, axis: int | None = None, alpha_bars: np.ndarray = ALPHA_BARS):
    """predict(x, t) whose x_0 is 1.1 tanh(1.5 x) + 0.2 cos(t / 100), beyond [-1, 1] here and there.

    With an axis: and after it, along this axis, the share of a learned variance, sin(x).
    """

    def predict(x, t):
        bars = xp.asarray(alpha_bars)[t].reshape(-1, 1, 1, 1)
        x_0 = 1.1 * xp.tanh(1.5 * x) + 0.2 * xp.cos(xp.asarray(t, dtype=xp.float64) / 100).reshape(-1, 1, 1, 1)
        eps = (x - bars**0.5 * x_0) / (1 - bars) ** 0.5
        said = {"eps": eps, "x0": x_0, "v": bars**0.5 * eps - (1 - bars) ** 0.5 * x_0}[objective]
        return said if axis is None else xp.concatenate([said, xp.sin(x)], axis)

    return predict


def states(
    framework: str, config: dict, settings: dict, x_T: np.ndarray = NOISE[1000], start_t: int | None = None
) -> np.ndarray:
    """(N + 1, B, H, W, C): our states from x_T (at start_t, if given) to x_0, float64."""
    config, settings = DiffusionConfig(**config), SamplerConfig(**settings)
    learned, bars = config.variance == "learned_range", schedule_tables(config, np.float64).alpha_bars
    if framework == "jax":
        with jax.enable_x64(True), jax.disable_jit():  # step by step: to compile each scan takes a second
            predict, noise = network(jnp, config.objective, -1 if learned else None, bars), jnp.asarray(NOISE)
            x_T = jnp.asarray(x_T)
            return np.asarray(walk(jax_ddpm.sampling, config, settings, predict, x_T, lambda t: noise[t], start_t))
    predict = network(torch, config.objective, 1 if learned else None, bars)
    noise = torch.from_numpy(np.moveaxis(NOISE, -1, 2).copy())
    x_T = channels_first(x_T)
    found = walk(torch_ref.sampling, config, settings, predict, x_T, lambda t: noise[t], start_t)
    return np.moveaxis(found.numpy(), 2, -1)


def walk(package, config, settings, predict, x_T, draw_noise, start_t):
    whole = package.reverse.sampling_timesteps(config, settings)
    chain = package.reverse.sampling_timesteps(config, settings, start_t)
    tables = package.reverse.schedule_tables(config, np.float64, whole)
    step = package.reverse.make_step(tables, config, settings, whole, predict)
    history = package.steps.first_history(x_T) if settings.sampler == "dpmpp" else None
    return package.reverse.reverse_process(
        step, predict, x_T, chain, draw_noise, num_frames=len(chain) + 1, history=history
    )[1]


def scheduler_states(
    scheduler, objective: str, learned: bool = False, alpha_bars: np.ndarray = ALPHA_BARS, **arguments
) -> np.ndarray:
    """The package's states, in x_t's own scale, each noise injected."""
    predict = network(torch, objective, 1 if learned else None, alpha_bars)
    x, found = channels_first(NOISE[1000]), [NOISE[1000]]
    scaled = hasattr(scheduler, "sigmas") and not isinstance(scheduler, diffusers.DPMSolverMultistepScheduler)
    timesteps = scheduler.timesteps
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bars)
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


# Limits ---------------------------------------------------------------------------------------------------------------


@FRAMEWORKS
@pytest.mark.parametrize("limit", [{"clip_range": 0.7}, {"clip_percentile": 0.9, "clip_max": 1.05}, {"clip_max": 1.0}])
def test_limits_of_x_0(framework, limit):
    """clip_sample_range, and dynamic thresholding with a sample_max_value; 1.0 is plain clipping."""
    dynamic = "clip_max" in limit
    scheduler = diffusers.DDIMScheduler(
        timestep_spacing="trailing",
        clip_sample_range=limit.get("clip_range", 1.0),
        thresholding=dynamic,
        dynamic_thresholding_ratio=limit.get("clip_percentile", 0.995),
        sample_max_value=limit.get("clip_max", 1.0),
    )
    scheduler.set_timesteps(STEPS)
    settings = {"sampler": "ddim", "num_steps": STEPS}
    ours = states(framework, {"clip": "dynamic" if dynamic else "x0", **limit}, settings)
    assert_same_states(ours, scheduler_states(scheduler, "eps", use_clipped_model_output=True), SCHEDULERS)
    if limit == {"clip_max": 1.0}:
        assert_same_states(ours, states(framework, {}, settings), 0)


# From pure noise ------------------------------------------------------------------------------------------------------


def test_zero_terminal_snr_is_the_packages():
    for schedule in ("linear", "scaled_linear", "cosine"):
        betas = torch.from_numpy(make_betas(schedule, 1000))
        wanted = diffusers.schedulers.scheduling_ddpm.rescale_zero_terminal_snr(betas).numpy()
        found = make_betas(schedule, 1000, zero_terminal_snr=True)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=RESCALED_BETAS)
        assert make_tables(schedule, zero_terminal_snr=True).alpha_bars[-1] == 0
        np.testing.assert_allclose(found[0], make_betas(schedule, 1000)[0], rtol=1e-9)


@FRAMEWORKS
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("objective", "clip"), [("v", "none"), ("x0", "x0"), ("v", "dynamic")])
def test_ddpm_from_pure_noise(framework, variance, objective, clip):
    config = {**TO_NOISE, "objective": objective, "variance": variance, "clip": clip, "clip_percentile": 0.9}
    scheduler = diffusers.DDPMScheduler(
        variance_type=VARIANCES[variance],
        prediction_type=OBJECTIVES[objective],
        timestep_spacing="trailing",
        dynamic_thresholding_ratio=0.9,
        **clipping(clip),
    )
    scheduler.set_timesteps(STEPS)
    ours = states(framework, config, {"num_steps": STEPS})
    theirs = scheduler_states(scheduler, objective, variance == "learned_range", ENDING_IN_NOISE)
    assert_same_states(ours[:-1], theirs[:-1], SCHEDULERS)


@FRAMEWORKS
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("objective", "clip"), [("v", "x0"), ("x0", "none")])
def test_ddim_from_pure_noise(framework, eta, objective, clip):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=OBJECTIVES[objective], timestep_spacing="trailing", **clipping(clip)
    )
    scheduler.set_timesteps(STEPS)
    config = {**TO_NOISE, "objective": objective, "clip": clip}
    ours = states(framework, config, {"sampler": "ddim", "num_steps": STEPS, "eta": eta})
    theirs = scheduler_states(scheduler, objective, False, ENDING_IN_NOISE, eta=eta, use_clipped_model_output=True)
    assert_same_states(ours, theirs, SCHEDULERS)


@FRAMEWORKS
@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
@pytest.mark.parametrize("sampler", ["dpmpp", "heun", "euler"])
def test_solvers_from_pure_noise(framework, sampler, spacing):
    """Where sigma is infinite, the step is DDIM's; the others are those of the solver when it starts after it."""
    config, settings = {**TO_NOISE, "objective": "v", "clip": "none"}, {"num_steps": STEPS, "spacing": spacing}
    ours = states(framework, config, {**settings, "sampler": sampler})
    ddim = states(framework, config, {**settings, "sampler": "ddim"})
    assert_same_states(ours[1], ddim[1], SCHEDULERS)
    assert_same_states(ours[1:], states(framework, config, {**settings, "sampler": sampler}, ours[1], 998), SCHEDULERS)
    if sampler == "euler":
        assert_same_states(ours, ddim, SCHEDULERS)


@FRAMEWORKS
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "heun", "euler"])
def test_eps_cannot_start_from_pure_noise(framework, sampler):
    with pytest.raises(UserError, match=r"objective = eps: .*x_0 cannot be computed.*objective='v'"):
        states(framework, TO_NOISE, {"sampler": sampler, "num_steps": STEPS})
    found = states(framework, TO_NOISE, {"sampler": sampler, "num_steps": STEPS, "spacing": "leading"})
    assert np.isfinite(found).all()  # leading leaves the last timestep out
