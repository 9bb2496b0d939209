"""Settings of `context_unet`."""

from dataclasses import dataclass
from typing import Literal, Self

from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.network_base import NetworkConfig


@dataclass(frozen=True)
class ContextUNetConfig(NetworkConfig):
    """Settings of `context_unet`, the UNet of Conditional_Diffusion_MNIST. It receives the time (t + 1) / T."""

    name: Literal["context_unet"] = "context_unet"
    channels: int = 128
    """Channels of the first level; the second and third level have the same, and twice as many."""
    pool: int = 7
    """Height and width of the blocks that the deepest level averages. Images have a multiple of four times this."""
    num_classes: int = 10
    """Number of classes, at least 1. --conditional sets it from the data."""
    null_label: bool = True
    """Whether a context of zeros, for dropped labels, was trained, so that labels may be left out."""

    def without_classes(self) -> Self:
        """Raise UserError: the network always has classes."""
        raise UserError("The network context_unet always takes labels: give --conditional (data with labels).")

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        fits = self.channels >= 8 and self.channels % 8 == 0
        require(fits, "channels", self.channels, "expected a multiple of 8, for GroupNorm with 8 groups")
        require(self.pool >= 1, "pool", self.pool, "expected at least 1")
        require(self.num_classes >= 1, "num_classes", self.num_classes, "expected at least 1")
        if image_size is not None:
            multiple = 4 * self.pool
            fits = all(size % multiple == 0 for size in height_and_width(image_size))
            require(fits, "image_size", image_size, f"expected multiples of four times pool, {multiple}")
