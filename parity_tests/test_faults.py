"""The ladder catches faults: each one, seeded into torch_ref, must break its rung (and the rung holds without it)."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import torch_ref.classifier
import torch_ref.diffusion
import torch_ref.embeddings
import torch_ref.flow
import torch_ref.likelihood
import torch_ref.rng
import torch_ref.schedules
import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec import power_ema
from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.power_ema import gamma_of
from jax_ddpm.spec.registered import NoiseLevel
from jax_ddpm.spec.run_config import TrainingConfig
from parity_tests import ladder, measures_guidance, measures_training
from torch_ref.objectives import EDM, Flow, discrete
from torch_ref.sampling import guidance, reverse, samplers, solvers, steps
from torch_ref.unets import adm, attention, context_unet, conv_block, ddpm, layer_norm, lucidrains, strided


def swap(target, name, make):
    """Replace target.name by make(original)."""
    return lambda: mock.patch.object(target, name, make(getattr(target, name)))


def changed_network(change):
    """Let `change` loose on every network that torch_ref builds."""

    def make(build):
        def faulty(*arguments, **settings):
            network = build(*arguments, **settings)
            change(network)
            return network

        return faulty

    return swap(torch_ref.unets, "build", make)


def norm_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = 1e-6


def batch_norm(**settings):
    def change(network):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                vars(layer).update(settings)

    return changed_network(change)


def norm_groups(network):
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups = 16


def leaky_silu(network):
    network.enc_convs[0].seq1[2] = nn.GELU()


def changed_weights(change):
    """Let `change` loose on every array on its way into torch_ref."""

    def make(load):
        def faulty(network, values, dtype=np.float32):
            return load(network, {name: change(name, value) for name, value in values.items()}, dtype)

        return faulty

    return swap(torch_ref.weights, "load_state_dict", make)


def flipped(name, value):
    return value[..., ::-1, ::-1] if name.startswith("deconvs") and value.ndim == 4 else value


def transposed(name, value):
    return value.swapaxes(2, 3) if name.startswith("enc_convs") and value.ndim == 4 else value


def computed_frequencies(name, value):
    return np.exp(-np.log(1e4) * np.arange(len(value)) / (len(value) - 1)) if name.endswith(".J") else value


def cosine_first(_):
    def faulty(t, frequencies):
        phase = t.to(frequencies.dtype)[:, None] * frequencies
        return torch.stack([torch.cos(phase), torch.sin(phase)], dim=-1).reshape(len(t), -1)

    return faulty


def concatenated(_):
    def faulty(t, frequencies):
        phase = t.to(frequencies.dtype)[:, None] * frequencies
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)

    return faulty


def drawn_channels_first(_):
    def faulty(level_key, noise_key, x_0, objective):
        t = objective.draw_level(level_key, x_0.shape[0])
        b, c, h, w = x_0.shape
        noise = torch_ref.rng.normal(noise_key, (b, h, w, c), x_0.dtype)
        return t, noise.transpose(1, 2).reshape(b, c, h, w)

    return faulty


def one_behind(extract):
    return lambda table, t: extract(table, (t - 1).clamp(min=0))


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


def sampler_setting(**wrong):
    def make(step):
        return lambda tables, config, *a: step(tables, replace(config, **wrong), *a)

    return swap(reverse, "ancestral_step", make)


def eta_ignored(step):
    return lambda *a, eta, **settings: step(*a, eta=0.0, **settings)


def history_forgotten(step):
    return lambda *a, **settings: (step(*a, **settings)[0], a[-1])


def without_correction(step):
    return lambda *a, predict=None, **settings: step(*a, **settings)


def never_detached(split):
    def faulty(prediction, x_t):
        said, v = split(prediction, x_t)
        said.detach = lambda: said
        return said, v

    return faulty


def shifted(labels, rows):
    """Labels of a table whose first row is the null label."""
    return (labels + 1) % rows


def null_row_first(add_label):
    return lambda time, labels, table, *a: add_label(time, shifted(labels, table.num_embeddings), table, *a)


def embedded_before_the_mlp(network):
    (sinusoids, linear, relu), table, forward = network.time_emb, network.class_embedding, network.forward

    def faulty(x, t, labels):
        network.class_embedding = None
        network.time_emb.forward = lambda t: relu(linear(sinusoids(t).to(linear.weight.dtype) + table(labels)))
        return forward(x, t)

    network.forward = faulty


def one_lower(below):
    return lambda chain, timesteps: np.maximum(below(chain, timesteps) - 1, -1)


def of_the_whole_chain(tables):
    return lambda config, dtype, chain=None: tables(config, dtype)


def padded_right_and_below(network):
    """Stride 2 with "SAME" padding, as other frameworks have it, for PyTorch's padding of 1."""
    for block in (network.down1, network.down2, network.down3):
        block.down.padding = (0, 0)
        block.down.register_forward_pre_hook(lambda layer, arguments: nn.functional.pad(arguments[0], (0, 1, 0, 1)))


