"""The networks by the class of their settings."""

from flax import nnx

from jax_ddpm.config import ConvBlockConfig, NetworkConfig
from jax_ddpm.unets.conv_block import ConvBlockUNet


def build_conv_block(config: ConvBlockConfig, image_channels: int, dtype) -> ConvBlockUNet:
    return ConvBlockUNet(image_channels, config.widths, config.time_width, dtype)


BUILDERS = {"conv_block": build_conv_block}


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nnx.Module:
    """The network of `config`, empty (its parameters are NaN): `weights.initialise` or `load_state_dict` fills it.

    `dtype` is that of the activations; None means the parameters' own.
    """
    return BUILDERS[config.name](config, image_channels, dtype)
