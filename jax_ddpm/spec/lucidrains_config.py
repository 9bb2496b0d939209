"""Settings of `lucidrains`, the UNet of the package denoising_diffusion_pytorch, and what its versions changed."""

import re
from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size

LucidrainsVersion = Literal["0.27.12", "0.28", "0.32", "1.7.0", "1.7.2", "1.7.4", "1.8", "1.9", "2.0"]


@dataclass(frozen=True)
class Traits:
    """What a version of the package's UNet computes, where versions differ."""

    scaled_channels: bool = False
    """Full attention scales each channel of queries and keys to length 1 over the pixels, and their products by 10."""
    strided: bool = False
    """4x4 convolutions with stride 2 halve the size. Else each 2x2 block becomes one pixel, and a 1x1 convolution."""
    centred_norm: bool = False
    """The norms of attention subtract the mean: LayerNorm over the channels. Else RMSNorm."""
    standardized: bool = False
    """The kernels of the blocks have mean 0 and variance 1 for each output channel (Qiao et al. 2019)."""
    divided_values: bool = False
    """Linear attention divides its values by the number of pixels."""
    wrapped: bool = False
    """Attention lies within two modules, Residual and PreNorm: names such as downs.0.2.fn.fn.to_qkv.weight."""
    group_norm: bool = True
    """The blocks have GroupNorm. Else RMSNorm."""
    memory: bool = False
    """Attention has trained keys and values beside those of the pixels."""


TRAITS = {  # by the first version that computes like this
    "0.27.12": Traits(True, True, True, True, True, True),
    "0.28": Traits(False, True, True, True, True, True),
    "0.32": Traits(False, False, True, True, True, True),
    "1.7.0": Traits(standardized=True, divided_values=True, wrapped=True),
    "1.7.2": Traits(divided_values=True, wrapped=True),
    "1.7.4": Traits(wrapped=True),
    "1.8": Traits(),
    "1.9": Traits(memory=True),
    "2.0": Traits(group_norm=False, memory=True),
}


def same_network_as(release: str) -> str | None:
    """The version in `TRAITS` whose network a release of the package has, such as 1.9 for "1.11.1".

    None for text that is no release, and for releases before 0.27.12.
    """
    if re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}[\w.+-]{0,20}", release) is None:
        return None
    known = [version for version in TRAITS if numbers(version) <= numbers(release)]
    return known[-1] if known else None


def numbers(version: str) -> list[int]:
    """1.7.4 as [1, 7, 4]."""
    return [int(number) for number in re.match(r"[\d.]+", version)[0].split(".") if number]


@dataclass(frozen=True)
class LucidrainsConfig(NetworkConfig):
    """Settings of `lucidrains`, the UNet of denoising_diffusion_pytorch. The defaults are those of the package.

    These fields have the names of the arguments of its `Unet`, except package_version, learned_variance and num_mem_kv.
    """

    name: Literal["lucidrains"] = "lucidrains"
    package_version: LucidrainsVersion = "2.0"
    """The first version of the package that has this network. 2.0 is also that of later ones."""
    dim: int = 64
    """Channels that dim_mults multiply."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Per level, the factor on dim. Each level after the first halves height and width."""
    init_dim: int | None = None
    """Channels after the first convolution. Default: dim."""
    learned_variance: bool = False
    """Also predict the variance of a reverse step; doubles the output channels (Nichol & Dhariwal 2021)."""
    self_condition: bool = False
    """Also see the x_0 that the last step predicted (Chen et al. 2023); doubles the input channels."""
    learned_sinusoidal_cond: bool = False
    """Embed the time by learned frequencies."""
    random_fourier_features: bool = False
    """Embed the time by random frequencies, which are not trained."""
    learned_sinusoidal_dim: int = 16
    """Sines and cosines of learned or random frequencies."""
    sinusoidal_pos_emb_theta: int = 10000
    """Base of the fixed frequencies: theta^(-i / (dim/2 - 1))."""
    dropout: float = 0.0
    """Dropout rate during training."""
    attn_dim_head: tuple[int, ...] = (32,)
    """Channels per head of attention, per level or one for all. The middle has that of the last level."""
    attn_heads: tuple[int, ...] = (4,)
    """Heads of attention, per level or one for all. The middle has that of the last level."""
    full_attn: tuple[bool, ...] = ()
    """Per level, whether its attention is full, not linear. Default: the last level's; none before version 1.8."""
    num_mem_kv: int = 4
    """Trained keys and values of each attention, from version 1.9. 0 before."""
    resnet_block_groups: int = 8
    """Groups of GroupNorm, before version 2.0."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the first convolution, and of each level's output."""
        return (self.init_dim or self.dim, *(self.dim * factor for factor in self.dim_mults))

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require_one_of("package_version", self.package_version, LucidrainsVersion)
        traits, levels = TRAITS[self.package_version], len(self.dim_mults)
        require(self.dim >= 4 and self.dim % 2 == 0, "dim", self.dim, "expected an even number, at least 4")
        positive = levels >= 1 and min(self.dim_mults) >= 1
        require(positive, "dim_mults", self.dim_mults, "expected at least one number, each at least 1")
        require(self.init_dim is None or self.init_dim >= 1, "init_dim", self.init_dim, "expected at least 1")
        for name in ("attn_dim_head", "attn_heads"):
            value = getattr(self, name)
            fits = len(value) in (1, levels) and min(value) >= 1
            require(fits, name, value, f"expected {levels} numbers, one per level, or one for all; each at least 1")
        full, from_1_8 = self.full_attn, not traits.wrapped
        fits = not full or (len(full) == levels and from_1_8)
        expected = (
            f"expected {levels} values, one per level, or none" if from_1_8 else "expected none before version 1.8"
        )
        require(fits, "full_attn", full, expected)
        memory = self.num_mem_kv
        if traits.memory:
            require(memory >= 1, "num_mem_kv", memory, "expected at least 1")
        else:
            require(memory == 0, "num_mem_kv", memory, f"expected 0, as version {self.package_version} has none")
        groups = self.resnet_block_groups
        divides = groups >= 1 and all(width % groups == 0 for width in self.widths)
        expected = f"expected a divisor of all channels, {', '.join(map(str, self.widths))}"
        require(divides or not traits.group_norm, "resnet_block_groups", groups, expected)
        both = self.self_condition and self.learned_variance
        expected = "expected one of self_condition and learned_variance, as in the package"
        require(not both, "self_condition", True, expected)
        waves = self.learned_sinusoidal_dim
        require(waves >= 2 and waves % 2 == 0, "learned_sinusoidal_dim", waves, "expected an even number, at least 2")
        theta = self.sinusoidal_pos_emb_theta
        require(theta >= 2, "sinusoidal_pos_emb_theta", theta, "expected at least 2, such as 10000")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "expected 0 to below 1")
        if image_size is not None:
            require_divisible_size(image_size, levels - 1, "; or fewer levels (--dim-mults)")
