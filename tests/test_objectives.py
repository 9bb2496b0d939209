"""edm, flow, kinds of loss and loss weights by algebra; their solvers on Gaussian data, whose denoiser is known."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
import torch
from flax import nnx

import jax_ddpm
import torch_ref
from jax_ddpm import diffusion, rng
from jax_ddpm.commands.train import parse_run
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling import samplers, solvers
from jax_ddpm.sampling.reverse import reverse_process, sampling_timesteps
from jax_ddpm.schedules import make_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.flat_settings import sampling_settings
from jax_ddpm.spec.network_config import ConvBlockConfig, LayerNormConfig

EDM, FLOW = DiffusionConfig(objective="edm", clip="none"), DiffusionConfig(objective="flow", clip="none")
MEAN = np.array([0.3, -0.2])
COVARIANCE = np.array([[0.25, 0.1], [0.1, 0.09]])  # of two neighbouring pixels
SHARES, CENTRES, STDS = np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.2, 0.3])  # of a mixture


def denoise_gaussian(x, signal, sigma):
    """E[x_0 | x], x = signal x_0 + sigma noise: (N, 2). Gaussian regression along the principal axes."""
    variances, axes = np.linalg.eigh(COVARIANCE)
    gain = signal * variances / (signal**2 * variances + sigma**2)
    return MEAN + ((x - signal * MEAN) @ axes * gain) @ axes.T


def denoise_mixture(x, signal, sigma):
    """The same for two independent pixels, each from the mixture of two normals."""
    x = x[..., None]
    spread = jnp.sqrt(signal**2 * STDS**2 + sigma**2)
    shares = jax.nn.softmax(jnp.log(SHARES / spread) - (x - signal * CENTRES) ** 2 / (2 * spread**2), axis=-1)
    means = CENTRES + signal * STDS**2 / spread**2 * (x - signal * CENTRES)
    return jnp.sum(shares * means, axis=-1)


def network(config, denoise):
    """(input, time) -> the exact prediction, by `denoise`, written from the papers."""

    def edm(scaled, time):
        sigma, data = jnp.exp(4 * time), 0.5
        x = scaled * jnp.sqrt(sigma**2 + data**2)
        D = denoise(x, 1.0, sigma)
        return (D - data**2 / (sigma**2 + data**2) * x) / (sigma * data / jnp.sqrt(sigma**2 + data**2))

    def flow(x, time):
        t = time / 1000
        return (x - denoise(x, 1 - t, t)) / t

    predict = edm if config is EDM else flow
    return lambda x, times: predict(x.reshape(-1, 2), times[0]).reshape(x.shape)


def states(config, sampler, x_T, denoise=denoise_gaussian):
    """States (steps + 1, N, 2) of the sampler from x_T (N, 2), float64."""
    with jax.enable_x64(True):
        step, predict = solvers.make_solver(make_objective(config, np.float64), sampler, network(config, denoise))
        chain = sampling_timesteps(config, sampler)
        frames = jax.jit(lambda x_T: reverse_process(step, predict, x_T, chain, lambda i: None, len(chain) + 1)[1])
        found = frames(jnp.asarray(x_T, jnp.float64).reshape(-1, 1, 2, 1))
    return np.asarray(found).reshape(len(chain) + 1, -1, 2)


def moments(config, sampler, step=-1):
    """Mean and covariance of a state, for x_T ~ N(0, sigma_max^2 I). Three points tell them: the solver is affine."""
    scale = config.initial_sigma
    found = states(config, sampler, scale * np.array([[0, 0], [1, 0], [0, 1]]))[step]
    matrix = (found[1:] - found[0]).T
    return found[0], matrix @ matrix.T


def exact_moments(config, level):
    """The same for the exact solution: along each principal axis, x keeps its distance in standard deviations."""
    variances, axes = np.linalg.eigh(COVARIANCE)
    top = config.sigma_max if config is EDM else 1.0

    def spread(level):
        signal, sigma = (1.0, level) if config is EDM else (1 - level, level)
        return signal * MEAN, np.sqrt(signal**2 * variances + sigma**2)

    (start, wide), (end, narrow) = spread(top), spread(level)
    ratio = axes @ np.diag(narrow / wide) @ axes.T
    return end - ratio @ start, config.initial_sigma**2 * ratio @ ratio.T


OBJECTIVES = pytest.mark.parametrize("config", [EDM, FLOW], ids=["edm", "flow"])


@pytest.mark.parametrize(
    ("config", "sampler", "order"),
    [
        (EDM, "heun", 2),
        (FLOW, "midpoint", 3),
        *(pytest.param(EDM, *case, marks=pytest.mark.slow) for case in (("euler", 1), ("midpoint", 3))),
        *(pytest.param(FLOW, *case, marks=pytest.mark.slow) for case in (("euler", 1), ("heun", 2))),
    ],
)
def test_order_of_convergence_for_gaussian_data(config, sampler, order):
    """Of the covariance; for edm at sigma_min, since the last step from there is the same for all numbers of steps.

    For Gaussian data the midpoint method gains an order: each axis of x follows a hyperbola, x^2 = a + b level^2 in the
    variables of edm, for which the terms of its h^3 cancel. The mean of flow goes along a straight line.
    """
    errors, (step, level) = [], (-2, EDM.sigma_min) if config is EDM else (-1, 0.0)
    mean, covariance = exact_moments(config, level)
    for count in (64, 128):
        found = moments(config, SamplerConfig(sampler, count), step)
        errors.append(np.abs(found[1] - covariance).max())
        np.testing.assert_allclose(found[0], mean, rtol=0, atol=1e-12 if config is FLOW else 1e-4)
    np.testing.assert_allclose(np.log2(np.divide(*errors)), order, atol=0.1)


@pytest.mark.slow
@OBJECTIVES
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_order_of_convergence_for_a_mixture(config, sampler, order):
    """Along the ODE, a pixel keeps the share of its distribution that lies below it."""
    step, level = (-2, EDM.sigma_min) if config is EDM else (-1, 0.0)
    top = config.initial_sigma
    x_T = top * np.linspace(-1.5, 1.5, 8).reshape(4, 2)

    def below(x, level):
        signal, sigma = (1.0, level) if config is EDM else (1 - level, level)
        return scipy.stats.norm.cdf(x, signal * CENTRES, np.sqrt(signal**2 * STDS**2 + sigma**2)) @ SHARES

    def same_share(u):
        return scipy.optimize.brentq(lambda x: below(x, level) - below(u, top), -9, 9, xtol=1e-14)

    exact, errors = [same_share(u) for u in x_T.flat], []
    for count in (128, 256):
        found = states(config, SamplerConfig(sampler, count), x_T, denoise_mixture)[step]
        errors.append(np.abs(found.ravel() - exact).mean())
    np.testing.assert_allclose(np.log2(np.divide(*errors)), order, atol=0.25)


@OBJECTIVES
def test_samples_have_the_mean_and_the_covariance_of_the_data(config):
    mean, covariance = moments(config, SamplerConfig("heun", 128))
    # edm starts from N(0, sigma_max^2) in place of the noisy data: the mean is off by mean * std / sigma_max
    np.testing.assert_allclose(mean, MEAN, atol=3e-3)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=1e-3)


def test_the_grid_of_edm_by_hand():
    """Karras et al. 2022, eq. 5, with i = 0 at sigma_max."""
    found = make_objective(EDM).levels(18)
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found, np.append(wanted, 0)[::-1], rtol=1e-12)
    np.testing.assert_array_equal(make_objective(EDM).levels(1), [0, 80])


@pytest.fixture
def batch():
    with jax.enable_x64(True):
        g = np.random.default_rng(3)
        yield *g.standard_normal((2, 5, 4, 4, 1)), np.array([0.003, 0.1, 0.5, 0.9, 0.97])


def test_the_target_of_edm_is_that_of_equation_8(batch):
    x_0, noise, sigma = batch
    objective, s = make_objective(EDM, np.float64), sigma.reshape(-1, 1, 1, 1)
    skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / np.sqrt(s**2 + 0.25)
    x = x_0 + s * noise
    np.testing.assert_allclose(objective.noised(x_0, sigma, noise), x)
    np.testing.assert_allclose(objective.target(x_0, sigma, noise), (x_0 - skip * x) / out, rtol=1e-9, atol=1e-12)
    scaled, time = objective.network_input(x, sigma)
    np.testing.assert_allclose(scaled, x / np.sqrt(s**2 + 0.25))
    np.testing.assert_allclose(time, np.log(sigma) / 4)


@OBJECTIVES
def test_a_perfect_prediction_gives_x_0_and_no_loss(config, batch):
    x_0, noise, level = batch
    objective = make_objective(config, np.float64)
    target = objective.target(x_0, level, noise)
    found = objective.predicted_x_0(objective.noised(x_0, level, noise), level, target)
    np.testing.assert_allclose(found, x_0, atol=1e-12)
    assert np.abs(objective.loss(lambda x, t: target, x_0, level, noise)) < 1e-20


@pytest.mark.parametrize("config", [EDM, FLOW, DiffusionConfig(objective="v")], ids=["edm", "flow", "v"])
def test_weights_are_of_the_error_of_x_0(config, batch):
    """min-SNR weights that error by min(SNR, gamma); P2 multiplies the usual loss."""
    x_0, noise, level = batch
    if not config.is_continuous:
        level = np.array([0, 100, 400, 900, 999])
        bars = make_tables(dtype=np.float64).alpha_bars[level]
        snr = bars / (1 - bars)
    else:
        snr = level**-2 if config is EDM else ((1 - level) / level) ** 2
    objective, said = make_objective(config, np.float64), 0.3 * noise
    x = objective.noised(x_0, level, noise)
    errors = np.mean(np.square(objective.predicted_x_0(x, level, said) - x_0), axis=(1, 2, 3))

    def losses(**settings):
        return objective.loss_per_image(lambda x, t: said, x_0, level, noise, **settings)

    np.testing.assert_allclose(losses(min_snr_gamma=5.0), np.minimum(snr, 5) * errors, rtol=1e-9)
    np.testing.assert_allclose(losses(p2_gamma=0.5, p2_k=2.0), losses() / np.sqrt(2 + snr), rtol=1e-12)


def test_kinds_of_loss_are_those_of_torch():
    with jax.enable_x64(True):
        error = np.linspace(-3, 3, 61)
        zero, theirs = torch.zeros(61, dtype=torch.float64), torch.from_numpy(error)
        for kind, wanted in (
            (("l2", 1.0), torch.nn.functional.mse_loss(theirs, zero, reduction="none")),
            (("l1", 1.0), torch.nn.functional.l1_loss(theirs, zero, reduction="none")),
            (("huber", 1.0), torch.nn.functional.huber_loss(theirs, zero, reduction="none")),
            (("huber", 0.4), torch.nn.functional.smooth_l1_loss(theirs, zero, reduction="none", beta=0.4)),
        ):
            found = diffusion.pixel_loss(jnp.asarray(error).reshape(1, 61, 1, 1), *kind).ravel()
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-15)


def test_the_levels_of_a_training_have_their_distributions():
    k = rng.key(0, rng.TIMESTEPS, 0)
    log_sigma = np.log(make_objective(DiffusionConfig(objective="edm", p_mean=-0.5, p_std=2.0)).draw_level(k, 20_000))
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-0.5, 2.0], atol=0.05)
    t = np.asarray(make_objective(FLOW).draw_level(k, 20_000))
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0, 1], atol=0.03)
    t = np.asarray(make_objective(DiffusionConfig(objective="flow", flow_time="uniform")).draw_level(k, 20_000))
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


class Zero(nnx.Module):
    def __call__(self, x, t):
        return 0 * x


MODEL = {"config": EDM, "image_shape": (4, 4, 1)}


def test_a_picture_starts_from_the_same_noise_with_every_objective():
    noise = rng.normal(rng.key(7, rng.SAMPLING, 2, 1000), (4, 4, 1))
    for config, scale in ((EDM, 80), (FLOW, 1)):
        settings = {"sampler": SamplerConfig("euler", 1), "num_frames": 2}
        _, frames = samplers.sample_indices(Zero(), config, (4, 4, 1), 7, [2], **settings)
        np.testing.assert_allclose(frames[0, 0], scale * noise, rtol=1e-6)


def test_the_default_sampler_takes_settings():
    for config in (EDM, FLOW):
        assert sampling_settings(None, config, {"num_steps": 3}) == (SamplerConfig("heun", 3), config)
    assert sampling_settings(None, DiffusionConfig(), {})[0] == SamplerConfig("ddpm")
    assert sampling_settings(None, EDM, {"rho": 5, "sigma_max": 40.0})[1].sigma_max == 40


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: jax_ddpm.sample(Zero(), sampler="ddpm", **MODEL),
            "sampler = ddpm: the objective edm has no timesteps",
        ),
        (lambda: jax_ddpm.sample(Zero(), spacing="logsnr", **MODEL), "set by rho"),
        (lambda: jax_ddpm.sample(Zero(), num_steps=0, **MODEL), "num_steps = 0"),
        (lambda: jax_ddpm.sample(Zero(), sampler="midpoint", config=DiffusionConfig(), image_shape=(4, 4, 1)), "heun"),
        (lambda: jax_ddpm.img2img(Zero(), np.zeros((1, 4, 4, 1)), 5, config=EDM), "img2img needs the T timesteps"),
        (lambda: jax_ddpm.invert(Zero(), np.zeros((1, 4, 4, 1)), config=EDM), "inversion needs the T timesteps"),
        (lambda: jax_ddpm.inpaint(Zero(), np.zeros((1, 4, 4, 1)), np.ones((4, 4)), config=EDM), "inpainting needs"),
        (lambda: DiffusionConfig(objective="edm", sigma_min=90.0).check(), "expected 0 < sigma_min < sigma_max"),
        (lambda: DiffusionConfig(objective="flow", clip="state").check(), r"clip = state.*\(clip='x0'\)"),
        (lambda: DiffusionConfig(objective="edm", variance="learned_range").check(), "has no timesteps"),
        (
            lambda: jax_ddpm.preset("tiny").with_(network=LayerNormConfig(), image_size=28, objective="edm").check(),
            "table of integer timesteps",
        ),
        (
            lambda: jax_ddpm.preset("tiny").with_(objective="edm", sampler="ddim").check(),
            r"sampler = ddim: the objective edm has no timesteps; expected heun, euler or midpoint \(sampler='heun'\)",
        ),
        (lambda: jax_ddpm.preset("tiny").with_(p2_gamma=1.0, min_snr_gamma=5.0).check(), "one kind of loss weights"),
        (lambda: jax_ddpm.preset("tiny").with_(huber_delta=0.0).check(), "huber_delta = 0.0: expected more than 0"),
    ],
)
def test_what_needs_timesteps_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_the_time_of_a_model_is_a_float():
    info = jax_ddpm.ModelInfo(network=ConvBlockConfig(), image_shape=(4, 4, 1), diffusion=FLOW)
    model = jax_ddpm.Model(lambda x, t: x * t[:, None, None, None], info)
    np.testing.assert_array_equal(model(np.ones((2, 4, 4, 1)), 0.5), np.full((2, 4, 4, 1), 0.5))
    with pytest.raises(UserError, match=r"dtype of t = int.*: expected floats"):
        model(np.ones((2, 4, 4, 1)), 5)


def test_the_sampler_of_a_run_follows_its_objective():
    """Unless it is named, on the command line and in Python."""
    for config in (parse_run(["--objective", "flow"], "").config, jax_ddpm.preset("digits", objective="flow")):
        assert config.sampling == SamplerConfig("heun")
    assert parse_run(["--objective", "edm", "--sampler", "euler"], "").config.sampling == SamplerConfig("euler")
    assert parse_run(["--objective", "v"], "").config.sampling == SamplerConfig()


@pytest.mark.slow
def test_a_run_resumes_and_its_model_samples_alike_in_both_frameworks(tmp_path):
    config = jax_ddpm.preset("digits").with_(
        network=ConvBlockConfig(widths=(32,), time_width=32),
        objective="edm",
        steps=6,
        checkpoint_every=3,
        keep_checkpoints=9,
        num_samples=4,
        num_steps=4,
        tensorboard=False,
    )
    whole = jax_ddpm.train(config, tmp_path / "whole", log=lambda line: None)
    part = jax_ddpm.train(config, tmp_path / "part", log=lambda line: None)
    shutil.rmtree(part / "checkpoints" / "6")
    jax_ddpm.train(config, part, resume=True, log=lambda line: None)
    ours = [jax_ddpm.sample(run, 2, num_steps=4) for run in (whole, part)]
    np.testing.assert_array_equal(*ours)
    # float32 at sigma = 80 rounds by 4e-6, which four steps carry to the end
    np.testing.assert_allclose(ours[0], torch_ref.sample(whole, 2, num_steps=4), atol=5e-5)
    assert jax_ddpm.load_model(whole).info.diffusion.objective == "edm"
