"""Faults in training steps and averages of weights: how each is seeded, and its rung."""

from dataclasses import replace

import torch

import torch_ref.diffusion
import torch_ref.rng
import torch_ref.schedules
import torch_ref.step
from jax_ddpm.spec import power_ema
from jax_ddpm.spec.power_ema import gamma_of
from jax_ddpm.spec.run_config import TrainingConfig
from parity_tests import measures_training
from parity_tests.seeding import swap


def drawn_channels_first(_):
    def faulty(level_key, noise_key, x_0, objective):
        t = objective.draw_level(level_key, x_0.shape[0])
        b, c, h, w = x_0.shape
        noise = torch_ref.rng.normal(noise_key, (b, h, w, c), x_0.dtype)
        return t, noise.transpose(1, 2).reshape(b, c, h, w)

    return faulty


def stale_ema(update):
    """Averages the parameters of the step before."""
    last = {}

    def faulty(ema, network, step, decay):
        current = {name: p.detach().clone() for name, p in network.named_parameters()}
        with torch.no_grad():
            for name, e in ema.named_parameters():
                d = min(decay, (1 + step) / (10 + step))
                e.copy_(d * e + (1 - d) * last.get(name, e))
        last.update(current)

    return faulty


def without_warmup(update):
    return lambda ema, network, step, decay: update(ema, network, 10**9, decay)


def only_after_finite_steps(update):
    """Leaves a step out whose parameters are those of the step before."""
    last = {}

    def faulty(ema, network, step, gamma):
        now = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        if not torch.equal(now, last.get(ema, now + 1)):
            update(ema, network, step, gamma)
        last[ema] = now

    return faulty


def swapped_averages(update):
    """Gives the first average the exponent of the second, and the other way round."""
    gammas = [gamma_of(width) for width in TrainingConfig().power_ema_widths]
    return lambda ema, network, step, gamma: update(ema, network, step, sum(gammas) - gamma)


