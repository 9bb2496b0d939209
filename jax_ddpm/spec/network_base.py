"""The base class of the networks' settings, and the registry of its subclasses."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Self, Union

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import ImageSize, height_and_width


@dataclass(frozen=True)
class NetworkConfig:
    """Base class of the networks' settings: the network's name, and in subclasses the arguments of its class."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # an unknown field in a JSON file is an error

    name: str
    """Name of the network, unique among all networks."""

    def check(self, image_size: ImageSize | None = None, timesteps: int | None = None) -> None:
        """Raise UserError for a wrong field, and, if given, for an image size or a T that the network cannot take.

        image_size: an integer for square images, else (height, width).
        """

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the network's class: all fields except the name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    @property
    def uses_time(self) -> bool:
        """Whether the prediction depends on t."""
        return True

    @property
    def takes_labels(self) -> bool:
        """Whether the network has classes, and is called with labels: network(x, t, labels)."""
        return bool(getattr(self, "num_classes", 0))

    @property
    def label_count(self) -> int | None:
        """Number of classes, without the null label; 0 for a network without classes, None where any label is taken."""
        return getattr(self, "num_classes", 0)

    @property
    def null_index(self) -> int | None:
        """The label that stands for "no label", the last row of the label embedding; None if there is none."""
        return self.num_classes if self.takes_labels and getattr(self, "null_label", False) else None

    @property
    def label_width(self) -> int | None:
        """Length of a label that is a vector; None where labels are integers."""
        return None

    def with_classes(self, count: int, null_label: bool | None = None) -> Self:
        """A copy with `count` classes. null_label: whether it has a null label; None: as its settings say.

        Raises UserError for a network that cannot have classes: its settings have no field num_classes.
        """
        names = {field.name for field in fields(self)}
        if "num_classes" not in names:
            raise UserError(
                f"The network {self.name} takes no labels: its settings have no num_classes.\n"
                "Omit --conditional, or give its settings a field num_classes and its call an argument labels."
            )
        null = {"null_label": null_label} if "null_label" in names and null_label is not None else {}
        return replace(self, num_classes=count, **null)

    def without_classes(self) -> Self:
        """A copy that takes no labels."""
        return replace(self, num_classes=0) if self.takes_labels else self

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        """For fields of type NetworkConfig, pydantic chooses the subclass by `name`, also among registered networks."""
        if cls is not NetworkConfig:
            return handler(source)
        import pydantic

        classes = Union[tuple(NETWORKS.values())]  # noqa: UP007
        return handler.generate_schema(Annotated[classes, pydantic.Field(discriminator="name")])


def require_divisible_size(image_size: ImageSize, halvings: int, instead: str = "") -> None:
    """Raise UserError unless height and width can be halved this many times. instead: another remedy, for the text."""
    multiple, (height, width) = 2**halvings, height_and_width(image_size)
    square = height == width
    nearest = []
    for axis, size in (("", height),) if square else (("height ", height), ("width ", width)):
        below = size // multiple * multiple
        if size != below:
            nearest.append(axis + " or ".join(str(near) for near in (below, below + multiple) if near > 0))
    if nearest:
        raise UserError(
            f"image_size = {image_size}: this network halves the image {halvings} times, so "
            f"{'its size must be a multiple' if square else 'height and width must be multiples'} of {multiple}.\n"
            f"Nearest: {', '.join(nearest)} (--image-size){instead}."
        )


NETWORKS: dict[str, type[NetworkConfig]] = {}
"""By name. `network_config` fills it; `presets.add_network` adds networks of the user's own."""
