"""The networks by the name in their settings: `jax_ddpm.unets` again, under the parameter names of checkpoints.

A network is called as network(x, t) and predicts an array of x's shape, (B, image_channels, H, W) around [-1, 1]; t are
integers (B,) in [0, T). It computes activations in its `dtype` (torch.bfloat16, or None: the parameters' own) and
returns the parameters' dtype. A network with dropout also takes `dropout`, a function h -> h, in training.
"""

from collections.abc import Callable

import torch
from torch import nn

from jax_ddpm.spec.network_config import NetworkConfig
from torch_ref.unets.attention import AttentionUNet
from torch_ref.unets.conv_block import ConvBlockUNet
from torch_ref.unets.ddpm import DDPMUNet
from torch_ref.unets.layer_norm import LayerNormUNet
from torch_ref.unets.strided import StridedUNet

NETWORK_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "conv_block": ConvBlockUNet,
    "strided": StridedUNet,
    "attention": AttentionUNet,
    "layer_norm": LayerNormUNet,
    "ddpm": DDPMUNet,
}


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nn.Module:
    """The network of `config`: `weights.initialise` or `load_state_dict` fills it.

    `dtype` is that of the activations: torch.bfloat16, or None for the parameters' own. Switches TF32 off for the
    process, so that on GPUs too float32 means float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)