def concatenated_the_other_way(module):
    faulty = SimpleNamespace(**{**vars(torch), "cat": lambda tensors, dim: torch.cat(tensors[::-1], dim)})
    return swap(module, "torch", lambda _: faulty)


def four_heads(network):
    for layer in network.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.num_heads, layer.head_dim = 4, layer.embed_dim // 4


def normalized_throughout(network):
    network.b_out[2].normalize = True


def usual_exponent(name, value):
    """The table of Vaswani et al., as if a network's own were not to be kept."""
    if name != "time_embed.weight":
        return value
    phase = np.arange(1000)[:, None] * 1e4 ** (-np.arange(50) / 50)
    return np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(value.shape)


def uncounted_skips(make_train_step):
    def faulty(config, total_steps):
        train_step = make_train_step(config, total_steps)

        def step(state, images):
            state, metrics = train_step(state, images)
            state.step -= int(metrics["skipped"])
            return state, metrics

        return step

    return faulty


def padded_left_and_above(_):
    return lambda self, x, *_: self.conv(nn.functional.pad(x, (1, 0, 1, 0)))


def halves_swapped(name, value):
    """Shift and scale of a residual block the other way round."""
    half = len(value) // 2
    return np.concatenate([value[half:], value[:half]]) if ".time_emb_proj." in name else value


def groups_as_elsewhere(network):
    network.mid_block.attentions[0].group_norm.num_groups = 32


def shifted_alpha_bars(betas):
    alpha_bars = np.cumprod(1 - betas)
    alpha_bars = np.append(1, (alpha_bars - alpha_bars[-1]) * alpha_bars[0] / (alpha_bars[0] - alpha_bars[-1]))
    return 1 - alpha_bars[1:] / alpha_bars[:-1]


def ends_nearly_in_noise(rescaled):
    """As Euler's method in diffusers: 2^-24 for the last alpha_bar."""

    def faulty(betas):
        betas = rescaled(betas)
        return np.append(betas[:-1], 1 - 2**-24 / np.prod(1 - betas[:-1]))

    return faulty


def sideways(network):
    """Height and width change places on the way in, and on the way out."""
    forward = network.forward
    network.forward = lambda x, t: forward(x.mT, t).mT


def noise_drawn_sideways(noise_at):
    def faulty(keys, number, shape, dtype):
        height, width, channels = shape
        return noise_at(keys, number, (width, height, channels), dtype).mT

    return faulty


def usual_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = 1e-5


def of_attention_blocks(part, **wrong):
    """Other settings for the self-attention of a part of every `adm`."""

    def change(network):
        for layer in getattr(network, part).modules():
            if isinstance(layer, adm.SelfAttention):
                vars(layer).update(wrong)

    return changed_network(change)


def unscaled_time(network):
    network.time_embed.scale = 1.0


def adm_halves_swapped(name, value):
    half = len(value) // 2
    return np.concatenate([value[half:], value[:half]]) if ".emb_layers." in name else value


def without_tails(probability):
    """The outermost levels of a pixel as wide as the others."""
    return lambda x, mean, sigma: probability(torch.zeros_like(x), mean - x, sigma)


def in_nats(module):
    faulty = SimpleNamespace(**{**vars(math), "log": lambda _: 1.0})
    return swap(module, "math", lambda _: faulty)


def first_of_each_range(timesteps_in):
    return lambda edges, uniforms: timesteps_in(edges, 0 * uniforms)


def of_noise_alone(velocity):
    """Leaves out what the scale sqrt(alpha_bar) adds to the divergence."""

    def faulty(tables, *a):
        f, divergence = velocity(tables, *a)
        return f, divergence + torch_ref.diffusion.extract(tables.sqrt_one_minus_alpha_bars, a[3]).flatten() ** 2

    return faulty


def larger_signs(velocity):
    return lambda *a: velocity(*a[:-1], a[-1] * 1.5)


def aligned_right_and_below(x):
    return nn.functional.max_pool2d(x[..., x.shape[-2] % 2 :, x.shape[-1] % 2 :], 2)


def reversed_levels(levels):
    """The noise levels above 0 in the other order."""

    def faulty(self, num_steps):
        grid = levels(self, num_steps)
        return np.append(grid[:1], grid[:0:-1])

    return faulty


def batch_rescaled(guided, conditional, rescale):
    """With one standard deviation for the batch."""
    return rescale * (conditional.std() / guided.std()) * guided + (1 - rescale) * guided


def halves_of_guidance_swapped(guided_prediction):
    return lambda sampler, x_t, t, conditional, other: guided_prediction(sampler, x_t, t, other, conditional)


