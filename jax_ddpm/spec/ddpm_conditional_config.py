"""Settings of `ddpm_conditional`."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size


@dataclass(frozen=True)
class DDPMConditionalConfig(NetworkConfig):
    """Settings of `ddpm_conditional`, the UNet of Diffusion-Models-pytorch."""

    name: Literal["ddpm_conditional"] = "ddpm_conditional"
    channels: int = 64
    """Channels of the first level. The other three levels have twice, four times and four times as many."""
    time_width: int = 256
    """Width of the time embedding, which has no trained layers."""
    heads: int = 4
    """Heads of the self-attention that follows each level."""
    remove_deep_conv: bool = False
    """Whether the middle has two blocks of 4 * channels, as later versions may, and not three of up to 8 * channels."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, whether labels were dropped in training, so that they may be left out. Nothing stands for them."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(self.channels >= 1, "channels", self.channels, "expected at least 1")
        fits = self.heads >= 1 and self.channels % self.heads == 0
        require(fits, "heads", self.heads, f"expected a divisor of channels = {self.channels}")
        fits = self.time_width >= 2 and self.time_width % 2 == 0
        require(fits, "time_width", self.time_width, "expected an even number, at least 2")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        if image_size is not None:
            require_divisible_size(image_size, 3)
