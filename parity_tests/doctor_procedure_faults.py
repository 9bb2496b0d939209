"""Faults of noise schedules, sampler steps, optimisers and averages, and the cause that the doctor should name."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import optax
import torch
from torch import nn

from jax_ddpm.doctor.diffusion import Comparison, compare_betas, compare_step
from jax_ddpm.doctor.optimiser import compare_ema, compare_optimizer
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from parity_tests.doctor_faults import Verdict

POSTERIOR = DiffusionConfig(variance="posterior")
COSINE, ZERO = DiffusionConfig(schedule="cosine"), DiffusionConfig(zero_terminal_snr=True, objective="v")


@dataclass(frozen=True)
class ProcedureFault:
    name: str
    causes: str
    compare: Callable[[], Comparison]


def examine(fault: ProcedureFault) -> Verdict:
    result = fault.compare()
    named = result.cause.name if result.cause else ("nothing" if result.agrees else "no cause")
    right = named in fault.causes.split("|")
    return Verdict(fault.name, fault.causes, named, result.subject, right, not result.agrees or right, result.sentence)


def cosine(T, s=0.008, low=0.0, high=0.999, power=2, divided=True):
    x = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((x + s) / (1 + s) * torch.pi / 2) ** power
    f = f / f[0] if divided else torch.cat([torch.ones(1, dtype=f.dtype), f[1:]])
    return (1 - f[1:] / f[:-1]).clip(low, high)


def linear(T, start=1e-4, end=0.02):
    return torch.linspace(start, end, T, dtype=torch.float64)


def sigmoid(T, start, end):
    def value(u):
        return 1 / (1 + np.exp(-u))

    gamma = (value(end) - value(start + (end - start) * np.arange(T + 1) / T)) / (value(end) - value(start))
    gamma = gamma.clip(1e-9, 1)
    return np.minimum(1 - gamma[1:] / gamma[:-1], 0.999)


def rescaled(roots_of):
    """Zero terminal SNR by shifting and scaling `roots_of(alpha_bar)`, which is squared if that is the root."""
    bars = np.cumprod(1 - linear(1000).numpy())
    values = roots_of(bars)
    values = (values - values[-1]) * values[0] / (values[0] - values[-1])
    bars = values if roots_of is not np.sqrt else values**2
    return 1 - np.append(bars[0], bars[1:] / bars[:-1])


def nearly_zero(T):
    betas = rescaled(np.sqrt)
    return np.append(betas[:-1], 1 - 2**-24 / np.prod(1 - betas[:-1]))


BETAS = {
    "float32": ("dtype", lambda T: torch.linspace(1e-4, 0.02, T), DiffusionConfig()),
    "linear for scaled_linear": ("schedule_kind", linear, DiffusionConfig(schedule="scaled_linear")),
    "scaled_linear, other ends": (
        "schedule_kind",
        lambda T: torch.linspace(0.00085**0.5, 0.012**0.5, T) ** 2,
        DiffusionConfig(),
    ),
    "cosine for linear": ("schedule_kind", cosine, DiffusionConfig()),
    "sigmoid of another range": (
        "sigmoid_range",
        lambda T: sigmoid(T, -6, 6),
        DiffusionConfig(schedule="sigmoid"),
    ),
    "beta_end 0.03": ("beta_end", lambda T: linear(T, end=0.03), DiffusionConfig()),
    "beta_start 1e-5": ("beta_start", lambda T: linear(T, start=1e-5), DiffusionConfig()),
    "ends times 1000 / T": ("end_points", lambda T: linear(T, 2e-4, 0.04), DiffusionConfig(timesteps=500)),
    "last end not reached": ("end_point", lambda T: linear(T + 1)[:-1], DiffusionConfig()),
    "t off by one": ("t_off_by_one", lambda T: torch.cat([torch.zeros(1), linear(T)]), DiffusionConfig()),
    "T": ("timesteps", lambda: linear(500), DiffusionConfig()),
    "alphas": ("quantity", lambda T: 1 - linear(T), DiffusionConfig()),
    "alpha_bars": ("quantity", lambda T: torch.cumprod(1 - linear(T), 0), DiffusionConfig()),
    "cosine without s": ("cosine_constants", lambda T: cosine(T, s=0), COSINE),
    "cosine not squared": ("cosine_constants", lambda T: cosine(T, power=1), COSINE),
    "cosine not divided": ("cosine_constants", lambda T: cosine(T, divided=False), COSINE),
    "cosine, other limits": ("max_beta", lambda T: cosine(T, low=1e-4, high=0.9999), COSINE),
    "zero terminal SNR missing": ("zero_terminal_snr", linear, ZERO),
    "zero terminal SNR by shifting alpha_bar": ("zero_terminal_snr", lambda T: rescaled(lambda v: v), ZERO),
    "nearly no signal for none": ("zero_terminal_snr", nearly_zero, ZERO),
}


def their_step(
    variance="posterior", clip=(-1, 1), *, shift=0, previous=None, at_0=False, root=True, swapped=False, time=0, sign=1
):
    """p_sample as it is often written in PyTorch: t is a tensor (B,), the noise is drawn inside."""
    betas = linear(1000)
    alphas = 1 - betas
    bars = torch.cumprod(alphas, 0)
    before = torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]]) if previous is None else previous(bars)

    def at(table, t, x):
        return table[(t + shift).clamp(0, 999)].reshape(-1, *[1] * (x.ndim - 1))

    def p_sample(model, x, t):
        bar, prev, beta, alpha = (at(table, t, x) for table in (bars, before, betas, alphas))
        eps = sign * model(x, t + time)
        x_0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x_0 = x_0 if clip is None else x_0.clamp(*clip)
        factors = prev.sqrt() * beta / (1 - bar), alpha.sqrt() * (1 - prev) / (1 - bar)
        a, b = factors[::-1] if swapped else factors
        sigma = beta if variance == "beta" else beta * (1 - prev) / (1 - bar)
        keep = torch.ones_like(t) if at_0 else (t > 0)
        noise = torch.randn_like(x) * keep.reshape(-1, 1, 1, 1)
        return a * x_0 + b * x + (sigma.sqrt() if root else sigma) * noise

    return p_sample


def in_numpy(x, t, model_output, noise, objective="x0"):
    """A step for a network that predicts x_0, or v, in NumPy."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    t = np.asarray(t).reshape(-1)[0]
    bar, beta, prev = bars[t], betas[t], bars[t - 1] if t else 1.0
    x_0 = model_output if objective == "x0" else np.sqrt(bar) * x - np.sqrt(1 - bar) * model_output
    x_0 = np.clip(x_0, -1, 1)
    mean = np.sqrt(prev) * beta / (1 - bar) * x_0 + np.sqrt(1 - beta) * (1 - prev) / (1 - bar) * x
    return mean + np.sqrt(beta) * noise * (t > 0)