def guided_after_clipping(guided_prediction):
    """Clips the x_0 of both predictions of eps, guides these, and computes eps from the result."""
    tables = torch_ref.schedules.schedule_tables(measures_guidance.SCHEDULE, np.float64)

    def faulty(sampler, x_t, t, *predictions):
        if sampler.sampler != "heun":  # the others have their own objectives
            return guided_prediction(sampler, x_t, t, *predictions)
        eps = (torch_ref.diffusion.split_prediction(each, x_t)[0] for each in predictions)
        x_0 = (torch_ref.diffusion.predicted_x_0(tables, "eps", x_t, t, each).clamp(-1, 1) for each in eps)
        guided = guided_prediction(sampler, x_t, t, *x_0)
        return torch_ref.diffusion.predicted_eps(tables, "x0", x_t, t, guided)

    return faulty


def corrected_in_the_last_step(step):
    """The level 0 becomes a small one, for which there is a slope."""

    def faulty(objective, levels, predict, x, prediction, i, noise):
        levels = torch.cat([levels[:1], levels.clamp(min=1e-4)])
        return step(objective, levels, predict, x, prediction, i + 1, noise)

    return faulty


def a_quarter_into_the_step(step):
    """The slope after a quarter of the step in place of that in its middle."""

    def faulty(objective, levels, predict, x, prediction, i, noise):
        half_step = torch.stack([(levels[i] + levels[i + 1]) / 2, levels[i + 1]])
        return x + 2 * (step(objective, half_step, predict, x, prediction, 0, noise) - x)

    return faulty


def unweighted(loss_per_image):
    """The squared error of D, without its weight 1 / c_out^2."""

    def faulty(self, predict, x_0, level, noise, **settings):
        return loss_per_image(self, predict, x_0, level, noise, **settings) * self.output_scale(level) ** 2

    return faulty


def swapped_scales():
    """c_skip and c_out change places."""
    skip, out = EDM.skip_scale, EDM.output_scale
    return mock.patch.multiple(EDM, skip_scale=out, output_scale=skip)


def of_time(change):
    """The network's time changed."""

    def make(input_scale_and_time):
        def faulty(self, level):
            scale, time = input_scale_and_time(self, level)
            return scale, change(time)

        return faulty

    return make


def changed_function(module, name, function):
    """Replace one function of a library in a module: `torch` or `math`."""
    library, _, name = name.partition(".")
    original = getattr(module, library)
    faulty = SimpleNamespace(**{**vars(original), name: function(getattr(original, name))})
    return swap(module, library, lambda _: faulty)


def sample_variance(var_mean):
    return lambda x, correction, **settings: var_mean(x, correction=1, **settings)


