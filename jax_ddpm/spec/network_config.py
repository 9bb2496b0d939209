"""Settings of the networks: one dataclass for each network."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.errors import UserError, require, require_one_of
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.network_base import NETWORKS, NetworkConfig, require_divisible_size
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig
from jax_ddpm.spec.types import Activation, ClassEmbedType, TimeActivation, TimeScaleShift


@dataclass(frozen=True)
class ConvBlockConfig(NetworkConfig):
    """Settings of `conv_block`, the ConvBlock UNet."""

    name: Literal["conv_block"] = "conv_block"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels per level, each twice the previous one. Each level after the first halves height and width."""
    time_width: int = 256
    """Width of the time embedding."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(len(self.widths) >= 1, "widths", self.widths, "expected at least one")
        for width in self.widths:
            require(
                width > 0 and width % 32 == 0,
                "widths",
                self.widths,
                f"GroupNorm cannot split {width} channels into 32 groups; expected multiples of 32, such as 32 64 128",
            )
        doubled = all(b == 2 * a for a, b in zip(self.widths, self.widths[1:], strict=False))
        require(doubled, "widths", self.widths, "expected each width to be twice the previous one, such as 64 128 256")
        require(
            self.time_width > 0 and self.time_width % 2 == 0, "time_width", self.time_width, "expected an even number"
        )
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        if image_size is not None:
            halvings = len(self.widths) - 1
            require_divisible_size(image_size, halvings, "; or fewer levels (--widths)")


@dataclass(frozen=True)
class StridedConfig(NetworkConfig):
    """Settings of `strided`, the UNet with strided convolutions."""

    name: Literal["strided"] = "strided"
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and for a height or width that is not a multiple of 8."""
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        if image_size is not None:
            require_divisible_size(image_size, 3)


@dataclass(frozen=True)
class AttentionConfig(NetworkConfig):
    """Settings of `attention`, the UNet with residual blocks and self-attention."""

    name: Literal["attention"] = "attention"
    channels: int = 64
    """Channels after the first convolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Per level, the factor on the previous level's channels. Each level after the first halves height and width."""
    attention: tuple[bool, ...] = (False, False, True, True)
    """Per level, whether its blocks end in self-attention. The middle always has it."""
    blocks: int = 2
    """Residual blocks per level."""
    heads: int = 8
    """Heads of self-attention."""
    dropout: float = 0.1
    """Dropout rate during training."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(self.channels > 0 and self.channels % 32 == 0, "channels", self.channels, "expected a multiple of 32")
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            "multipliers",
            self.multipliers,
            "expected at least one number, each at least 1",
        )
        require(
            len(self.attention) == len(self.multipliers),
            "attention",
            self.attention,
            f"expected {len(self.multipliers)} values, one per level",
        )
        require(self.blocks >= 1, "blocks", self.blocks, "expected at least 1")
        require(
            self.heads >= 1 and self.channels % self.heads == 0,
            "heads",
            self.heads,
            f"expected a divisor of the channels, {self.channels}",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "expected 0 to below 1")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        if image_size is not None:
            require_divisible_size(image_size, len(self.multipliers) - 1, "; or fewer levels (--multipliers)")


@dataclass(frozen=True)
class LayerNormConfig(NetworkConfig):
    """Settings of `layer_norm`, the UNet with LayerNorm for 28x28 images."""

    name: Literal["layer_norm"] = "layer_norm"
    table_rows: int = 1000
    """Rows of the fixed table of time embeddings, at least T."""
    num_classes: int = 0
    """Number of classes. 0: the network takes no labels. --conditional sets it from the data."""
    null_label: bool = True
    """With classes, the label embedding has one more row, the last, which stands for "no label"."""
    time_activation: TimeActivation = "silu"
    """Between the two linear layers of a time MLP. Some checkpoints have leaky_relu (slope 0.01), in equal shapes."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for fewer rows than timesteps, and for an image size other than 28."""
        require_one_of("time_activation", self.time_activation, TimeActivation)
        require(self.num_classes >= 0, "num_classes", self.num_classes, "expected 0 or more")
        rows = timesteps or 1
        require(self.table_rows >= rows, "table_rows", self.table_rows, f"expected at least {rows}, one per timestep")
        fits = image_size is None or height_and_width(image_size) == (28, 28)
        require(fits, "image_size", image_size, "layer_norm takes only 28x28 images")


