"""torch.nn.MultiheadAttention with modules inside, for networks of ours that have separate projections."""

from collections.abc import Sequence

import numpy as np

from jax_ddpm.doctor.records import Call, Pair
from jax_ddpm.doctor.torch_side import TorchNetwork


def open_attention(network: TorchNetwork, calls: Sequence[Call], pairs: Sequence[Pair]) -> bool:
    """Replace, in the copy of their network, every attention that has no partner in ours. Whether there was one.

    Inside the new module, the packed projection of query, key and value and the output projection are modules, whose
    calls can be paired and whose outputs explain what ours computes.
    """
    import torch

    paired = {pair.theirs.path for pair in pairs}
    paths = {
        call.path
        for call in calls
        if type(call.module) is torch.nn.MultiheadAttention and call.path not in paired and can_open(call)
    }
    for path in paths:
        module = network.modules[path]
        module.__class__ = opened_class()
        module.add_module("in_proj", packed_projection(module))
    network.modules = dict(network.module.named_modules())
    return bool(paths)


def can_open(call: Call) -> bool:
    """Whether the call is attention without masks, with one width and as many keys as queries."""
    module = call.module
    named = {name for name, value in call.keywords.items() if isinstance(value, np.ndarray) and "mask" in name}
    masks = [value for value in call.inputs[3:] if isinstance(value, np.ndarray)]
    plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    plain = plain and len({array.shape for array in call.arrays[:3]}) == 1
    masked = named or masks or call.keywords.get("is_causal")
    return plain and not masked and not (module.training and module.dropout)


def packed_projection(attention):
    """A module without parameters of its own: (query, key, value) -> the three projections side by side."""
    import torch

    class Projection(torch.nn.Module):
        def forward(self, *inputs):
            weights = attention.in_proj_weight.chunk(3)
            biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
            projected = map(torch.nn.functional.linear, inputs, weights, biases)
            return torch.cat(list(projected), -1)

    return Projection()


def opened_class():
    import torch

    class OpenAttention(torch.nn.MultiheadAttention):
        def forward(self, query, key, value, *_, need_weights=True, average_attn_weights=True, **__):
            if not self.batch_first and query.ndim == 3:
                query, key, value = (x.transpose(0, 1) for x in (query, key, value))
            packed = self.in_proj(query, key, value).chunk(3, -1)
            q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for x in packed)
            weights = (q @ k.transpose(-1, -2) / (self.head_dim**0.5)).softmax(-1)
            out = self.out_proj((weights @ v).transpose(-2, -3).flatten(-2))
            if not self.batch_first and query.ndim == 3:
                out = out.transpose(0, 1)
            weights = weights.mean(-3) if average_attn_weights else weights
            return out, weights if need_weights else None

    OpenAttention.__name__ = "MultiheadAttention"
    return OpenAttention
