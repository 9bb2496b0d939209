"""The weights in a checkpoint of a run, which Orbax has written."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.layers import Buffer
from jax_ddpm.spec.data_record import read_record
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import height_and_width
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.own_networks import recorded_imports
from jax_ddpm.spec.run_checkpoints import STATE, Checkpoint, find_damage
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import StateDict
from jax_ddpm.weights.convert import state_dict

MAX_CHANNELS = 16


def read_checkpoint(checkpoint: Checkpoint) -> tuple[StateDict, ModelInfo]:
    """The arrays of a checkpoint by PyTorch name, and the settings of its run.

    Raises UserError for a damaged checkpoint, or one whose run has another network.
    """
    path = checkpoint.run / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        network, diffusion, size = settings["network"], settings["diffusion"], settings["data"]["image_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): expected the config.json of a run.") from None
    config = from_json(NetworkConfig, json.dumps(network), str(path), recorded_imports(checkpoint.run))
    config.check()
    arrays = read_state(checkpoint.folder)
    for channels in (1, 3, *range(2, MAX_CHANNELS + 1)):
        filled = fill(unets.build(config, channels), arrays, checkpoint.weights)
        if filled is not None:
            record = read_record(checkpoint.run) if config.takes_labels else None
            info = ModelInfo(
                network=config,
                image_shape=(*height_and_width(size), channels),
                diffusion=from_json(DiffusionConfig, json.dumps(diffusion), str(path)),
                step=checkpoint.step,
                class_names=record and record.class_names,
            )
            values = {name: value.astype(np.float32) for name, value in state_dict(filled).items()}
            return values, info
    raise UserError(f"{checkpoint.folder} does not hold {checkpoint.weights} weights of the network in {path}.")


def read_state(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their names in it, such as "0007 .ema['output']['bias'].value"."""
    if damage := find_damage(folder):
        raise UserError(f"The checkpoint {folder} is damaged: {damage}.")
    try:
        with warnings.catch_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            warnings.simplefilter("ignore")
            names = checkpointer.metadata((folder / STATE).absolute()).item_metadata.tree
            arguments = ocp.args.PyTreeRestore(
                restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            )
            return checkpointer.restore((folder / STATE).absolute(), args=arguments)
    except Exception as error:  # Orbax wraps the errors of damaged files in many classes
        raise UserError(f"The checkpoint {folder} cannot be read: {one_line(error)}.") from None


def fill(network: nnx.Module, arrays: dict[str, np.ndarray], weights: str) -> nnx.Module | None:
    """The network with the weights ("ema" or "raw") and buffers of a checkpoint; None if their shapes are others."""
    by_path = {name.partition(" ")[2]: value for name, value in arrays.items()}
    graph, params, buffers = nnx.split(network, nnx.Param, Buffer)
    filled = []
    for field, state in ((".ema" if weights == "ema" else ".params", params), (".buffers", buffers)):
        leaves, structure = jax.tree_util.tree_flatten_with_path(state)
        values = [by_path.get(field + jax.tree_util.keystr(path)) for path, _ in leaves]
        if any(value is None or value.shape != leaf.shape for value, (_, leaf) in zip(values, leaves, strict=True)):
            return None
        filled.append(jax.tree_util.tree_unflatten(structure, values))
    return nnx.merge(graph, *filled)
