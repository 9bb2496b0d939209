"""Everything that a training step reads and writes, as one pytree."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_ddpm.layers import Buffer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The training state.

    step: int32, the number of optimiser steps done. ema: None without EMA. buffers: arrays that are not trained:
    constants, and the running statistics of BatchNorm, which a step replaces.
    power_ema: the power-function averages, one for each of `power_ema_widths`; empty without --power-ema.
    """

    step: jax.Array | jax.ShapeDtypeStruct | jax.stages.ArgInfo | jax.sharding.NamedSharding
    params: nnx.State
    ema: nnx.State | None
    optimizer: optax.OptState
    buffers: nnx.State
    power_ema: tuple[nnx.State, ...] = ()

    @property
    def weights(self) -> nnx.State:
        """The weights used for sampling, validation and export: the EMA if there is one, else `params`."""
        return self.params if self.ema is None else self.ema


def create_state(
    network: nnx.Module, optimizer: optax.GradientTransformation, ema: bool, dtype=jnp.float32, power_ema: bool = False
):
    """Split an initialised network into (graph, state at step 0). All averages start as copies of the parameters."""
    graph, params, buffers = nnx.split(network, nnx.Param, Buffer)
    params, buffers = jax.tree.map(lambda x: jnp.array(x, dtype), (params, buffers))
    return graph, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        optimizer=optimizer.init(params),
        buffers=buffers,
        power_ema=tuple(jax.tree.map(jnp.copy, params) for _ in range(2 * power_ema)),
    )


def num_parameters(params: nnx.State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
