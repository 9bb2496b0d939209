"""Registry of networks by name: those of `jax_ddpm.unets`, with the parameter names of existing checkpoints.

The docstrings in `jax_ddpm.unets` describe the settings and the allowed image sizes. Here x is (B, image_channels, H,
W), and t integers (B,), or one integer for all images; so are labels, the third argument, for a network with classes
(None: the null label). A network with dropout takes `dropout`, a function h -> h for training, as an argument of the
call.

The networks are used like other modules of PyTorch: in `torch.autocast`, in half precision, with torch.compile and
torch.export. Whatever the precision, t and its frequencies are not rounded, and the prediction has the dtype of the
parameters. The range of t is not checked, because a check of values would stop torch.compile and torch.export. The
networks compute with any t, except `layer_norm`, which looks t up in a table: t >= table_rows is an IndexError, and a
negative t counts from the end.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import BUILT_IN, NetworkConfig
from jax_ddpm.spec.own_networks import check_self_condition
from jax_ddpm.spec.presets import add_network
from jax_ddpm.spec.run_config import RunConfig
from torch_ref.dtypes import activations
from torch_ref.unets.adm import ADMUNet
from torch_ref.unets.adm_classifier import ADMClassifier
from torch_ref.unets.annotated import AnnotatedUNet
from torch_ref.unets.annotated_convnext import AnnotatedConvNextUNet
from torch_ref.unets.attention import AttentionUNet
from torch_ref.unets.context_unet import ContextUNet
from torch_ref.unets.conv_block import ConvBlockUNet
from torch_ref.unets.ddpm import DDPMUNet
from torch_ref.unets.ddpm_conditional import DDPMConditionalUNet
from torch_ref.unets.layer_norm import LayerNormUNet
from torch_ref.unets.lucidrains import LucidrainsUNet
from torch_ref.unets.simple_unet import SimpleUNet
from torch_ref.unets.strided import StridedUNet
from torch_ref.unets.superminddpm import SuperMinDDPM
from torch_ref.unets.tf32 import in_tf32, set_tf32

NETWORK_CLASSES: dict[str, Callable[..., nn.Module]] = {
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


def build(config: NetworkConfig, image_channels: int = 1, dtype=None) -> nn.Module:
    """Build the network of `config`. Fill its parameters with `weights.initialise` or `load_state_dict`.

    dtype: that of the activations. torch.bfloat16, or None: the dtype of the parameters. The prediction always has the
    dtype of the parameters. Switches TF32 off for the whole process, so that GPUs compute float32 in float32. Raises
    UserError if the network is not registered, or if its attribute self_condition does not fit its call.
    """
    set_tf32(False, False)
    if config.name not in NETWORK_CLASSES:
        raise UserError(
            f"The network '{config.name}' has no PyTorch module here. Call torch_ref.register({type(config).__name__}, "
            "YourModule),\nin the file that defines its settings."
        )
    if config.name in BUILT_IN:
        return NETWORK_CLASSES[config.name](image_channels, **config.arguments, dtype=dtype)
    network = NETWORK_CLASSES[config.name](image_channels, **config.arguments)
    check_self_condition(network, network.forward)
    return network if dtype is None else with_autocast(network, dtype)


def build_in(precision: str, config: NetworkConfig, image_channels: int = 1) -> nn.Module:
    """`build` for a precision as of `spec.types.Precision`. The dtype of the parameters is that of their values.

    bfloat16: of the activations. tf32: products in TF32 on GPUs, as of `unets.tf32.in_tf32`.
    """
    network = build(config, image_channels, torch.bfloat16 if precision == "bfloat16" else None)
    return in_tf32(network) if precision == "tf32" else network


def with_autocast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network, which from now on computes in autocast; the prediction has the dtype of x."""
    kind = type(network)

    @functools.wraps(kind.forward)
    def in_autocast(self, x, t, **labels):
        with activations(x, dtype):
            return kind.forward(self, x, t, **labels).to(x.dtype)

    # A subclass: a function in the attribute `forward` would, in a copy such as an EMA, use the original's weights.
    network.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "forward": in_autocast})
    return network


def register(
    config_class: type[NetworkConfig],
    network_class: Callable[..., nn.Module],
    *,
    recipe: RunConfig | None = None,
) -> None:
    """Register a network of your own, so that `load_model` and `--framework torch` build your module for it.

    Args:
        config_class, recipe: as in `jax_ddpm.register`, which registers the Flax module of the same network.
        network_class: called as network_class(image_channels, **other_fields), a class or a function. Returns a module
            (x, t) -> prediction, with x float (B, C, H, W) and t int64 (B,). One with classes is called as
            module(x, t, labels=labels), with labels int64 (B,).

    Raises:
        UserError: as in `jax_ddpm.register`.
    """
    NETWORK_CLASSES[add_network(config_class, recipe)] = network_class