def ddim(betas=None, eta=0.0, steps=1000, before=None):
    """A DDIM step of a chain that leaves out timesteps evenly (leading)."""
    bars = torch.cumprod(1 - (linear(1000) if betas is None else betas), 0)
    stride = 1000 // steps

    def step(model_output, t: int, x, noise):
        below = t - stride if before is None else before(t, stride)
        bar, prev = bars[t], bars[below] if below >= 0 else torch.ones((), dtype=bars.dtype)
        x_0 = ((x - (1 - bar).sqrt() * model_output) / bar.sqrt()).clamp(-1, 1)
        eps = (x - bar.sqrt() * x_0) / (1 - bar).sqrt()
        sigma = eta * ((1 - prev) / (1 - bar) * (1 - bar / prev)).sqrt()
        return prev.sqrt() * x_0 + (1 - prev - sigma**2).sqrt() * eps + sigma * noise

    return step


def learned(model_output, t: int, x, noise, sign=1):
    """A step with a learned variance (Nichol & Dhariwal 2021, eq. 15)."""
    betas = linear(1000)
    bars = torch.cumprod(1 - betas, 0)
    bar, beta, prev = bars[t], betas[t], bars[t - 1] if t else torch.ones((), dtype=bars.dtype)
    eps, v = model_output.chunk(2, 1)
    x_0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
    mean = prev.sqrt() * beta / (1 - bar) * x_0 + (1 - beta).sqrt() * (1 - prev) / (1 - bar) * x
    low = max(t, 1)
    log_low = torch.log(betas[low] * (1 - bars[low - 1]) / (1 - bars[low]))
    f = (sign * v + 1) / 2
    return mean + (t > 0) * torch.exp(0.5 * (f * torch.log(beta) + (1 - f) * log_low)) * noise


