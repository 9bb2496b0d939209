"""Settings of `superminddpm`."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig


@dataclass(frozen=True)
class SuperMinDDPMConfig(NetworkConfig):
    """Settings of `superminddpm`, the convolutions in a row of minDiffusion's `superminddpm.py`. It ignores t."""

    name: Literal["superminddpm"] = "superminddpm"
    widths: tuple[int, ...] = (64, 128, 256, 512, 256, 128, 64)
    """Channels after each block."""
    kernel_size: int = 7
    """Height and width of the blocks' kernels, an odd number. The last convolution has 3x3."""

    @property
    def uses_time(self) -> bool:
        return False

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field. The network takes images of any size."""
        positive = len(self.widths) >= 1 and min(self.widths) >= 1
        require(positive, "widths", self.widths, "expected at least one number, each at least 1")
        odd = self.kernel_size >= 1 and self.kernel_size % 2 == 1
        require(odd, "kernel_size", self.kernel_size, "expected an odd number, such as 7")
