"""Settings of `annotated`."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size

KernelScale = Literal["multiplied", "divided"]


@dataclass(frozen=True)
class AnnotatedConfig(NetworkConfig):
    """Settings of `annotated`, the UNet of Hugging Face's post "The Annotated Diffusion Model", and its defaults.

    The fields dim, dim_mults and resnet_block_groups have the names of the arguments of its `Unet`.
    """

    name: Literal["annotated"] = "annotated"
    dim: int = 28
    """Channels after the first convolution, which dim_mults multiply."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Per level, the factor on dim. Each level after the first halves height and width."""
    init_kernel: int = 1
    """Height and width of the first convolution's kernel, an odd number. 7 in some copies of the post."""
    resnet_block_groups: int = 4
    """Groups of GroupNorm in the blocks."""
    attn_heads: int = 4
    """Heads of attention."""
    attn_width: int = 128
    """Channels of the queries of all heads together."""
    kernel_scale: KernelScale = "multiplied"
    """How kernels of the blocks are scaled after their mean is subtracted. multiplied: by their standard deviation, as
    the post's code does. divided: by it, as its text says (weight standardization; Qiao et al. 2019, eq. 5)."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        levels = len(self.dim_mults)
        require(self.dim >= 4 and self.dim % 2 == 0, "dim", self.dim, "expected an even number, at least 4")
        positive = levels >= 1 and min(self.dim_mults) >= 1
        require(positive, "dim_mults", self.dim_mults, "expected at least one number, each at least 1")
        odd = self.init_kernel >= 1 and self.init_kernel % 2 == 1
        require(odd, "init_kernel", self.init_kernel, "expected an odd number, such as 1 or 7")
        groups = self.resnet_block_groups
        divides = groups >= 1 and self.dim % groups == 0
        require(divides, "resnet_block_groups", groups, f"expected a divisor of dim, {self.dim}")
        require(self.attn_heads >= 1, "attn_heads", self.attn_heads, "expected at least 1")
        fits = self.attn_width >= 1 and self.attn_width % self.attn_heads == 0
        require(fits, "attn_width", self.attn_width, f"expected a multiple of attn_heads, {self.attn_heads}")
        require_one_of("kernel_scale", self.kernel_scale, KernelScale)
        if image_size is not None:
            require_divisible_size(image_size, levels - 1, "; or fewer levels (--dim-mults)")
