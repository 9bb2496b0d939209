"""Faults in the networks of tutorials, from `context_unet` to `ddpm_conditional`: how each is seeded, and its rung."""

from functools import partial

import torch
from torch import nn

from parity_tests.faults_networks import (
    changed_function,
    changed_network,
    changed_weights,
    concatenated_the_other_way,
    norm_epsilon,
    sample_variance,
    scale_and_shift_swapped,
    sideways,
)
from parity_tests.seeding import swap
from torch_ref.unets import annotated, annotated_convnext, context_unet, ddpm_conditional


def layer_norm_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6


def two_groups(network):
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups = 2


def null_label_is_the_last_class(add_class):
    def faulty(time, labels, embedding, null_index):
        labels = torch.full((len(time),), null_index) if labels is None else labels
        return add_class(time, torch.clamp(labels, max=embedding.num_embeddings - 1), embedding, null_index)

    return faulty


def plus_the_normalised(self, x):
    """Self-attention plus its normalised input."""
    normal = self.ln(x.movedim(1, -1)).movedim(-1, 1)
    h = self.mha(normal) + normal
    return self.ff_self(h.movedim(1, -1)).movedim(-1, 1) + h


def other_slope(network):
    for layer in network.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = 0.02


def normalized_after_activation(network):
    for block in network.conv[:-1]:
        conv, norm, activation = block
        block.forward = nn.Sequential(conv, activation, norm).forward


def kernels_scaled(kernel_scale):
    def change(network):
        for layer in network.modules():
            if isinstance(layer, annotated.ScaledConv):
                layer.kernel_scale = kernel_scale

    return changed_network(change)


def groups_of_attention(network):
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm) and layer.num_groups == 1:
            layer.num_groups = 2


def depthwise_transposed(name, value):
    return value.swapaxes(2, 3) if name.endswith("ds_conv.weight") else value


FAULTS = {
    "context_unet: contexts not negated": (
        swap(context_unet, "contexts", lambda contexts: lambda *a: -contexts(*a)),
        "context_unet: outputs, float64",
    ),
    "superminddpm: another slope of leaky ReLU": (
        changed_network(other_slope),
        "superminddpm: outputs, float64",
    ),
    "superminddpm: norm after the activation": (
        changed_network(normalized_after_activation),
        "superminddpm: outputs, float64",
    ),
    **{
        f"annotated: {fault}": (patch, f"{case}: outputs, float64")
        for fault, patch, case in (
            ("kernels divided", kernels_scaled("divided"), "annotated"),
            ("kernels multiplied", kernels_scaled("multiplied"), "annotated with kernels divided"),
            ("variance of a sample", changed_function(annotated, "torch.var_mean", sample_variance), "annotated"),
            ("attention with two groups", changed_network(groups_of_attention), "annotated"),
            ("GroupNorm epsilon 1e-6", changed_network(norm_epsilon), "annotated"),
            (
                "attention without its input",
                swap(annotated.PreNorm, "forward", lambda forward: lambda self, x: forward(self, x) - x),
                "annotated",
            ),
            (
                "softmax over the other axis",
                changed_function(annotated, "torch.softmax", lambda f: lambda x, dim: f(x, 1 if dim == -1 else -1)),
                "annotated",
            ),
            ("shift before scale", changed_weights(scale_and_shift_swapped), "annotated"),
            ("skip order swapped", concatenated_the_other_way(annotated), "annotated"),
            ("height and width swapped", changed_network(sideways), "annotated"),
        )
    },
    **{
        f"annotated_convnext: {fault}": (patch, "annotated_convnext: outputs, float64")
        for fault, patch in (
            ("depthwise kernels' rows and columns swapped", changed_weights(depthwise_transposed)),
            ("norms with two groups", changed_network(groups_of_attention)),
            ("GroupNorm epsilon 1e-6", changed_network(norm_epsilon)),
            ("skip order swapped", concatenated_the_other_way(annotated_convnext)),
        )
    },
    "bilinear interpolation: corners not aligned": (
        swap(
            ddpm_conditional,
            "bilinear_2x2",
            lambda _: partial(nn.functional.interpolate, scale_factor=2, mode="bilinear", align_corners=False),
        ),
        "bilinear interpolation, float64",
    ),
    "labels without a null row: the null label is the last class": (
        swap(ddpm_conditional, "add_class", null_label_is_the_last_class),
        "labels without a null row, float64",
    ),
    **{
        f"ddpm_conditional: {fault}": (patch, "ddpm_conditional: outputs, float64")
        for fault, patch in (
            ("LayerNorm epsilon", changed_network(layer_norm_epsilon)),
            ("GroupNorm with two groups", changed_network(two_groups)),
            ("skip order swapped", concatenated_the_other_way(ddpm_conditional)),
            (
                "attention plus its normalised input",
                swap(ddpm_conditional.AttentionBlock, "forward", lambda _: plus_the_normalised),
            ),
            ("GELU by tanh", swap(ddpm_conditional.F, "gelu", lambda gelu: partial(gelu, approximate="tanh"))),
            (
                "frequencies over d/2 - 1",
                swap(ddpm_conditional, "frequencies", lambda f: lambda width: f(width) ** (width / (width - 2))),
            ),
        )
    },
}
