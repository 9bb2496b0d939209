"""Registry of networks by name: the five of this package, and those added with `register`."""

from collections.abc import Callable, Mapping

from flax import nnx

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NETWORKS, NetworkConfig
from jax_ddpm.unets.attention import AttentionUNet
from jax_ddpm.unets.conv_block import ConvBlockUNet
from jax_ddpm.unets.ddpm import DDPMUNet
from jax_ddpm.unets.layer_norm import LayerNormUNet
from jax_ddpm.unets.strided import StridedUNet

NETWORK_CLASSES: dict[str, Callable[..., nnx.Module]] = {
    "conv_block": ConvBlockUNet,
    "strided": StridedUNet,
    "attention": AttentionUNet,
    "layer_norm": LayerNormUNet,
    "ddpm": DDPMUNet,
}
BUILT_IN = frozenset(NETWORK_CLASSES)
REGISTERED_TORCH_NAMES: dict[str, dict[str, str]] = {}
"""From the class name of a registered network to its table, in the format of `weights.torch_names`."""


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nnx.Module:
    """Build the network of `config`. Its parameters are NaN: fill them with `weights.initialise` or `load_state_dict`.

    The network is called as network(x, t) with x (B, H, W, C) and t integers (B,) in [0, T), and returns a prediction
    of x's shape. With learned_variance, the prediction has twice the channels.

    Args:
        config: settings of the network, such as `ConvBlockConfig`.
        image_channels: C.
        dtype: dtype of the activations. Default: that of the parameters.
    """
    return NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)


def register(
    config_class: type[NetworkConfig], network_class: Callable[..., nnx.Module], torch_names: Mapping | None = None
) -> None:
    """Register a network of your own, so that it can be trained, saved, loaded and sampled like the built-in ones.

    Args:
        config_class: a frozen dataclass and subclass of `NetworkConfig`. Its field `name` is annotated Literal["..."]
            and has that string as default. The other fields are the arguments of the network.
        network_class: called as network_class(image_channels, **other_fields, dtype=None). Returns an NNX module
            (x, t) -> prediction, with x float (B, H, W, C) and t integers (B,). Its variables must be nnx.Param or
            `layers.Buffer`. Layers of `jax_ddpm.layers` get initial values from the seed of a run. All other variables
            keep the values that the constructor gives them.
        torch_names: table of the arrays' names in files, in the format of `weights.torch_names`. Default: the paths of
            the network's attributes.

    Raises:
        UserError: the name belongs to another network.
    """
    name = config_class().name
    if NETWORKS.get(name, config_class) is not config_class:
        raise UserError(f"A network '{name}' exists already: choose another name.")
    NETWORKS[name], NETWORK_CLASSES[name] = config_class, network_class
    if torch_names is not None:
        REGISTERED_TORCH_NAMES[network_class.__name__] = dict(torch_names)
