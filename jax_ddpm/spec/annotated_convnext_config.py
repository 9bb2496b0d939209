"""Settings of `annotated_convnext`."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size


@dataclass(frozen=True)
class AnnotatedConvNextConfig(NetworkConfig):
    """Settings of `annotated_convnext`, the UNet of the first version of "The Annotated Diffusion Model".

    The fields dim, dim_mults, init_dim and convnext_mult have the names of the arguments of its `Unet`.
    """

    name: Literal["annotated_convnext"] = "annotated_convnext"
    dim: int = 28
    """Channels that dim_mults multiply."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Per level, the factor on dim, first 1. Each level after the first halves height and width."""
    init_dim: int | None = None
    """Channels after the first convolution. Default: twice a third of dim, rounded down: 18 for 28."""
    convnext_mult: int = 2
    """Within a block, the factor on its output channels."""
    attn_heads: int = 4
    """Heads of attention."""
    attn_width: int = 128
    """Channels of the queries of all heads together."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(self.dim >= 4 and self.dim % 2 == 0, "dim", self.dim, "expected an even number, at least 4")
        fits = len(self.dim_mults) >= 1 and self.dim_mults[0] == 1 and min(self.dim_mults) >= 1
        require(fits, "dim_mults", self.dim_mults, "expected numbers of at least 1, of which the first is 1")
        require(self.init_dim is None or self.init_dim >= 1, "init_dim", self.init_dim, "expected at least 1")
        require(self.convnext_mult >= 1, "convnext_mult", self.convnext_mult, "expected at least 1")
        require(self.attn_heads >= 1, "attn_heads", self.attn_heads, "expected at least 1")
        fits = self.attn_width >= 1 and self.attn_width % self.attn_heads == 0
        require(fits, "attn_width", self.attn_width, f"expected a multiple of attn_heads, {self.attn_heads}")
        if image_size is not None:
            require_divisible_size(image_size, len(self.dim_mults) - 1, "; or fewer levels (--dim-mults)")