def pixels_before_channels(unshuffle):
    def faulty(self, x):
        b, c, h, w = x.shape
        return unshuffle(self, x).reshape(b, c, 4, h // 2, w // 2).transpose(1, 2).reshape(b, -1, h // 2, w // 2)

    return faulty


def undivided_values(network):
    for layer in network.modules():
        if isinstance(layer, lucidrains.LinearAttention):
            layer.divided_values = False


def channels_before_heads(heads_of_pixels):
    def faulty(qkv, heads):
        b, n, _, c = (parts := heads_of_pixels(qkv, heads))[0].shape
        return tuple(part.reshape(b, n, c, heads).transpose(2, 3) for part in parts)

    return faulty


def scale_and_shift_swapped(name, value):
    half = len(value) // 2
    return np.concatenate([value[half:], value[:half]]) if ".mlp.1." in name else value


LOSSES, LOSS_GRADIENTS = "losses and loss weights, all objectives, float64", "gradients, edm and flow, float64"
EDM_SAMPLES, FLOW_SAMPLES = "6-step heun, edm, float64", "6-step midpoint, flow, float64"


def levels_swapped(own_step):
    """Gives the registered step the level of the lower timestep as that of t, and the other way round."""

    def faulty(tables, config, sampler, *arguments):
        def step(x_t, x_0, eps, now, below, noise):
            return sampler.step(x_t, x_0, eps, below, now, noise)

        return own_step(tables, config, sampler._replace(step=step), *arguments)

    return faulty


def with_the_predicted_eps(own_step):
    def faulty(tables, config, sampler, x_t, prediction, t, noise):
        ts = torch.full((len(x_t),), int(t))
        predicted = torch_ref.diffusion.predicted_eps(tables, config.objective, x_t, ts, prediction)

        def step(x_t, x_0, eps, now, below, noise):
            return sampler.step(x_t, x_0, predicted, now, below, noise)

        return own_step(tables, config, sampler._replace(step=step), x_t, prediction, t, noise)

    return faulty


GUIDED, GUIDED_SAMPLES = "guided predictions, float64", "guided samples, float64"
CLASSIFIER = "classifier, features, float32"
POWER_EMA, OTHER_WIDTHS = "power EMA after three steps, float64", "power EMA of other widths, float64"
BOUND, NETWORK_BOUND = "bits per dimension, float64", "bits per dimension, network and drawn t, float64"
FLOW = "bits per dimension by the ODE, float64"
FAULTS = {
    "strided: SAME padding": (changed_network(padded_right_and_below), "strided: outputs, float32"),
    "strided: skip order swapped": (concatenated_the_other_way(strided), "strided: outputs, float32"),
    "attention: added to its input": (
        swap(attention.SelfAttention, "forward", lambda forward: lambda self, x: x + forward(self, x)),
        "attention: outputs, float64",
    ),
    "attention: 4 heads": (changed_network(four_heads), "attention: outputs, float64"),
    "attention: skip order swapped": (concatenated_the_other_way(attention), "attention: outputs, float64"),
    "layer_norm: last block normalized": (changed_network(normalized_throughout), "layer_norm: outputs, float32"),
    "layer_norm: another table": (changed_weights(usual_exponent), "layer_norm: outputs, float32"),
    "layer_norm: skip order swapped": (concatenated_the_other_way(layer_norm), "layer_norm: outputs, float32"),
    "layer_norm: another slope of leaky ReLU": (
        swap(layer_norm, "TIME_ACTIVATIONS", lambda known: {**known, "leaky_relu": partial(nn.LeakyReLU, 0.02)}),
        "layer_norm with leaky ReLU: outputs, float64",
    ),
    "ddpm: padded left and above": (
        swap(ddpm.Downsample, "forward", padded_left_and_above),
        "ddpm: outputs, float64",
    ),
    "ddpm: attention without its input": (
        swap(ddpm.SelfAttention, "forward", lambda forward: lambda self, x: forward(self, x) - x),
        "ddpm: outputs, float64",
    ),
    "ddpm: cosines before sines": (
        swap(
            ddpm, "concatenated_embedding", lambda embed: lambda t, frequencies, flip: embed(t, frequencies, not flip)
        ),
        "ddpm: outputs, float64",
    ),
    "ddpm: frequencies not shifted": (
        swap(ddpm, "geometric_frequencies", lambda frequencies: lambda width, freq_shift: frequencies(width, 0)),
        "ddpm: outputs, float64",
    ),
    "ddpm: GroupNorm epsilon 1e-5": (changed_network(usual_epsilon), "ddpm: outputs, float64"),
    "ddpm: shift before scale": (
        changed_weights(halves_swapped),
        "ddpm with scales, resampled by blocks: outputs, float64",
    ),
    "ddpm: maximum for average pooling": (
        swap(ddpm, "average_pool_2x2", lambda _: lambda x: nn.functional.max_pool2d(x, 2)),
        "ddpm with scales, resampled by blocks: outputs, float64",
    ),
    "ddpm: GELU by tanh": (
        swap(ddpm, "ACTIVATIONS", lambda known: {**known, "gelu": partial(nn.functional.gelu, approximate="tanh")}),
        "ddpm with scales, resampled by blocks: outputs, float64",
    ),
    "ddpm: another slope of mish": (
        swap(ddpm, "ACTIVATIONS", lambda known: {**known, "mish": nn.functional.silu}),
        "ddpm with groups of its middle, mish: outputs, float64",
    ),
    "ddpm: leaky ReLU": (
        swap(ddpm, "ACTIVATIONS", lambda known: {**known, "relu": nn.functional.leaky_relu}),
        "ddpm without attention in its middle, relu: outputs, float64",
    ),
    "ddpm: groups of the middle as elsewhere": (
        changed_network(groups_as_elsewhere),
        "ddpm with groups of its middle, mish: outputs, float64",
    ),
    "ddpm: skip order swapped": (concatenated_the_other_way(ddpm), "ddpm: outputs, float64"),
    **{
        f"{name}: height and width swapped": (changed_network(sideways), f"{name}: outputs, {dtype}")
        for name, dtype in (("strided", "float32"), ("attention", "float64"), ("ddpm", "float64"))
    },
    "noise drawn with height and width swapped": (
        swap(samplers, "noise_at", noise_drawn_sideways),
        "10-step DDPM, not square, float32",
    ),
    "height and width swapped": (changed_network(sideways), "network, random weights, float32"),
    "GroupNorm epsilon 1e-6": (changed_network(norm_epsilon), "network, random weights, float64"),
    "GroupNorm with 16 groups": (changed_network(norm_groups), "network, random weights, float32"),
    "GELU for SiLU": (changed_network(leaky_silu), "network, random weights, float32"),
    "deconvolution kernel flipped": (changed_weights(flipped), "network, random weights, float32"),
    "kernel rows and columns swapped": (changed_weights(transposed), "network, random weights, float32"),
    "frequencies over d/2 - 1": (changed_weights(computed_frequencies), "network, random weights, float32"),
    "skip order swapped": (concatenated_the_other_way(conv_block), "network, random weights, float32"),
    "cosine before sine": (swap(torch_ref.embeddings, "interleaved_embedding", cosine_first), "time embedding"),
    "sines and cosines in halves": (
        swap(torch_ref.embeddings, "interleaved_embedding", concatenated),
        "time embedding",
    ),
    "cosine before sine, in the network": (
        swap(conv_block, "interleaved_embedding", cosine_first),
        "network, random weights, float32",
    ),
    "zero terminal SNR by shifting alpha_bar": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", lambda _: shifted_alpha_bars),
        "schedule tables",
    ),
    "scaled_linear without the root": (
        swap(torch_ref.schedules, "scaled_linear_betas", lambda _: torch_ref.schedules.linear_betas),
        "schedule tables",
    ),
    "sigmoid of another range": (
        swap(torch_ref.schedules, "sigmoid", lambda f: lambda x: f(x / 2)),
        "schedule tables",
    ),
    "clip range ignored": (sampler_setting(clip_range=1.0), "one reverse step, all kinds"),
    "no largest threshold": (sampler_setting(clip_max=None), "one reverse step, all kinds"),
    "v of a schedule that keeps some signal": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", lambda _: lambda betas: betas),
        "one Adam step, zero terminal SNR, float64",
    ),
    "nearly no signal for none": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", ends_nearly_in_noise),
        "one reverse step, zero terminal SNR",
    ),
    "t off by one": (swap(torch_ref.diffusion, "extract", one_behind), "noising"),
    "t off by one, in the reverse step": (
        swap(torch_ref.diffusion, "extract", one_behind),
        "one reverse step, all kinds",
    ),
    "posterior for beta variance": (sampler_setting(variance="posterior"), "one reverse step, all kinds"),
    "posterior for beta variance, in samples": (
        sampler_setting(variance="posterior"),
        "1000-step samples, 8-bit pixels, float32",
    ),
    "no clipping": (sampler_setting(clip="none"), "one reverse step, all kinds"),
    "alpha_bar of t - 1 off by one in a chain": (
        swap(torch_ref.schedules, "next_timesteps", one_lower),
        "50-step DDIM, eta 0.5, float32",
    ),
    "betas of the whole chain in a shortened one": (
        swap(samplers, "schedule_tables", of_the_whole_chain),
        "50-step DDPM, 8-bit pixels",
    ),
    "eta ignored": (swap(reverse, "ddim_step", eta_ignored), "50-step DDIM, eta 0.5, 8-bit pixels"),
    "history not carried": (swap(reverse, "dpmpp_step", history_forgotten), "20-step DPM-Solver++, float32"),
    "Heun's correction dropped": (swap(reverse, "edm_step", without_correction), "10-step Heun, float32"),
    "noise drawn at the number of the step": (
        swap(
            samplers,
            "reverse_process",
            lambda walk: (
                lambda step, predict, x_T, chain, draw, *a: walk(
                    step, predict, x_T, chain, lambda t: draw(int(np.searchsorted(-chain, -t))), *a
                )
            ),
        ),
        "50-step DDPM, float32",
    ),
    "x_T drawn at the chain's first timestep": (
        swap(
            samplers,
            "reverse_process",
            lambda walk: (
                lambda step, predict, x_T, chain, draw, *a: walk(step, predict, draw(int(chain[0])), chain, draw, *a)
            ),
        ),
        "50-step DDIM, eta 0.5, float32",
    ),
    "guidance: added to the labelled prediction": (
        swap(
            guidance, "plain", lambda _: lambda conditional, other, weight: conditional + weight * (conditional - other)
        ),
        GUIDED,
    ),
    "guidance: standard deviation of the batch": (
        swap(guidance, "rescaled", lambda _: batch_rescaled),
        GUIDED,
    ),
    "guidance: first timestep of the interval left out": (
        swap(guidance, "is_guided", lambda is_guided: lambda interval, t: is_guided((interval[0] + 1, interval[1]), t)),
        GUIDED,
    ),
    "guidance: last timestep of the interval left out, in samples": (
        swap(guidance, "is_guided", lambda is_guided: lambda interval, t: is_guided((interval[0], interval[1] - 1), t)),
        GUIDED_SAMPLES,
    ),
    "guidance: learned variance guided": (
        swap(guidance, "split_prediction", lambda _: lambda prediction, x: (prediction, None)),
        GUIDED,
    ),
    "guidance: halves swapped": (swap(guidance, "guided_prediction", halves_of_guidance_swapped), GUIDED_SAMPLES),
    "guidance: halves swapped, in edits": (
        swap(guidance, "guided_prediction", halves_of_guidance_swapped),
        "guided edits, float64",
    ),
    "guidance: of the clipped x_0": (swap(guidance, "guided_prediction", guided_after_clipping), GUIDED_SAMPLES),
    "guidance: a class for the null label": (
        swap(
            samplers,
            "tensors",
            lambda tensors: (
                lambda labels, *a: tensors(labels._replace(none=None if labels.none is None else 0 * labels.none), *a)
            ),
        ),
        GUIDED_SAMPLES,
    ),
    "guidance: the guide's labels swapped": (
        swap(
            samplers,
            "tensors",
            lambda tensors: (
                lambda labels, *a: tensors(
                    labels._replace(of_guide=None if labels.of_guide is None else labels.of_guide[::-1].copy()), *a
                )
            ),
        ),
        GUIDED_SAMPLES,
    ),
    "variance's loss teaches the mean": (
        swap(torch_ref.diffusion, "split_prediction", never_detached),
        "one Adam step, learned variance, float64",
    ),
    "learned range upside down": (
        swap(torch_ref.diffusion, "learned_log_variance", lambda f: lambda tables, t, v: f(tables, t, -v)),
        "one Adam step, learned variance, float64",
    ),
    "decoder without its edge bins": (swap(torch_ref.diffusion, "pixel_probability", without_tails), BOUND),
    "beta for posterior variance, in the bound": (
        swap(
            torch_ref.likelihood,
            "model_log_variance",
            lambda f: lambda tables, config, *a: f(tables, replace(config, variance="beta"), *a),
        ),
        BOUND,
    ),
    "beta for beta~ in the decoder": (
        swap(
            torch_ref.likelihood,
            "model_log_variance",
            lambda _: lambda tables, config, t, v: torch.log(torch_ref.diffusion.extract(tables.betas, t)),
        ),
        NETWORK_BOUND,
    ),
    "a timestep of the bound left out": (
        swap(torch_ref.likelihood, "strata", lambda strata: lambda timesteps, count: strata(timesteps - 1, count)),
        BOUND,
    ),
    "natural logarithm for bits, in L_t": (in_nats(torch_ref.diffusion), BOUND),
    "natural logarithm for bits, in L_T": (in_nats(torch_ref.likelihood), BOUND),
    "the first timestep of each range": (
        swap(torch_ref.likelihood, "timesteps_in", first_of_each_range),
        NETWORK_BOUND,
    ),
    "noise of the bound drawn at the number of the range": (
        swap(
            torch_ref.likelihood,
            "noise_at",
            lambda draw: lambda keys, t, *a: draw(keys, np.searchsorted(np.unique(t), t), *a),
        ),
        NETWORK_BOUND,
    ),
    "divergence without the scale": (swap(torch_ref.flow, "velocity", of_noise_alone), FLOW),
    "signs that are not of size 1": (swap(torch_ref.flow, "velocity", larger_signs), FLOW),
    "natural logarithm for bits, in the ODE's density": (in_nats(torch_ref.flow), FLOW),
    "classifier: mean for maximum pooling": (
        swap(torch_ref.classifier, "max_pool", lambda _: lambda x: nn.functional.avg_pool2d(x, 2)),
        CLASSIFIER,
    ),
    "classifier: pooling of the last row and column": (
        swap(torch_ref.classifier, "max_pool", lambda _: aligned_right_and_below),
        CLASSIFIER,
    ),
    "classifier: images reduced by their first pixels": (
        swap(torch_ref.classifier, "average_pool", lambda _: lambda x, size: x[..., :-1:size, :-1:size]),
        CLASSIFIER,
    ),
    "classifier: flattened channels first": (
        swap(torch_ref.classifier, "flatten", lambda _: lambda x: x.flatten(1)),
        CLASSIFIER,
    ),
    "classifier: images in [0, 1]": (
        swap(torch_ref.classifier, "prepare_images", lambda f: lambda *a: (f(*a) + 1) / 2),
        CLASSIFIER,
    ),
    "classifier: summed cross entropy": (
        swap(torch_ref.classifier, "loss", lambda f: lambda network, *a: f(network, *a) * len(a[1])),
        "classifier, gradients, float64",
    ),
    "edm: c_skip and c_out swapped": (swapped_scales, EDM_SAMPLES),
    "edm: error of D without its weight": (swap(EDM, "loss_per_image", unweighted), LOSSES),
    "edm: input not scaled": (
        swap(EDM, "input_scale_and_time", lambda f: lambda self, level: (level * 0 + 1, f(self, level)[1])),
        LOSS_GRADIENTS,
    ),
    "edm: ln(sigma) for ln(sigma) / 4": (swap(EDM, "input_scale_and_time", of_time(lambda time: 4 * time)), LOSSES),
    "edm: ln(sigma) stretched": (
        swap(EDM, "draw_level", lambda f: lambda self, *a: f(self, *a) ** 1.2),
        LOSSES,
    ),
    "edm: noise levels reversed": (swap(EDM, "levels", reversed_levels), EDM_SAMPLES),
    "edm: even noise levels": (
        swap(EDM, "levels", lambda f: lambda self, n: np.linspace(0, self.config.sigma_max, n + 1)),
        EDM_SAMPLES,
    ),
    "edm: Heun's correction in the last step": (swap(solvers, "heun_step", corrected_in_the_last_step), EDM_SAMPLES),
    "edm: Euler for Heun": (swap(solvers, "heun_step", lambda _: solvers.euler_step), EDM_SAMPLES),
    "flow: x_0 - noise for noise - x_0": (swap(Flow, "target", lambda f: lambda *a: -f(*a)), LOSSES),
    "flow: x + t v for x - t v": (
        swap(Flow, "predicted_x_0", lambda f: lambda self, x, level, v: f(self, x, level, -v)),
        FLOW_SAMPLES,
    ),
    "flow: time not scaled": (swap(Flow, "input_scale_and_time", of_time(lambda time: time / 1000)), LOSSES),
    "flow: t = 1 at the image": (swap(Flow, "draw_level", lambda f: lambda *a: 1 - f(*a)), LOSSES),
    "flow: slope after a quarter of the step": (
        swap(solvers, "midpoint_step", a_quarter_into_the_step),
        FLOW_SAMPLES,
    ),
    "min-SNR of the prediction for that of x_0": (
        swap(EDM, "output_scale", lambda _: lambda self, level: level * 0 + 1),
        LOSSES,
    ),
    "P2 without k": (swap(torch_ref.diffusion, "p2_weights", lambda f: lambda snr, g, k: f(snr, g, 0.0)), LOSSES),
    "Huber's loss times delta": (
        swap(
            torch_ref.diffusion,
            "pixel_loss",
            lambda f: lambda error, kind, d: f(error, kind, d) * (d if kind == "huber" else 1),
        ),
        LOSSES,
    ),
    "null row first": (
        swap(conv_block, "add_label", null_row_first),
        "conv_block with labels: outputs, float64",
    ),
    "label added before the time MLP": (
        changed_network(embedded_before_the_mlp),
        "conv_block with labels: outputs, float64",
    ),
    "label instead of time": (
        swap(conv_block, "add_label", lambda add: lambda time, *a: add(0 * time, *a)),
        "conv_block with labels: gradients, float64",
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
    "registered parts: levels of both timesteps swapped": (
        swap(reverse, "own_step", levels_swapped),
        "registered parts, samples, float64",
    ),
    "registered parts: the predicted eps in place of that of the limited x_0": (
        swap(reverse, "own_step", with_the_predicted_eps),
        "registered parts, samples, float64",
    ),
    "registered parts: scale of the loss weight not squared": (
        swap(torch_ref.diffusion, "own_output_scale", lambda scale: lambda *a: scale(*a).abs().sqrt()),
        "registered parts, losses, float64",
    ),
    "registered parts: signal and sigma swapped": (
        swap(torch_ref.diffusion, "noise_level", lambda level: lambda *a: NoiseLevel(*level(*a)[::-1])),
        "registered parts, losses, float64",
    ),
    "data range: images trained on in [-1, 1]": (
        swap(torch_ref.step, "from_levels", lambda f: lambda levels, _: f(levels, USUAL)),
        "data ranges and times, losses, float64",
    ),
    "data range: decoder's sigma not in [-1, 1]": (
        swap(torch_ref.diffusion, "deviation_from_data_range", lambda _: lambda sigma, _: sigma),
        "data ranges and times, bits, float64",
    ),
    "data range: samples not mapped back": (
        swap(samplers, "from_data_range", lambda _: lambda x, _: x),
        "data ranges and times, samples, float64",
    ),
    "data range: x_0 clipped to [-1, 1]": (
        swap(steps, "threshold", lambda f: lambda *a: f(*a[:5])),
        "data ranges and times, samples, float64",
    ),
    "data range: states clipped to [-1, 1]": (
        swap(steps, "clamp_state", lambda f: lambda x, config: f(x, replace(config, data_range=USUAL))),
        "data ranges and times, samples, float64",
    ),
    "time of the network: t in place of what t_input says": (
        swap(discrete, "network_time", lambda _: lambda config, x_t, t: t),
        "data ranges and times, samples, float64",
    ),
    "time of the network: t / T for (t + 1) / T": (
        swap(
            discrete,
            "network_time",
            lambda f: lambda config, x_t, t: f(config, x_t, t - int(config.t_input == "fraction_from_one")),
        ),
        "data ranges and times, losses, float64",
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
    "another purpose number": (
        swap(torch_ref.rng, "key", lambda key: lambda seed, purpose, *address: key(seed, purpose + 1, *address)),
        "bits, uniforms, integers",
    ),
    "betas rounded to float32": (
        swap(torch_ref.schedules, "linear_betas", lambda betas: lambda *a: betas(*a).astype(np.float32).astype(float)),
        "schedule tables",
    ),
    "adm: sines before cosines": (
        swap(
            adm,
            "concatenated_embedding",
            lambda embed: lambda t, f, flip_sin_to_cos: embed(t, f, not flip_sin_to_cos),
        ),
        "adm: outputs, float64",
    ),
    "adm: queries, keys and values before heads": (
        of_attention_blocks("middle_block", new_order=True),
        "adm: outputs, float64",
    ),
    "adm: shift before scale": (changed_weights(adm_halves_swapped), "adm: outputs, float64"),
    "adm: GroupNorm epsilon 1e-6": (changed_network(norm_epsilon), "adm: outputs, float64"),
    "adm: skip order swapped": (concatenated_the_other_way(adm), "adm: outputs, float64"),
    "adm: height and width swapped": (changed_network(sideways), "adm: outputs, float64"),
    "adm: heads before queries, keys and values": (
        of_attention_blocks("output_blocks", new_order=False),
        "adm resampled by blocks, new order: outputs, float64",
    ),
    "adm: t not scaled": (
        changed_network(unscaled_time),
        "adm resampled by blocks, new order: outputs, float64",
    ),
    "adm: maximum for average pooling": (
        swap(adm, "average_pool_2x2", lambda _: lambda x: nn.functional.max_pool2d(x, 2)),
        "adm resampled by blocks, new order: outputs, float64",
    ),
    "adm: heads of the way up as on the way down": (
        of_attention_blocks("output_blocks", heads=4),
        "adm without scales, resampled by pooling: outputs, float64",
    ),
    **{
        f"lucidrains: {fault}": (patch, f"{case}: outputs, float64")
        for fault, patch, case in (
            (
                "the mean subtracted",
                swap(lucidrains, "unit_length", lambda f: lambda x, axis: f(x - x.mean(axis, keepdim=True), axis)),
                "lucidrains",
            ),
            (
                "memory left out",
                swap(lucidrains, "with_memory", lambda _: lambda memory, *pixels: pixels),
                "lucidrains",
            ),
            (
                "softmax over the other axis",
                changed_function(lucidrains, "torch.softmax", lambda f: lambda x, dim: f(x, 1 if dim == -1 else -1)),
                "lucidrains",
            ),
            ("channels before heads", swap(lucidrains, "heads_of_pixels", channels_before_heads), "lucidrains"),
            ("pixels before channels", swap(nn.PixelUnshuffle, "forward", pixels_before_channels), "lucidrains"),
            ("shift before scale", changed_weights(scale_and_shift_swapped), "lucidrains"),
            (
                "frequencies over d/2",
                swap(lucidrains, "frequencies", lambda f: lambda width, theta: f(width + 2, theta)[: width // 2]),
                "lucidrains",
            ),
            ("skip order swapped", concatenated_the_other_way(lucidrains), "lucidrains"),
            ("height and width swapped", changed_network(sideways), "lucidrains"),
            (
                "variance of a sample",
                changed_function(lucidrains, "torch.var_mean", sample_variance),
                "lucidrains 0.27.12",
            ),
            (
                "epsilon 1e-3",
                changed_function(lucidrains, "torch.rsqrt", lambda f: lambda x: f(x + 99e-5)),
                "lucidrains 0.27.12",
            ),
            (
                "queries of length 1 over the channels",
                swap(lucidrains, "unit_length", lambda f: lambda x, axis: f(x, -1)),
                "lucidrains 0.27.12",
            ),
            ("values not divided", changed_network(undivided_values), "lucidrains 1.7.0"),
            (
                "learned frequencies not in turns",
                swap(lucidrains, "math", lambda f: SimpleNamespace(**{**vars(f), "pi": 0.5})),
                "lucidrains 1.9, learned frequencies",
            ),
        )
    },
    "BatchNorm: epsilon": (batch_norm(eps=1e-3), "BatchNorm in training, float64"),
    "BatchNorm: momentum": (batch_norm(momentum=0.01), "BatchNorm in training, float64"),
    "BatchNorm: running statistics in training": (
        swap(nn.BatchNorm2d, "train", lambda train: lambda layer, mode=True: train(layer, False)),
        "BatchNorm in training, float64",
    ),
    "context_unet: contexts not negated": (
        swap(context_unet, "contexts", lambda contexts: lambda *a: -contexts(*a)),
        "context_unet: outputs, float64",
    ),
}


SLOW = {fault for fault, (_, rung) in FAULTS.items() if rung in ladder.SLOW}
SLOW |= {"posterior for beta variance, in samples"}  # draws the 1000-step samples in PyTorch again


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAULTS])
def test_fault_breaks_its_rung(fault):
    patch, name = FAULTS[fault]
    rung = ladder.RUNGS[name]
    measures_training.trained()  # of jax_ddpm, before the fault is there
    with patch():
        assert rung.measure() > rung.budget
