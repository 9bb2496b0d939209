"""The networks by the class of their settings."""

import torch
from torch import nn

from torch_ref.config import ConvBlockConfig, NetworkConfig
from torch_ref.unets.conv_block import ConvBlockUNet


def build_conv_block(config: ConvBlockConfig, image_channels: int, dtype) -> ConvBlockUNet:
    return ConvBlockUNet(image_channels, config.widths, config.time_width, dtype)


BUILDERS = {"conv_block": build_conv_block}


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nn.Module:
    """The network of `config`: `weights.initialise` or `load_state_dict` fills it.

    `dtype` is that of the activations: torch.bfloat16, or None for the parameters' own. Switches TF32 off for the
    process, so that on GPUs too float32 means float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return BUILDERS[config.name](config, image_channels, dtype)
