"""Which network, and its arguments: one dataclass for each."""

from dataclasses import asdict, dataclass
from typing import Literal

from torch_ref.errors import UserError, require


@dataclass(frozen=True)
class NetworkConfig:
    """A network's name, and in subclasses the arguments it is built with."""

    name: str

    def check(self, image_size: int | None = None) -> None:
        """UserError that names the wrong field, or the sizes that the network can take."""

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

    def check(self, image_size: int | None = None) -> None:
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


NETWORKS: dict[str, type[NetworkConfig]] = {"conv_block": ConvBlockConfig}
