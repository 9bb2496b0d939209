"""Registry of networks by name: those of `jax_ddpm.unets`, with the parameter names of existing checkpoints.

The docstrings in `jax_ddpm.unets` describe the settings and the allowed image sizes. Here x is (B, image_channels, H,
W), and t integers (B,), or one integer for all images. A network with dropout takes `dropout`, a function h -> h for
training, as an argument of the call.

The networks are used like other modules of PyTorch: in `torch.autocast`, in half precision, with torch.compile and
torch.export. Whatever the precision, t and its frequencies are not rounded, and the prediction has the dtype of the
parameters. The range of t is not checked, because a check of values would stop torch.compile and torch.export. The
networks compute with any t, except `layer_norm`, which looks t up in a table: t >= table_rows is an IndexError, and a
negative t counts from the end.
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
    """Build the network of `config`. Fill its parameters with `weights.initialise` or `load_state_dict`.

    dtype: that of the activations. torch.bfloat16, or None: the dtype of the parameters. The prediction always has the
    dtype of the parameters. Switches TF32 off for the whole process, so that GPUs compute float32 in float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)
