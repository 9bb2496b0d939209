"""The programs of a run, its training dispatch and its sampler, lowered for a target."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm import ops
from jax_ddpm.sampling import samplers
from jax_ddpm.sampling.guidance import self_conditioned
from jax_ddpm.sampling.reverse import initial_carry, sampling_timesteps
from jax_ddpm.sampling.steps import initial_history
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import feed
from jax_ddpm.training.fsdp import state_shardings
from jax_ddpm.training.prepare import build_network, count_steps
from jax_ddpm.training.state import TrainState, create_state
from jax_ddpm.training.step import make_optimizer


@dataclass(frozen=True)
class Lowered:
    """A program for a target, before it is compiled."""

    program: Any
    """Of `jax.jit(...).trace(...).lower()`."""
    jaxpr: Any
    """The program as JAX traced it, with plain operations, for counting."""
    arguments: dict[str, Any]
    """Its arguments by what they are, each a tree of shapes."""
    steps: int
    """Training or sampling steps that one call does."""

    @property
    def donated(self) -> int:
        """The number of arrays that the call may overwrite."""
        return len(jax.tree.leaves(self.arguments.get("state", ())))


def check_batch(devices: list, batch_size: int, accumulate: int = 1) -> None:
    if batch_size % (len(devices) * accumulate):
        times = f" times --accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(f"batch_size = {batch_size}: expected a multiple of the {len(devices)} devices{times}.")


def abstract_state(config: RunConfig, image_channels: int, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """Graph and shapes of a run's training state, with its shardings. Its weights are not made."""
    network, optimizer = build_network(config, image_channels), make_optimizer(config.training)
    dtype = np.float64 if config.training.precision == "float64" else np.float32
    graphs = []

    def make():
        graph, state = create_state(network, optimizer, config.training.ema, dtype, config.training.power_ema)
        graphs.append(graph)
        return state

    state = jax.eval_shape(make)
    shardings = state_shardings(state, mesh, config.training.fsdp)
    if isinstance(shardings, NamedSharding):
        return graphs[0], placed(state, shardings)
    return graphs[0], jax.tree.map(placed, state, shardings)


def placed(tree, sharding):
    """Shapes, with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def lower_training(
    config: RunConfig, devices: list, platform: str, num_images: int, image_shape: tuple[int, int, int]
) -> Lowered:
    """A dispatch of training steps on all the devices, for a data set of N images (H, W, C).

    platform: of the devices, as `jax.default_backend` names it. Raises UserError for a batch that the devices cannot
    share evenly.
    """
    training = config.training
    check_batch(devices, training.batch_size, training.accumulate)
    mesh = Mesh(np.asarray(devices), ("data",))
    with ops.compile_for(platform):
        inputs = feed.program_inputs(config, mesh, num_images, image_shape)
        is_resident = inputs[0].shape[0] == num_images
        graph, state = abstract_state(config, image_shape[2], mesh)
        total_steps = count_steps(config, num_images)[1]
        dispatch = feed.make_program(
            graph, make_optimizer(training), config, total_steps, mesh, image_shape, is_resident
        )
        traced = dispatch.trace(state, *inputs)
        with ops.plain():
            jaxpr = traced.jaxpr if platform != "cpu" else dispatch.trace(state, *inputs).jaxpr
        steps = feed.largest_dispatch(config, is_resident)
        return Lowered(traced.lower(), jaxpr, {"state": state, "images": inputs[0]}, steps)


def lower_sampling(
    config: RunConfig, devices: list, platform: str, num_images: int, image_shape: tuple[int, int, int]
) -> Lowered:
    """A whole reverse process for a batch of N images (H, W, C), split over the devices, with the run's sampler.

    Raises UserError for a number of images that the devices cannot share evenly.
    """
    check_batch(devices, num_images)
    sampler, diffusion = config.sampling, config.diffusion
    mesh = Mesh(np.asarray(devices), ("data",))
    replicated, by_image = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    dtype = jnp.dtype(jnp.float64 if config.training.precision == "float64" else jnp.float32)
    with ops.compile_for(platform):
        network = build_network(config, image_shape[2])
        graph, state = nnx.split((network, None, None))
        state = placed(state, replicated)
        chain = sampling_timesteps(diffusion, sampler)
        keys = placed(jax.eval_shape(lambda: samplers.image_keys(0, np.arange(num_images))), by_image)

        def initial(x_T):
            return initial_carry(x_T, chain, 0, initial_history(x_T, sampler, self_conditioned(network)))

        x_T = jax.ShapeDtypeStruct((num_images, *image_shape), dtype)
        carry, xs = jax.eval_shape(initial, x_T)
        carry, xs = placed(carry, by_image), placed(xs, replicated)
        labels = abstract_labels(config, num_images, sampler, by_image)
        fixed = graph, state, keys, labels, carry, xs, diffusion, sampler, dtype
        traced = samplers._sample.trace(*fixed)
        with ops.plain():
            jaxpr = traced.jaxpr if platform != "cpu" else samplers._sample.trace(*fixed).jaxpr
        return Lowered(traced.lower(), jaxpr, {"weights": state, "images": carry}, len(chain))


def abstract_labels(config: RunConfig, num_images: int, sampler: SamplerConfig, sharding) -> Labels | None:
    if not config.training.conditional:
        return None
    labels = jax.ShapeDtypeStruct((num_images,), np.int32, sharding=sharding)
    return Labels(labels, labels if sampler.guidance != 1 else None)