ANCESTRAL, EVERY_20 = SamplerConfig(), SamplerConfig("ddim", 50, "leading")
STEPS = {
    "beta for posterior variance": ("variance", lambda: their_step("beta"), POSTERIOR, ANCESTRAL),
    "variance without its root": ("variance", lambda: their_step(root=False), POSTERIOR, ANCESTRAL),
    "not clipped": ("clip", lambda: their_step(clip=None), POSTERIOR, ANCESTRAL),
    "clipped to [0, 1]": ("image_range", lambda: their_step(clip=(0, 1)), POSTERIOR, ANCESTRAL),
    "clip range ignored": ("clip", lambda: their_step(), replace(POSTERIOR, clip_range=2.0), ANCESTRAL),
    "tables at t - 1": ("t_off_by_one", lambda: their_step(shift=-1), POSTERIOR, ANCESTRAL),
    "tables at t + 1": ("t_off_by_one", lambda: their_step(shift=1), POSTERIOR, ANCESTRAL),
    "network at t + 1": ("network_t", lambda: their_step(time=1), POSTERIOR, ANCESTRAL),
    "alpha_bar for alpha_bar_prev": (
        "alpha_bar_prev",
        lambda: their_step(previous=lambda bars: bars),
        POSTERIOR,
        ANCESTRAL,
    ),
    "alpha_bar_prev at 0 not 1": (
        "alpha_bar_prev",
        lambda: their_step(previous=lambda bars: torch.cat([bars[:1], bars[:-1]])),
        POSTERIOR,
        ANCESTRAL,
    ),
    "noise at t = 0": ("noise_at_t_0|variance", lambda: their_step("beta", at_0=True), DiffusionConfig(), ANCESTRAL),
    "posterior's factors swapped": ("mean", lambda: their_step(swapped=True), POSTERIOR, ANCESTRAL),
    "sign of eps": ("objective", lambda: their_step(sign=-1), POSTERIOR, ANCESTRAL),
    "x0 for eps": ("objective", lambda: in_numpy, DiffusionConfig(), ANCESTRAL),
    "v for eps": (
        "objective",
        lambda: lambda x, t, model_output, noise: in_numpy(x, t, model_output, noise, "v"),
        DiffusionConfig(),
        ANCESTRAL,
    ),
    "DDIM for DDPM": ("sampler", ddim, DiffusionConfig(), ANCESTRAL),
    "eta ignored": ("variance", ddim, DiffusionConfig(), SamplerConfig("ddim", eta=0.5)),
    "whole chain in a shortened one": (
        "alpha_bar_prev",
        lambda: ddim(before=lambda t, stride: t - 1),
        DiffusionConfig(),
        EVERY_20,
    ),
    "alpha_bar_prev one lower in a chain": (
        "alpha_bar_prev",
        lambda: ddim(steps=500, before=lambda t, stride: t - stride - 1 if t >= stride else -1),
        DiffusionConfig(),
        SamplerConfig("ddim", 500, "leading"),
    ),
    "Heun's correction dropped": (
        "heun_correction",
        lambda: ddim(steps=20),
        DiffusionConfig(),
        SamplerConfig("heun", 20, "leading"),
    ),
    "learned range upside down": (
        "variance",
        lambda: lambda model_output, t, x, noise: learned(model_output, int(t.reshape(-1)[0]), x, noise, -1),
        DiffusionConfig(variance="learned_range"),
        ANCESTRAL,
    ),
}


def adam(**settings):
    return lambda parameters: torch.optim.Adam(parameters, lr=1e-3, **settings)


def adamw(**settings):
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **settings)


def clip_norm(parameters):
    nn.utils.clip_grad_norm_(parameters, 1.0)


def without_correction(parameters, gradients, state):
    """Adam whose moments are not corrected for their bias."""
    m, v = state or ([0.0] * len(parameters), [0.0] * len(parameters))
    m = [0.9 * a + 0.1 * g for a, g in zip(m, gradients, strict=True)]
    v = [0.999 * a + 0.001 * g * g for a, g in zip(v, gradients, strict=True)]
    new = [p - 1e-3 * a / (b**0.5 + 1e-8) for p, a, b in zip(parameters, m, v, strict=True)]
    return new, (m, v)