def without_one_snapshot(coefficients):
    def faulty(steps, *rest):
        c = coefficients(steps, *rest)
        c[len(steps) // 2 - 2] = 0
        return c

    return faulty


def with_one_snapshot_late(coefficients):
    def faulty(steps, *rest):
        steps = steps.copy()
        steps[len(steps) // 2 - 2] += 1
        return coefficients(steps, *rest)

    return faulty


def optimizer_setting(**wrong):
    def make(make_optimizer):
        def faulty(config, network):
            optimizer = make_optimizer(config, network)
            for group in optimizer.param_groups:
                group.update(wrong)
            return optimizer

        return faulty

    return swap(torch_ref.step, "make_optimizer", make)


def never_detached(split):
    def faulty(prediction, x_t):
        said, v = split(prediction, x_t)
        said.detach = lambda: said
        return said, v

    return faulty


def uncounted_skips(make_train_step):
    def faulty(config, total_steps):
        train_step = make_train_step(config, total_steps)

        def step(state, images):
            state, metrics = train_step(state, images)
            state.step -= int(metrics["skipped"])
            return state, metrics

        return step

    return faulty


def warmup_counts_as_decay(rate):
    def faulty(config, step, total_steps):
        if step < config.warmup_steps:
            return rate(config, step, total_steps)
        return rate(replace(config, warmup_steps=0), step, total_steps)

    return faulty


def line_for_cosine(rate):
    swapped = {"cosine": "linear", "linear": "cosine"}
    return lambda config, *a: rate(replace(config, lr_schedule=swapped.get(config.lr_schedule, "constant")), *a)


POWER_EMA, OTHER_WIDTHS = "power EMA after three steps, float64", "power EMA of other widths, float64"
FAULTS = {
    "v of a schedule that keeps some signal": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", lambda _: lambda betas: betas),
        "one Adam step, zero terminal SNR, float64",
    ),
    "variance's loss teaches the mean": (
        swap(torch_ref.diffusion, "split_prediction", never_detached),
        "one Adam step, learned variance, float64",
    ),
    "learned range upside down": (
        swap(torch_ref.diffusion, "learned_log_variance", lambda f: lambda tables, t, v: f(tables, t, -v)),
        "one Adam step, learned variance, float64",
    ),
    "label dropout drawn at another address": (
        swap(torch_ref.rng, "LABEL_DROPOUT", lambda _: torch_ref.rng.FLIP),
        "one Adam step with label dropout, float64",
    ),
    "labels kept where they should be dropped": (
        swap(torch_ref.step, "drop_labels", lambda drop: lambda k, labels, null, rate: drop(k, labels, null, 1 - rate)),
        "one Adam step with label dropout, float64",
    ),
    "class 0 for a dropped label": (
        swap(torch_ref.step, "drop_labels", lambda drop: lambda k, labels, null, rate: drop(k, labels, 0, rate)),
        "one Adam step with label dropout, float64",
    ),
    "stale EMA": (swap(torch_ref.step, "ema_update", stale_ema), "EMA after three steps, float64"),
    "EMA without warm-up": (swap(torch_ref.step, "ema_update", without_warmup), "EMA after three steps, float64"),
    "power EMA: gamma for gamma + 1": (
        swap(torch_ref.step, "power_ema_update", lambda update: lambda *a: update(*a[:3], a[3] - 1)),
        POWER_EMA,
    ),
    "power EMA: t counted from 0": (
        swap(
            torch_ref.step,
            "power_ema_update",
            lambda update: lambda e, n, step, gamma: update(e, n, max(step - 1, 0), gamma),
        ),
        POWER_EMA,
    ),
    "power EMA: averages swapped in the step": (
        swap(torch_ref.step, "power_ema_update", swapped_averages),
        POWER_EMA,
    ),
    "power EMA: a skipped step left out": (
        swap(torch_ref.step, "power_ema_update", only_after_finite_steps),
        "power EMA with a skipped step, float64",
    ),
    "power EMA: t counted from 0, in a direct average": (
        swap(
            torch_ref.step,
            "power_ema_update",
            lambda update: lambda e, n, step, gamma: update(e, n, max(step - 1, 0), gamma),
        ),
        OTHER_WIDTHS,
    ),
    "power EMA: a snapshot left out": (swap(power_ema, "coefficients", without_one_snapshot), OTHER_WIDTHS),
    "power EMA: a snapshot one step late": (swap(power_ema, "coefficients", with_one_snapshot_late), OTHER_WIDTHS),
    "power EMA: averages swapped": (
        swap(power_ema, "coefficients", lambda f: lambda steps, gammas, *a: f(steps, gammas[::-1], *a)),
        OTHER_WIDTHS,
    ),
    "noise drawn in NCHW": (
        swap(torch_ref.step, "draw_level_and_noise", drawn_channels_first),
        "50 training steps, losses, float32",
    ),
    "batch order": (
        swap(measures_training, "batch", lambda batch: lambda step, *rest: batch(step + 1, *rest)),
        "50 training steps, losses, float32",
    ),
    "Adam epsilon 1e-7": (optimizer_setting(eps=1e-7), "one Adam step, float64"),
    "Adam beta_2 0.99": (optimizer_setting(betas=(0.9, 0.99)), "50 training steps, losses, float32"),
    "AdamW's default decay": (optimizer_setting(weight_decay=1e-4), "one AdamW step, clipped, float64"),
    "skipped steps are not counted": (
        swap(torch_ref.step, "make_train_step", uncounted_skips),
        "a skipped step among three, float64",
    ),
    "decay of the rate counted from step 0": (
        swap(torch_ref.step, "learning_rate", warmup_counts_as_decay),
        "learning rates",
    ),
    "a line in place of the cosine": (swap(torch_ref.step, "learning_rate", line_for_cosine), "learning rates"),
}
