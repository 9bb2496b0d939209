"""Settings of `adm_classifier`, the classifier of noisy images of guided-diffusion."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.spec.adm_config import GROUPS
from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size

Pool = Literal["adaptive", "attention"]


@dataclass(frozen=True)
class ADMClassifierConfig(NetworkConfig):
    """Settings of `adm_classifier`, the classifier that guides sampling in Dhariwal & Nichol 2021, section 4.

    These fields have the names of the arguments of EncoderUNetModel in guided-diffusion, except widths (model_channels
    times each of channel_mult), attention (attention_resolutions), num_classes (out_channels), time_scale and map_size.
    The defaults are those of its 64x64_classifier.pt. It is no network to train or to sample from.
    """

    name: Literal["adm_classifier"] = "adm_classifier"
    widths: tuple[int, ...] = (128, 256, 384, 512)
    """Channels per level. Each level after the first halves height and width."""
    model_channels: int | None = None
    """Width of the embedding of t, before its two linear layers. Default: the first of the widths."""
    num_res_blocks: int = 4
    """Residual blocks per level."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Per level, whether its blocks end in self-attention. The middle always has it."""
    num_head_channels: int = 64
    """Channels per head of self-attention, also in the pooling."""
    use_new_attention_order: bool = False
    """Order of the channels before the heads: all queries, all keys, all values. Otherwise each head has all three."""
    use_scale_shift_norm: bool = True
    """Time enters a residual block as a scale and shift of a GroupNorm's output. Otherwise it is added before it."""
    resblock_updown: bool = True
    """Residual blocks halve the size, with average pooling."""
    conv_resample: bool = True
    """Without resblock_updown: convolutions halve the size. False: average pooling."""
    time_scale: float = 1.0
    """Factor on t before its embedding. 1000 / T for classifiers that were trained with rescale_timesteps."""
    pool: Pool = "attention"
    """From the last pixels to the logits: "adaptive" (a linear layer of their mean), or "attention"."""
    map_size: int | None = 8
    """With "attention": height and width of the deepest level, for which it has positions. None with "adaptive"."""
    num_classes: int = 1000
    """Number of classes."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the classifier cannot take."""
        widths, levels = self.widths, len(self.widths)
        fits = levels >= 1 and all(width > 0 and width % GROUPS == 0 for width in widths)
        require(fits, "widths", widths, f"expected at least one, all multiples of {GROUPS}, the groups of GroupNorm")
        channels = self.model_channels
        fits = channels is None or (channels >= 2 and channels % 2 == 0)
        require(fits, "model_channels", channels, "expected an even number")
        require(self.num_res_blocks >= 1, "num_res_blocks", self.num_res_blocks, "expected at least 1")
        require(len(self.attention) == levels, "attention", self.attention, f"expected {levels} values, one per level")
        attended = sorted({widths[-1], *(width for width, on in zip(widths, self.attention, strict=True) if on)})
        per_head = self.num_head_channels
        fits = per_head >= 1 and all(width % per_head == 0 for width in attended)
        expected = f"expected a divisor of the channels of levels with attention, {attended}"
        require(fits, "num_head_channels", per_head, expected)
        require(0 < self.time_scale <= 1000, "time_scale", self.time_scale, "expected more than 0, at most 1000")
        require_one_of("pool", self.pool, Pool)
        fits = (self.map_size or 0) >= 1 if self.pool == "attention" else self.map_size is None
        expected = "expected at least 1 with the pool attention, and None with adaptive"
        require(fits, "map_size", self.map_size, expected)
        require(self.num_classes >= 2, "num_classes", self.num_classes, "expected at least 2")
        if image_size is not None and self.map_size is not None:
            size, wanted = height_and_width(image_size), self.map_size * 2 ** (levels - 1)
            require(size == (wanted, wanted), "image size", size, f"this classifier takes {wanted}x{wanted} pixels")
        elif image_size is not None:
            require_divisible_size(image_size, levels - 1)
