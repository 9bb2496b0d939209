"""Registry of networks by name: those of this package, and those added with `register`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import BUILT_IN, NetworkConfig
from jax_ddpm.spec.own_networks import check_self_condition
from jax_ddpm.spec.presets import add_network
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.unets.adm import ADMUNet
from jax_ddpm.unets.adm_classifier import ADMClassifier
from jax_ddpm.unets.annotated import AnnotatedUNet
from jax_ddpm.unets.annotated_convnext import AnnotatedConvNextUNet
from jax_ddpm.unets.attention import AttentionUNet
from jax_ddpm.unets.context_unet import ContextUNet
from jax_ddpm.unets.conv_block import ConvBlockUNet
from jax_ddpm.unets.ddpm import DDPMUNet
from jax_ddpm.unets.ddpm_conditional import DDPMConditionalUNet
from jax_ddpm.unets.flax_layers import adapt
from jax_ddpm.unets.layer_norm import LayerNormUNet
from jax_ddpm.unets.lucidrains import LucidrainsUNet
from jax_ddpm.unets.simple_unet import SimpleUNet
from jax_ddpm.unets.strided import StridedUNet
from jax_ddpm.unets.superminddpm import SuperMinDDPM
from jax_ddpm.unets.tf32 import in_full_float32, in_tf32

NETWORK_CLASSES: dict[str, Callable[..., nnx.Module]] = {
    "conv_block": ConvBlockUNet,
    "strided": StridedUNet,
    "attention": AttentionUNet,
    "layer_norm": LayerNormUNet,
    "ddpm": DDPMUNet,
    "adm": ADMUNet,
    "adm_classifier": ADMClassifier,
    "lucidrains": LucidrainsUNet,
    "simple_unet": SimpleUNet,
    "context_unet": ContextUNet,
    "superminddpm": SuperMinDDPM,
    "annotated": AnnotatedUNet,
    "annotated_convnext": AnnotatedConvNextUNet,
    "ddpm_conditional": DDPMConditionalUNet,
}
REGISTERED_TORCH_NAMES: dict[Callable, dict[str, str]] = {}
"""From the class of a registered network to the table that `register` got, in the format of `weights.torch_names`."""


def build(config: NetworkConfig, image_channels: int = 1, dtype: Any = None) -> nnx.Module:
    """Build the network of `config`. Its parameters are NaN: fill them with `weights.initialise` or `load_state_dict`.

    The network is called as network(x, t) with x (B, H, W, C) and t integers (B,) in [0, T), and returns a prediction
    of x's shape. With learned_variance, the prediction has twice the channels. A network with classes is called as
    network(x, t, labels) with labels integers (B,); None stands for its null label.

    Args:
        config: settings of the network, such as `ConvBlockConfig`.
        image_channels: C.
        dtype: dtype of the activations. Default: that of the parameters.

    Raises:
        UserError: the network is not registered, or its attribute self_condition does not fit its call.
    """
    if config.name not in NETWORK_CLASSES:
        raise UserError(
            f"The network '{config.name}' has no Flax module here. Call jax_ddpm.register({type(config).__name__}, "
            "YourModule),\nin the file that defines its settings."
        )
    network = NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)
    if config.name not in BUILT_IN:
        adapt(network)
        if isinstance(network, nnx.Module):
            check_self_condition(network, network.__call__)
        if isinstance(network, nnx.Module) and dtype != jnp.bfloat16:
            in_full_float32(network)
    return network


def build_in(precision: str, config: NetworkConfig, image_channels: int = 1) -> nnx.Module:
    """`build` for a precision as of `spec.types.Precision`. The dtype of the parameters is that of their values.

    bfloat16: of the activations. tf32: products in TF32 on GPUs, in three bfloat16 passes on TPUs.
    """
    network = build(config, image_channels, jnp.bfloat16 if precision == "bfloat16" else None)
    return in_tf32(network) if precision == "tf32" else network


def register(
    config_class: type[NetworkConfig],
    network_class: Callable[..., nnx.Module],
    torch_names: Mapping[str, str] | None = None,
    *,
    recipe: RunConfig | None = None,
) -> None:
    """Register a network of your own, so that it can be trained, saved, loaded and sampled like the built-in ones.

    Args:
        config_class: a frozen dataclass and subclass of `NetworkConfig`. Its field `name` is annotated Literal["..."]
            and has that string as default. The other fields are the arguments of the network, and have defaults.
        network_class: called as network_class(image_channels, **other_fields, dtype=None). Returns an NNX module
            (x, t) -> prediction, with x float (B, H, W, C) and t integers (B,). Its variables must be nnx.Param or
            `layers.Buffer`, or those of Flax's own layers. Layers of `jax_ddpm.layers` get initial values from the seed
            of a run. All other variables keep the values that the constructor gives them.
        torch_names: {PyTorch name: path in the network} for names that differ. The attribute TORCH_NAMES of the class
            is the usual place of this table; the argument replaces it.
        recipe: the preset with the network's name. Default: the preset tiny with this network.

    Raises:
        UserError: the name belongs to another network or preset, or `recipe` is of another network.
    """
    name = add_network(config_class, recipe)
    NETWORK_CLASSES[name] = network_class
    if torch_names is not None:
        REGISTERED_TORCH_NAMES[network_class] = dict(torch_names)
