"""A sampler as one file that JAX alone runs: the whole reverse process with the weights in it, by `jax.export`."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jaxtyping import Float, UInt8

from jax_ddpm import ops, rng
from jax_ddpm.arrays import Array
from jax_ddpm.layers import cast_once
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.sampling.guidance import accepting_x_0, always_guided, guided_predict, self_conditioned
from jax_ddpm.sampling.reverse import initial_carry, sampling_timesteps
from jax_ddpm.sampling.samplers import noise_at, opened, scan_sampler
from jax_ddpm.sampling.steps import initial_history
from jax_ddpm.spec.data_range import from_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, check_sampler
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.exporting import STABLEHLO, check_export, check_export_path, takes_weight, uses_own_code
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import EXPECTED_GUIDE, EXPECTED_MODEL
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.text import one_line
from jax_ddpm.weights.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def export_sampler(
    model: Any,
    path: str | os.PathLike[str],
    *,
    sampler: SamplerConfig | str | None = None,
    guide: Any = None,
    config: DiffusionConfig | None = None,
    dtype: Any = jnp.float32,
    **settings: Unpack[SamplingSettings],
) -> Path:
    """Write a sampler as a .stablehlo file, which `jax.export.deserialize` reads. It runs on CPUs, GPUs and TPUs.

    The file holds the weights, the settings of the sampler and the loop over its steps. `deserialize(...).call` is
    called with

    - the seed, uint32 (), and the numbers of the images, uint32 (B,), for any B;
    - for a model with classes, their labels, int32 (B,), whose values are not checked; or float32 (B, D) for a model
      that takes vectors;
    - for a model with a null label, or with a guide, the weight of guidance, float32 (). 1: none.

    It returns images, uint8 (B, H, W, C): those of `sample`, up to rounding.

    Args:
        model: a `Model` from `load_model`, or what `load_model` takes, such as the path of a run.
        path: a file name that ends in .stablehlo.
        sampler, guide, config, dtype, settings: as in `sample`. The setting `guidance` is an argument of the file
            instead.

    Returns:
        The path.

    Raises:
        UserError: settings or a guide that do not fit, or a network or sampler of your own that JAX cannot export.
    """
    path, model, guide = check_export_path(path, (STABLEHLO,)), opened(model), opened(guide)
    require(isinstance(model, Model), "model", type(model).__name__, EXPECTED_MODEL)
    require(guide is None or isinstance(guide, Model), "guide", type(guide).__name__, EXPECTED_GUIDE)
    sampler, config = sampling_settings(sampler, config or model.info.diffusion, settings)
    config.check()
    check_sampler(sampler, config)
    guide_info = None if guide is None else guide.info
    check_export(model.info, sampler, guide_info)
    network, (batch,) = model.info.network, export.symbolic_shape("batch")
    arguments = {"seed": jax.ShapeDtypeStruct((), jnp.uint32), "indices": jax.ShapeDtypeStruct((batch,), jnp.uint32)}
    if network.takes_labels and network.label_width is not None:
        arguments["labels"] = jax.ShapeDtypeStruct((batch, network.label_width), jnp.float32)
    elif network.takes_labels:
        arguments["labels"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    if takes_weight(model.info, guide_info):
        arguments["guidance"] = jax.ShapeDtypeStruct((), jnp.float32)
    draw = sampler_function(model, config, sampler, dtype, guide)

    def draw_levels(*values):
        return to_levels(draw(**dict(zip(arguments, values, strict=True))))

    try:
        with ops.plain():  # the CPU routes compare sizes, and a file for every platform cannot have them
            exported = export.export(jax.jit(draw_levels), platforms=PLATFORMS)(*arguments.values())
        content = exported.serialize()
    except Exception as error:
        if not uses_own_code(model.info, config, sampler, guide_info):
            raise
        raise UserError(
            f"This model cannot be exported, because of code of your own ({one_line(error)}).\n"
            "It must accept batches of any size and may not call Python while it runs."
        ) from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def sampler_function(
    model: Model, config: DiffusionConfig, sampler: SamplerConfig, dtype=jnp.float32, guide: Model | None = None
) -> Callable:
    """The sampler as a function of the arguments that `export_sampler` lists: -> x_0, float (B, H, W, C)."""
    graph, state = nnx.split((model.network, None if guide is None else guide.network))
    info = model.info.network
    shape, dtype = tuple(model.info.image_shape), jnp.dtype(dtype)

    def draw(seed, indices, labels=None, guidance=None) -> Float[Array, "b h w c"]:
        network, weaker = nnx.merge(graph, state)
        base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), rng.SAMPLING)
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(indices)
        x_T = noise_at(keys, config.timesteps, shape, dtype)
        x_T = x_T * config.initial_sigma if config.is_continuous else x_T
        self_condition = self_conditioned(network, weaker)
        history = initial_history(x_T, sampler, self_condition)
        predict = guided_predict(network, config, sampler, Labels(labels))
        if guidance is not None:
            null = jnp.full_like(labels, info.null_index) if guide is None else None
            of_guide = labels if guide is not None and guide.info.network.takes_labels else None
            labels = Labels(labels, null, of_guide)
            predict = predict_with_guidance(network, config, sampler, labels, guidance, weaker)
        carry, xs = initial_carry(x_T, sampling_timesteps(config, sampler), history=history)
        with cast_once(network):
            x_0, _, _ = scan_sampler(predict, keys, carry, xs, config, sampler, dtype, self_condition)
        return from_data_range(x_0, config.data_range)

    return draw


def predict_with_guidance(
    network: nnx.Module,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    labels: Labels,
    weight: Float[Array, ""],
    guide: nnx.Module | None = None,
) -> Callable:
    """`guided_predict` with a weight that is known when the program runs. 1: one call of the network, with labels."""
    plain = guided_predict(network, config, sampler, labels)
    guide = None if guide is None else by_timestep(accepting_x_0(guide), config)
    network = by_timestep(accepting_x_0(network), config)
    guided = always_guided(network, replace(sampler, guidance=weight), labels, guide)
    return lambda *inputs, **given: jax.lax.cond(
        weight == 1, lambda: plain(*inputs, **given), lambda: guided(*inputs, **given)
    )


def to_levels(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Images in [-1, 1] as 8-bit levels, clipped and rounded as in `data.to_uint8`."""
    return jnp.rint((jnp.clip(images.astype(jnp.float32), -1, 1) + 1) * 127.5).astype(jnp.uint8)
