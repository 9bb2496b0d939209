"""Faults in networks and their layers: how each is seeded, and its rung. Small teaching networks: `faults_teaching`."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

import torch_ref.embeddings
import torch_ref.unets
import torch_ref.weights
from parity_tests.seeding import swap
from torch_ref.unets import (
    adm,
    attention,
    conv_block,
    ddpm,
    layer_norm,
    lucidrains,
    strided,
)


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


def padded_left_and_above(_):
    return lambda self, x, *_: self.conv(nn.functional.pad(x, (1, 0, 1, 0)))


def halves_swapped(name, value):
    """Shift and scale of a residual block the other way round."""
    half = len(value) // 2
    return np.concatenate([value[half:], value[:half]]) if ".time_emb_proj." in name else value


def groups_as_elsewhere(network):
    network.mid_block.attentions[0].group_norm.num_groups = 32


def sideways(network):
    """Height and width change places on the way in, and on the way out."""
    forward = network.forward
    network.forward = lambda x, t: forward(x.mT, t).mT


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
}
