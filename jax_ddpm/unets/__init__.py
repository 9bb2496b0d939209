"""The networks by the name in their settings, the five of this package and those that a user registers."""

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
"""Of registered networks, by their class's name: a table as in `weights.torch_names`."""


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nnx.Module:
    """The network of `config`, empty (its parameters are NaN): `weights.initialise` or `load_state_dict` fills it.

    `dtype` is that of the activations; None means the parameters' own.
    """
    return NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)


def register(
    config_class: type[NetworkConfig], network_class: Callable[..., nnx.Module], torch_names: Mapping | None = None
) -> None:
    """Make a network of one's own known, so that it is trained, saved, loaded and sampled like the others.

    config_class: a frozen dataclass, subclass of NetworkConfig, whose field `name` has a Literal and its value as
    default. network_class(image_channels, **the other fields, dtype=None): a module (x, t) -> prediction, x float
    (B, H, W, C), t integers (B,), whose variables are nnx.Param or layers.Buffer. Layers of `jax_ddpm.layers` get
    their initial values from the run's seed; what else it holds keeps the values that it was built with. In files its
    arrays have the names of its attributes, or those of a table as in `weights/torch_names.py`. Raises
    UserError for a name that is taken.
    """
    name = config_class().name
    if NETWORKS.get(name, config_class) is not config_class:
        raise UserError(f"A network '{name}' exists already: choose another name.")
    NETWORKS[name], NETWORK_CLASSES[name] = config_class, network_class
    if torch_names is not None:
        REGISTERED_TORCH_NAMES[network_class.__name__] = dict(torch_names)
