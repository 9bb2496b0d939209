"""Models with their weights, strict state dicts of NumPy arrays as in `jax_ddpm.weights`, and initial values."""

import functools
import math
import os
import shlex
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from jax_ddpm.spec.errors import UserError, require_one_of
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.model_files import read_model
from jax_ddpm.spec.network_config import BUILT_IN, NetworkConfig
from jax_ddpm.spec.own_networks import import_flags
from jax_ddpm.spec.run_checkpoints import Checkpoint
from jax_ddpm.spec.state_dict import check_arrays
from jax_ddpm.spec.types import TF32_ON_CPUS, Precision, StateDict
from torch_ref import rng, unets
from torch_ref.unets import adm, attention, lucidrains


def load_model(
    path: str | os.PathLike,
    image_size: ImageSize | None = None,
    precision: str = "float32",
    *,
    weights: str | None = None,
    step: int | None = None,
    ema_width: float | None = None,
    network: NetworkConfig | None = None,
    network_settings: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
    **diffusion,
) -> nn.Module:
    """Load a trained model: a module in eval mode with its metadata, a ModelInfo, as the attribute `info`.

    model(x, t): x (B, C, H, W), t integers (B,) in [0, T), or one integer for all images. If model.info.diffusion says
    another `t_input` than index, `torch_ref.objectives.discrete.by_timestep(model, model.info.diffusion)` takes these
    integers. Arguments and errors are those of `jax_ddpm.load_model`. A run's checkpoints are refused: they need JAX.
    """
    require_one_of("precision", precision, Precision)
    values, info = read_model(
        path,
        image_size,
        weights=weights,
        step=step,
        ema_width=ema_width,
        network=network,
        network_settings=network_settings,
        shapes_of=array_shapes,
        read_checkpoint=refuse_checkpoint,
        log=log,
        **diffusion,
    )
    if info.network.name in BUILT_IN:
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            check_state_dict(unets.build(info.network, info.image_shape[2]), values)
    if precision == "tf32" and not torch.cuda.is_available():
        log(TF32_ON_CPUS)
    built = unets.build_in(precision, info.network, info.image_shape[2])
    load_state_dict(built, values, np.float64 if precision == "float64" else np.float32)
    built.info = info
    return built.eval()


@functools.lru_cache(maxsize=64)
def array_shapes(config: NetworkConfig, image_channels: int) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a network, by name, without BatchNorm's counters."""
    with torch.device("meta" if config.name in BUILT_IN else "cpu"):  # a module of the user's own may need values
        network = unets.build(config, image_channels)
    return {name: tuple(value.shape) for name, value in state_arrays(network).items()}


def state_arrays(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a network without BatchNorm's counters of batches, which change nothing."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def refuse_checkpoint(checkpoint: Checkpoint) -> NoReturn:
    """Raise UserError that says how to make a file of weights from a checkpoint."""
    flags = ["--weights", checkpoint.weights, *import_flags()]
    raise UserError(
        f"{checkpoint.folder} is a checkpoint of JAX (Orbax), which torch_ref does not read. Convert it:\n"
        f"{shlex.join(['jax-ddpm', 'convert', str(checkpoint.folder), 'model.safetensors', *flags])}"
    )


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def state_dict(network: nn.Module) -> StateDict:
    """The parameters and buffers of a network, copied to NumPy."""
    return {name: value.detach().cpu().numpy().copy() for name, value in state_arrays(network).items()}


def check_state_dict(network: nn.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """`spec.state_dict.check_arrays` for `network`, which may be on the meta device."""
    shapes = {name: tuple(value.shape) for name, value in state_arrays(network).items()}
    check_arrays(type(network).__name__, shapes, values, dtype)


def load_state_dict(network: nn.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Load a state dict, cast to `dtype`, into `network`, in place. Raises UserError if it does not fit."""
    check_state_dict(network, values, dtype)
    filled = {name: torch.from_numpy(np.array(values[name], dtype)) for name in state_arrays(network)}
    network.to(next(iter(filled.values())).dtype).load_state_dict(filled, strict=True)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Fill a network, in place, with the values of `jax_ddpm.weights.initialise`: PyTorch's defaults.

    Each parameter is drawn from the address (PARAMS, crc32 of its name). Raises UserError for an unknown kind of layer.
    """
    for path, layer in network.named_modules():
        parameters = dict(layer.named_parameters(path, recurse=False))
        if isinstance(layer, attention.TimeEmbedding):
            u = draw_uniform(seed, f"{path}.freqs", (2, *layer.freqs.shape))
            layer.freqs.copy_(torch.from_numpy(np.pi * box_muller(u)))
        elif isinstance(layer, lucidrains.Sinusoids | lucidrains.LinearAttention | lucidrains.Attention):
            for name, value in (*parameters.items(), *layer.named_buffers(path, recurse=False)):
                if name.endswith((".weights", ".mem_kv")):
                    value.copy_(torch.from_numpy(box_muller(draw_uniform(seed, name, (2, *value.shape)))))
        elif isinstance(layer, lucidrains.ChannelNorm):
            layer.g.fill_(1)
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm | BatchNorm):
            for name, parameter in parameters.items():
                parameter.fill_(1 if name.endswith("weight") else 0)
            if isinstance(layer, BatchNorm):
                layer.reset_running_stats()
        elif isinstance(layer, nn.MultiheadAttention):
            weight = layer.in_proj_weight
            bound = np.float32(math.sqrt(6 / sum(weight.shape)))
            weight.copy_(torch.from_numpy((2 * draw_uniform(seed, f"{path}.in_proj_weight", weight.shape) - 1) * bound))
            if layer.in_proj_bias is not None:
                layer.in_proj_bias.fill_(0)
        elif isinstance(layer, nn.Embedding):
            u = draw_uniform(seed, f"{path}.weight", (2, *layer.weight.shape))
            layer.weight.copy_(torch.from_numpy(box_muller(u)))
        elif isinstance(layer, adm.ZeroConv | adm.ZeroProjection):
            for parameter in parameters.values():
                parameter.fill_(0)
        elif isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            bound = np.float32(1 / math.sqrt(fan_in(layer)))
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy((2 * draw_uniform(seed, name, parameter.shape) - 1) * bound))
            is_output = isinstance(layer, NonDynamicallyQuantizableLinear)  # a MultiheadAttention's out_proj
            if is_output and layer.bias is not None:
                layer.bias.fill_(0)
        elif parameters:
            raise UserError(
                f"No initial values are known for {path}, a {type(layer).__name__}. Start from a file of weights: "
                "--init-from FILE (in Python: init_from='FILE')."
            )


def box_muller(u: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform numbers u (2, ...): Box & Muller 1958. NumPy, as in jax_ddpm."""
    u = u.astype(np.float64)
    return np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])


def draw_uniform(seed: int, name: str, shape) -> np.ndarray:
    """Uniform float32 numbers in [0, 1) from the address (PARAMS, crc32 of the name)."""
    return rng.uniform(rng.key(seed, rng.PARAMS, zlib.crc32(name.encode())), tuple(shape)).numpy()


def fan_in(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d) -> int:
    """What PyTorch's initialisers call fan-in: for a transposed convolution the *output* channels times k^2."""
    return math.prod(layer.weight.shape[1:])