@dataclass(frozen=True)
class DDPMConfig(NetworkConfig):
    """Settings of `ddpm`, the network of Ho et al. 2020. The defaults are those of the paper for CIFAR-10.

    These fields have the names of the arguments of UNet2DModel in the diffusers package, except widths, down_attention,
    up_attention, learned_variance, mid_block, resnet_downsample, resnet_upsample and null_label.
    """

    name: Literal["ddpm"] = "ddpm"
    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels per level. Each level after the first halves height and width."""
    layers_per_block: int = 2
    """Residual blocks per level on the way down. Levels on the way up have one more."""
    down_attention: tuple[bool, ...] = (False, True, False, False)
    """Per level on the way down, whether its blocks end in self-attention. The middle always has it."""
    up_attention: tuple[bool, ...] = (False, False, True, False)
    """Per level on the way up, from the deepest level, whether its blocks end in self-attention."""
    attention_head_dim: int | None = None
    """Channels per head of self-attention. Default: a single head."""
    norm_num_groups: int = 32
    """Groups of GroupNorm."""
    norm_eps: float = 1e-6
    """Epsilon of GroupNorm."""
    downsample_padding: int = 0
    """Padding of the strided convolutions: 1 pads all four sides, 0 pads only the right and the bottom."""
    flip_sin_to_cos: bool = False
    """In the time embedding, put the cosines before the sines."""
    freq_shift: int = 1
    """The frequencies of the time embedding of width d are 10000^(-i / (d/2 - freq_shift))."""
    center_input_sample: bool = False
    """The input is in [0, 1]: the network scales it to 2x - 1."""
    dropout: float = 0.1
    """Dropout rate during training."""
    learned_variance: bool = False
    """Also predict the variance of a reverse step; doubles the output channels (Nichol & Dhariwal 2021)."""
    resnet_time_scale_shift: TimeScaleShift = "default"
    """How the time enters a residual block: added (default), or as a scale and shift (Dhariwal & Nichol 2021)."""
    act_fn: Activation = "silu"
    """Activation of the residual blocks. gelu is the exact one, with the error function."""
    time_embedding_dim: int | None = None
    """Width of the time embedding. Default: four times the first of the widths."""
    mid_block: bool = True
    """Two residual blocks between the way down and the way up."""
    add_attention: bool = True
    """Self-attention between the two residual blocks in the middle."""
    attn_norm_num_groups: int | None = None
    """Groups of GroupNorm in the middle's self-attention. Default: norm_num_groups; with scale_shift, no GroupNorm."""
    resnet_downsample: tuple[bool, ...] = ()
    """Per level, whether a residual block with average pooling halves the size, not a convolution. Default: none."""
    resnet_upsample: tuple[bool, ...] = ()
    """Per level on the way up, whether a residual block doubles the size, not a convolution. Default: none."""
    num_class_embeds: int | None = None
    """Rows of the label embedding: the classes, and the null label if there is one. --conditional sets it."""
    class_embed_type: ClassEmbedType | None = None
    """timestep embeds labels like timesteps; identity adds vectors of the time embedding's width. Default: a table."""
    null_label: bool = False
    """The last of the num_class_embeds rows stands for "no label"."""

    @property
    def takes_labels(self) -> bool:
        """Whether the network has classes, and is called with labels."""
        return self.num_class_embeds is not None or self.class_embed_type is not None

    @property
    def label_count(self) -> int | None:
        """Number of classes, without the null label; 0 for a network without classes, None where any label is taken."""
        if self.class_embed_type == "identity" or (self.class_embed_type and self.num_class_embeds is None):
            return None
        return (self.num_class_embeds or 0) - self.null_label

    @property
    def null_index(self) -> int | None:
        """The label that stands for "no label", the last row of the label embedding; None if there is none."""
        return self.num_class_embeds - 1 if self.null_label and self.num_class_embeds else None

    @property
    def label_width(self) -> int | None:
        """Length of a label that is a vector (class_embed_type identity); None where labels are integers."""
        is_vector = self.class_embed_type == "identity"
        return (self.time_embedding_dim or 4 * self.widths[0]) if is_vector else None

    def with_classes(self, count: int, null_label: bool | None = None) -> Self:
        """A copy with `count` classes. null_label: whether it has a null label; None: if it has a table of labels.

        Raises UserError if labels are vectors.
        """
        if self.class_embed_type == "identity":
            raise UserError(
                "class_embed_type = identity: the network takes vectors, and the data set has classes.\n"
                "Omit --class-embed-type."
            )
        null_label = null_label is not False and self.class_embed_type is None
        return replace(self, num_class_embeds=count + null_label, null_label=null_label)

    def without_classes(self) -> Self:
        """A copy that takes no labels."""
        return replace(self, num_class_embeds=None, class_embed_type=None, null_label=False)

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size that the network cannot take."""
        require(len(self.widths) >= 1, "widths", self.widths, "expected at least one")
        require(self.norm_num_groups >= 1, "norm_num_groups", self.norm_num_groups, "expected at least 1")
        groups, head = self.norm_num_groups, self.attention_head_dim
        require(
            all(width > 0 and width % groups == 0 for width in self.widths),
            "widths",
            self.widths,
            f"expected multiples of norm_num_groups, {groups}",
        )
        half = self.widths[0] // 2
        require(self.widths[0] % 2 == 0, "widths", self.widths, "expected an even first width")
        require(0 <= self.freq_shift < half, "freq_shift", self.freq_shift, f"expected an integer from 0 to {half - 1}")
        require(self.layers_per_block >= 1, "layers_per_block", self.layers_per_block, "expected at least 1")
        for name in ("down_attention", "up_attention"):
            value, levels = getattr(self, name), len(self.widths)
            require(len(value) == levels, name, value, f"expected {levels} values, one per level")
        for name in ("resnet_downsample", "resnet_upsample"):
            value = getattr(self, name)
            require(len(value) in (0, levels), name, value, f"expected {levels} values, one per level, or none")
        require_one_of("resnet_time_scale_shift", self.resnet_time_scale_shift, TimeScaleShift)
        require_one_of("act_fn", self.act_fn, Activation)
        time_width, middle_groups = self.time_embedding_dim, self.attn_norm_num_groups
        require(time_width is None or time_width >= 1, "time_embedding_dim", time_width, "expected at least 1")
        require(
            middle_groups is None or (middle_groups >= 1 and self.widths[-1] % middle_groups == 0),
            "attn_norm_num_groups",
            middle_groups,
            f"expected a divisor of the last width, {self.widths[-1]}",
        )
        attention_widths = [self.widths[-1]] if self.mid_block and self.add_attention else []
        attention_widths += [width for width, on in zip(self.widths, self.down_attention, strict=True) if on]
        attention_widths += [width for width, on in zip(self.widths[::-1], self.up_attention, strict=True) if on]
        require(
            head is None or (head >= 1 and all(width % head == 0 for width in attention_widths)),
            "attention_head_dim",
            head,
            f"expected a divisor of the channels of levels with attention, {sorted(set(attention_widths))}",
        )
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "expected more than 0, such as 1e-6")
        require(self.downsample_padding in (0, 1), "downsample_padding", self.downsample_padding, "expected 0 or 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "expected 0 to below 1")
        if self.class_embed_type is not None:
            require_one_of("class_embed_type", self.class_embed_type, ClassEmbedType)
        rows = self.num_class_embeds
        require(rows is None or rows > self.null_label, "num_class_embeds", rows, "expected at least one class")
        has_table = rows is not None and self.class_embed_type is None
        require(
            has_table or not self.null_label, "null_label", self.null_label, "expected False without a label embedding"
        )
        if image_size is not None:
            require_divisible_size(image_size, len(self.widths) - 1, "; or fewer levels (--widths)")


NETWORKS.update(
    {
        "conv_block": ConvBlockConfig,
        "strided": StridedConfig,
        "attention": AttentionConfig,
        "layer_norm": LayerNormConfig,
        "ddpm": DDPMConfig,
        "adm": ADMConfig,
        "lucidrains": LucidrainsConfig,
        "simple_unet": SimpleUNetConfig,
        "context_unet": ContextUNetConfig,
        "superminddpm": SuperMinDDPMConfig,
        "annotated": AnnotatedConfig,
        "annotated_convnext": AnnotatedConvNextConfig,
        "ddpm_conditional": DDPMConditionalConfig,
    }
)
BUILT_IN = frozenset(NETWORKS) | {ADMClassifierConfig.name}
"""Names of the networks of this package, with the classifier, which cannot be trained or draw."""