OPTIMIZERS = {
    "epsilon 1e-7": ("epsilon", adam(), optax.adam(1e-3, eps=1e-7), None),
    "epsilon inside the root": ("epsilon_place", adam(), optax.adam(1e-3, eps=0, eps_root=1e-8), None),
    "bias not corrected": ("bias_correction", adam(), without_correction, None),
    "AdamW's default decay": ("weight_decay", adamw(), optax.adamw(1e-3), None),
    "decay coupled": (
        "decay_coupling",
        adamw(),
        optax.chain(optax.add_decayed_weights(1e-2), optax.adam(1e-3)),
        None,
    ),
    "decay decoupled": ("decay_coupling", adam(weight_decay=1e-2), optax.adamw(1e-3, weight_decay=1e-2), None),
    "decay not times the rate": (
        "decay_times_rate",
        adamw(),
        optax.chain(optax.adam(1e-3), optax.add_decayed_weights(-1e-2)),
        None,
    ),
    "beta_2 0.99": ("beta_2", adam(), optax.adam(1e-3, b2=0.99), None),
    "beta_1 0.85": ("beta_1", adam(), optax.adam(1e-3, b1=0.85), None),
    "learning rate": ("learning_rate", adam(), optax.adam(3e-4), None),
    "amsgrad": ("amsgrad", adam(amsgrad=True), optax.adam(1e-3), None),
    "clipping missing": ("clipping", adam(), optax.adam(1e-3), clip_norm),
    "clipped by value": ("clipping", adam(), optax.chain(optax.clip(1.0), optax.adam(1e-3)), clip_norm),
    "clipped to another norm": (
        "clip_limit",
        adam(),
        optax.chain(optax.clip_by_global_norm(2.0), optax.adam(1e-3)),
        clip_norm,
    ),
    "1e-6 added to the norm": (
        "clipping",
        adam(),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        clip_norm,
    ),
    "SGD for Adam": ("optimizer_kind", adam(), optax.sgd(1e-3), None),
}


def ema(decay=0.999, warm=True, shift=0, swapped=False):
    def update(average, parameters, step):
        step = step + shift
        d = min(decay, (1 + step) / (10 + step)) if warm else decay
        d = 1 - d if swapped else d
        return d * average + (1 - d) * parameters

    return update


AVERAGES = {
    "no warm-up": ("ema_warmup", ema(warm=False)),
    "decay 0.9999": ("ema_decay", ema(0.9999)),
    "step off by one": ("ema_step", ema(shift=1)),
    "factors swapped": ("ema_swapped", ema(swapped=True)),
}
FAULTS = [
    *(
        ProcedureFault(f"schedule: {name}", causes, lambda theirs=theirs, config=config: compare_betas(theirs, config))
        for name, (causes, theirs, config) in BETAS.items()
    ),
    *(
        ProcedureFault(f"step: {name}", causes, lambda make=make, c=config, s=sampler: compare_step(make(), c, s))
        for name, (causes, make, config, sampler) in STEPS.items()
    ),
    *(
        ProcedureFault(f"optimizer: {name}", causes, lambda t=theirs, o=ours, c=clip: compare_optimizer(t, o, clip=c))
        for name, (causes, theirs, ours, clip) in OPTIMIZERS.items()
    ),
    *(
        ProcedureFault(f"EMA: {name}", causes, lambda ours=ours: compare_ema(ema(), ours))
        for name, (causes, ours) in AVERAGES.items()
    ),
]
RIGHT = {
    "linear": lambda: compare_betas(linear),
    "linear in float32": lambda: compare_betas(lambda T: torch.linspace(1e-4, 0.02, T)),
    "cosine": lambda: compare_betas(cosine, COSINE),
    "zero terminal SNR": lambda: compare_betas(rescaled(np.sqrt), ZERO),
    "p_sample": lambda: compare_step(their_step(), POSTERIOR),
    "DDIM": lambda: compare_step(ddim(), DiffusionConfig(), SamplerConfig("ddim")),
    "DDIM, eta 0.5": lambda: compare_step(ddim(eta=0.5), DiffusionConfig(), SamplerConfig("ddim", eta=0.5)),
    "DDIM in 50 steps": lambda: compare_step(ddim(steps=50), DiffusionConfig(), EVERY_20),
    "learned variance": lambda: compare_step(learned, DiffusionConfig(variance="learned_range")),
    "x0 in NumPy": lambda: compare_step(in_numpy, DiffusionConfig(objective="x0")),
    "Adam": lambda: compare_optimizer(adam(), optax.adam(1e-3)),
    "AdamW": lambda: compare_optimizer(adamw(), optax.adamw(1e-3, weight_decay=1e-2)),
    "SGD": lambda: compare_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)
    ),
    "EMA": lambda: compare_ema(ema(), ema()),
}
