"""Settings of `adm`, the UNet of improved-diffusion and guided-diffusion."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.network_base import NetworkConfig, require_divisible_size

GROUPS = 32  # of GroupNorm


@dataclass(frozen=True)
class ADMConfig(NetworkConfig):
    """Settings of `adm`, the UNet of Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021.

    These fields have the names of the arguments of UNetModel in OpenAI's packages, except widths (model_channels times
    each of channel_mult), attention (attention_resolutions), learned_variance (learn_sigma), time_scale and null_label.
    """

    name: Literal["adm"] = "adm"
    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels per level. Each level after the first halves height and width."""
    model_channels: int | None = None
    """Width of the embedding of t, before its two linear layers. Default: the first of the widths."""
    num_res_blocks: int = 3
    """Residual blocks per level on the way down. Levels on the way up have one more."""
    attention: tuple[bool, ...] = (False, True, True, False)
    """Per level, whether its blocks end in self-attention, on both ways. The middle always has it."""
    num_heads: int = 4
    """Heads of self-attention, unless num_head_channels is given."""
    num_head_channels: int | None = None
    """Channels per head of self-attention. Default: the channels divided by num_heads."""
    num_heads_upsample: int | None = None
    """Heads of self-attention on the way up, unless num_head_channels is given. Default: num_heads."""
    use_new_attention_order: bool = False
    """Order of the channels before the heads: all queries, all keys, all values. Otherwise each head has all three."""
    use_scale_shift_norm: bool = True
    """Time enters a residual block as a scale and shift of a GroupNorm's output. Otherwise it is added before it."""
    resblock_updown: bool = False
    """Residual blocks halve and double the size, with average pooling and repeated pixels."""
    conv_resample: bool = True
    """Without resblock_updown: convolutions halve the size, and follow repeated pixels. False: no convolutions."""
    time_scale: float = 1.0
    """Factor on t before its embedding. 1000 / T for models that were trained with rescale_timesteps."""
    dropout: float = 0.0
    """Dropout rate during training."""
    learned_variance: bool = False
    """Also predict the variance of a reverse step; doubles the output channels (Nichol & Dhariwal 2021)."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = False
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""

    def with_classes(self, count: int, null_label: bool | None = None) -> Self:
        """A copy with `count` classes. null_label: whether it has a null label; None: it has one."""
        return replace(self, num_classes=count, null_label=null_label is not False)

    def without_classes(self) -> Self:
        """A copy that takes no labels."""
        return replace(self, num_classes=0, null_label=False)

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        widths = self.widths
        fits = len(widths) >= 1 and all(width > 0 and width % GROUPS == 0 for width in widths)
        require(fits, "widths", widths, f"expected at least one, all multiples of {GROUPS}, the groups of GroupNorm")
        channels = self.model_channels
        fits = channels is None or (channels >= 2 and channels % 2 == 0)
        require(fits, "model_channels", channels, "expected an even number")
        require(self.num_res_blocks >= 1, "num_res_blocks", self.num_res_blocks, "expected at least 1")
        levels = len(widths)
        fits = len(self.attention) == levels
        require(fits, "attention", self.attention, f"expected {levels} values, one per level")
        attended = sorted({widths[-1], *(width for width, on in zip(widths, self.attention, strict=True) if on)})
        expected = f"expected a divisor of the channels of levels with attention, {attended}"
        for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
            value = getattr(self, name)
            fits = value is None or (value >= 1 and all(width % value == 0 for width in attended))
            is_used = name == "num_head_channels" or self.num_head_channels is None
            require(fits or not is_used, name, value, expected)
        require(0 < self.time_scale <= 1000, "time_scale", self.time_scale, "expected more than 0, at most 1000")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "expected 0 to below 1")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        fits = self.num_classes > 0 or not self.null_label
        require(fits, "null_label", self.null_label, "expected False without classes")
        if image_size is not None:
            require_divisible_size(image_size, levels - 1, "; or fewer levels (--widths)")
