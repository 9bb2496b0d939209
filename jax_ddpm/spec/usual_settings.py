"""Image size and diffusion settings of a file that does not say them: what its tables tell, else what is usual."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import settings_text
from jax_ddpm.spec.file_content import FileContent
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.lucidrains_config import TRAITS, LucidrainsConfig
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.presets import preset
from jax_ddpm.spec.published import Published, usual_image_size
from jax_ddpm.spec.told_by_arrays import told_by_arrays
from jax_ddpm.spec.told_by_loss_weights import told_by_loss_weights


def usual_size(network: NetworkConfig, published: Published | None) -> ImageSize:
    """The image size of the published model, if the file is one, else that of the network's preset."""
    if published is not None:
        return published.image_size
    return usual_image_size(network) or preset(network.name).data.image_size


def usual_diffusion(network: NetworkConfig, published: Published | None) -> DiffusionConfig:
    """The settings of the published model, if the file is one, else those of the network's preset.

    For another model with the network `adm`, those that OpenAI's packages have without flags; for older versions of
    `lucidrains`, those of their package. If the network predicts a variance, `variance` is learned_range.
    """
    if published is not None:
        return published.diffusion
    diffusion = DiffusionConfig() if isinstance(network, ADMConfig) else preset(network.name).diffusion
    if isinstance(network, LucidrainsConfig) and TRAITS[network.package_version].centred_norm:
        schedule = "cosine" if TRAITS[network.package_version].strided else "sigmoid"
        diffusion = replace(diffusion, objective="eps", schedule=schedule)
    learned = getattr(network, "learned_variance", False)
    return replace(diffusion, variance="learned_range") if learned else diffusion


def told_by_tables(
    network: NetworkConfig, content: FileContent, given: Mapping[str, Any], usual: int
) -> tuple[str, dict[str, Any]]:
    """As `told_by_arrays`, with the objective that loss weights in the file tell, unless it is given."""
    sentence, told = told_by_arrays(network, content, given, usual)
    objective = None if "objective" in given else told_by_loss_weights(content)
    if objective is not None:
        told = {**told, "objective": objective[1]}
        sentence += f' Its loss weights, "{objective[0]}", say: {settings_text({"objective": objective[1]})}.'
    return sentence.lstrip(), told
