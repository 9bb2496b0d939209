"""Which network, and its arguments: one dataclass for each."""

from dataclasses import asdict, dataclass
from typing import Literal

from torch_ref.errors import UserError, require


@dataclass(frozen=True)
class NetworkConfig:
    """A network's name, and in subclasses the arguments it is built with."""

    name: str

    def check(self, image_size: int | None = None, timesteps: int | None = None) -> None:
        """UserError that names the wrong field, or the sizes (and T) that the network can take."""

    @property
    def arguments(self) -> dict:
        """Without the name: what the network's class is called with."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


@dataclass(frozen=True)
class ConvBlockConfig(NetworkConfig):
    """Arguments of `conv_block`, the ConvBlock UNet."""

    name: Literal["conv_block"] = "conv_block"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels per level, each twice the one before; a level halves height and width."""
    time_width: int = 256
    """Width of the time embedding."""

    def check(self, image_size: int | None = None, timesteps: int | None = None) -> None:
        """UserError that names the wrong field, or the sizes that these widths can take."""
        require(len(self.widths) >= 1, "widths", self.widths, "expected at least one")
        for width in self.widths:
            require(
                width > 0 and width % 32 == 0,
                "widths",
                self.widths,
                f"GroupNorm's 32 groups cannot divide {width} channels; expected multiples of 32, such as 32 64 128",
            )
        doubled = all(b == 2 * a for a, b in zip(self.widths, self.widths[1:], strict=False))
        require(doubled, "widths", self.widths, "each width must be twice the one before, such as 64 128 256")
        require(
            self.time_width > 0 and self.time_width % 2 == 0, "time_width", self.time_width, "expected an even number"
        )
        if image_size is not None:
            halvings = len(self.widths) - 1
            refuse_size(image_size, halvings, "; or fewer --widths")


@dataclass(frozen=True)
class StridedConfig(NetworkConfig):
    """`strided`, the UNet of strided convolutions, has no arguments."""

    name: Literal["strided"] = "strided"

    def check(self, image_size: int | None = None, timesteps: int | None = None) -> None:
        """UserError for sizes that are no multiple of 8."""
        if image_size is not None:
            refuse_size(image_size, 3)


@dataclass(frozen=True)
class AttentionConfig(NetworkConfig):
    """Arguments of `attention`, the UNet with self-attention."""

    name: Literal["attention"] = "attention"
    channels: int = 64
    """Channels after the first convolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Per level, how many times the channels of the one before; a level halves height and width."""
    attention: tuple[bool, ...] = (False, False, True, True)
    """Per level, whether its blocks end in self-attention (the middle always has it)."""
    blocks: int = 2
    """Residual blocks per level."""
    heads: int = 8
    """Heads of self-attention."""
    dropout: float = 0.1
    """Rate of dropout in the training."""

    def check(self, image_size: int | None = None, timesteps: int | None = None) -> None:
        """UserError that names the wrong field, or the sizes that these levels can take."""
        require(self.channels > 0 and self.channels % 32 == 0, "channels", self.channels, "expected a multiple of 32")
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            "multipliers",
            self.multipliers,
            "expected at least one, none below 1",
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
        if image_size is not None:
            refuse_size(image_size, len(self.multipliers) - 1, "; or fewer --multipliers")


@dataclass(frozen=True)
class LayerNormConfig(NetworkConfig):
    """Arguments of `layer_norm`, the UNet with LayerNorm for 28x28 images."""

    name: Literal["layer_norm"] = "layer_norm"
    table_rows: int = 1000
    """Rows of the frozen table of time embeddings: at least T."""

    def check(self, image_size: int | None = None, timesteps: int | None = None) -> None:
        """UserError that names the wrong field, or for any size but 28."""
        rows = timesteps or 1
        require(self.table_rows >= rows, "table_rows", self.table_rows, f"expected at least {rows}, one per timestep")
        require(image_size in (None, 28), "image_size", image_size, "layer_norm takes 28x28 images only")


def refuse_size(image_size: int, halvings: int, instead: str = "") -> None:
    """UserError unless the image can be halved so often."""
    multiple = 2**halvings
    if image_size < multiple or image_size % multiple:
        below = image_size // multiple * multiple
        near = [size for size in (below, below + multiple) if size > 0]
        raise UserError(
            f"image_size = {image_size}: this network halves the image {halvings} times, "
            f"so its size must be a multiple of {multiple}.\n"
            f"Nearest: --image-size {' or '.join(map(str, near))}{instead}."
        )


NETWORKS: dict[str, type[NetworkConfig]] = {
    "conv_block": ConvBlockConfig,
    "strided": StridedConfig,
    "attention": AttentionConfig,
    "layer_norm": LayerNormConfig,
}
