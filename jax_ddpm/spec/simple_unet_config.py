"""Settings of `simple_unet`."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size


@dataclass(frozen=True)
class SimpleUNetConfig(NetworkConfig):
    """Settings of `simple_unet`, the UNet with BatchNorm of DeepFindr's notebook."""

    name: Literal["simple_unet"] = "simple_unet"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels per level. Each level after the first halves height and width."""
    time_width: int = 32
    """Width of the time embedding."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(len(self.widths) >= 2 and min(self.widths) >= 1, "widths", self.widths, "expected at least two widths")
        fits = self.time_width >= 4 and self.time_width % 2 == 0
        require(fits, "time_width", self.time_width, "expected an even number, at least 4")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        if image_size is not None:
            require_divisible_size(image_size, len(self.widths) - 1, "; or fewer levels (--widths)")
