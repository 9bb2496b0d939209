"""Features of images by the Inception-v3 network of the original FID (Szegedy et al. 2016; Heusel et al. 2017).

Its weights are those of a TensorFlow graph of December 2015. Users have them as a PyTorch file, such as
`pt_inception-2015-12-05-6726825d.pth`, with the array names that are used below. The graph differs from other
Inception-v3 networks: images are resized as TensorFlow 1 did, average pooling does not count the padding, and the last
block uses maximum pooling.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_ddpm.arrays import Array
from jax_ddpm.ops import matmul_precision
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.read_content import open_model, read_arrays

IMAGE_SIZE = 299  # height and width of the network's input
NUM_FEATURES = 2048
NUM_CLASSES = 1008
EPSILON = 1e-3  # of the batch normalisations

# take(name, shape): the array of this name, in PyTorch's layout.
Take = Callable[[str, tuple[int, ...]], Array]


def resize(x: Array, size: int) -> Array:
    """Images (B, H, W, C) resized to (B, size, size, C) by bilinear interpolation, as TensorFlow 1 did it.

    Pixel i of the result stands at i H / size of the image, so only the top left corners are aligned. H / size is
    rounded to float32, as there.
    """

    def weights(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.arange(size, dtype=x.dtype) * np.float32(length / size).astype(x.dtype)
        low = position.astype(int)
        return low, np.minimum(low + 1, length - 1), position - low.astype(x.dtype)

    low, high, share = weights(x.shape[1])
    x = x[:, low] + (x[:, high] - x[:, low]) * share[:, None, None]
    low, high, share = weights(x.shape[2])
    return x[:, :, low] + (x[:, :, high] - x[:, :, low]) * share[:, None]


def pool(x: Array, kind: str, stride: int = 1) -> Array:
    """3x3 pooling. kind: "max"; "max_same" with one pixel of padding; "mean_same" likewise, the padding not counted."""
    edge = 1 if kind.endswith("same") else 0
    window = {"window_dimensions": (1, 3, 3, 1), "window_strides": (1, stride, stride, 1)}
    window["padding"] = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    if kind.startswith("max"):
        return lax.reduce_window(x, -jnp.inf, lax.max, **window)
    count = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, **window)
    return lax.reduce_window(x, 0.0, lax.add, **window) / count


class Layers:
    """The layers of the network, by name: convolution without bias, batch normalisation in evaluation mode, ReLU."""

    def __init__(self, take: Take, prefix: str = ""):
        self.take, self.prefix = take, prefix

    def within(self, block: str) -> "Layers":
        return Layers(self.take, f"{self.prefix}{block}.")

    def __call__(self, name: str, x: Array, channels: int, kernel=(1, 1), stride: int = 1, same: bool = True) -> Array:
        """x (B, H, W, I) -> (B, H', W', channels). same: zero padding that keeps the size at stride 1; else none."""

        def vector(part):
            return self.take(f"{self.prefix}{name}.bn.{part}", (channels,))

        weight = self.take(f"{self.prefix}{name}.conv.weight", (channels, x.shape[-1], *kernel))  # OIHW
        y = lax.conv_general_dilated(
            x,
            weight.transpose(2, 3, 1, 0),
            window_strides=(stride, stride),
            padding=[(size // 2, size // 2) if same else (0, 0) for size in kernel],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=matmul_precision(x.dtype),
        )
        y = (y - vector("running_mean")) * lax.rsqrt(vector("running_var") + EPSILON)
        return jax.nn.relu(y * vector("weight") + vector("bias"))


def block_a(conv: Layers, x: Array, pool_channels: int) -> Array:
    h_5x5 = conv("branch5x5_2", conv("branch5x5_1", x, 48), 64, (5, 5))
    h_3x3 = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 64), 96, (3, 3))
    h_3x3 = conv("branch3x3dbl_3", h_3x3, 96, (3, 3))
    h_pool = conv("branch_pool", pool(x, "mean_same"), pool_channels)
    return jnp.concatenate([conv("branch1x1", x, 64), h_5x5, h_3x3, h_pool], axis=-1)


def block_b(conv: Layers, x: Array) -> Array:
    h = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 64), 96, (3, 3))
    h = conv("branch3x3dbl_3", h, 96, (3, 3), stride=2, same=False)
    return jnp.concatenate([conv("branch3x3", x, 384, (3, 3), stride=2, same=False), h, pool(x, "max", 2)], axis=-1)


def block_c(conv: Layers, x: Array, width: int) -> Array:
    h_7x7 = conv("branch7x7_2", conv("branch7x7_1", x, width), width, (1, 7))
    h_7x7 = conv("branch7x7_3", h_7x7, 192, (7, 1))
    h_double = conv("branch7x7dbl_2", conv("branch7x7dbl_1", x, width), width, (7, 1))
    h_double = conv("branch7x7dbl_3", h_double, width, (1, 7))
    h_double = conv("branch7x7dbl_4", h_double, width, (7, 1))
    h_double = conv("branch7x7dbl_5", h_double, 192, (1, 7))
    h_pool = conv("branch_pool", pool(x, "mean_same"), 192)
    return jnp.concatenate([conv("branch1x1", x, 192), h_7x7, h_double, h_pool], axis=-1)


def block_d(conv: Layers, x: Array) -> Array:
    h_3x3 = conv("branch3x3_2", conv("branch3x3_1", x, 192), 320, (3, 3), stride=2, same=False)
    h_7x7 = conv("branch7x7x3_2", conv("branch7x7x3_1", x, 192), 192, (1, 7))
    h_7x7 = conv("branch7x7x3_3", h_7x7, 192, (7, 1))
    h_7x7 = conv("branch7x7x3_4", h_7x7, 192, (3, 3), stride=2, same=False)
    return jnp.concatenate([h_3x3, h_7x7, pool(x, "max", 2)], axis=-1)


def block_e(conv: Layers, x: Array, pooling: str) -> Array:
    def side_by_side(name, h):
        return [conv(f"{name}a", h, 384, (1, 3)), conv(f"{name}b", h, 384, (3, 1))]

    h_3x3 = side_by_side("branch3x3_2", conv("branch3x3_1", x, 384))
    h_double = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 448), 384, (3, 3))
    h_double = side_by_side("branch3x3dbl_3", h_double)
    h_pool = conv("branch_pool", pool(x, pooling), 192)
    return jnp.concatenate([conv("branch1x1", x, 320), *h_3x3, *h_double, h_pool], axis=-1)


def network(take: Take, x: Array) -> dict[str, Array]:
    """Features of images x (B, 299, 299, 3) in [-1, 1], by their usual names.

    "64", "192", "768" and "2048": means over all pixels, (B, 64) and so on; the FID uses "2048". "logits_unbiased"
    (B, 1008): the class scores without their bias.
    """
    conv, features = Layers(take), {}

    def mean(x):
        return jnp.mean(x, axis=(1, 2))

    x = conv("Conv2d_1a_3x3", x, 32, (3, 3), stride=2, same=False)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x, 32, (3, 3), same=False), 64, (3, 3))
    x = pool(x, "max", 2)
    features["64"] = mean(x)
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x, 80), 192, (3, 3), same=False)
    x = pool(x, "max", 2)
    features["192"] = mean(x)
    for name, pool_channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = block_a(conv.within(name), x, pool_channels)
    x = block_b(conv.within("Mixed_6a"), x)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = block_c(conv.within(name), x, width)
    features["768"] = mean(x)
    x = block_d(conv.within("Mixed_7a"), x)
    x = block_e(conv.within("Mixed_7b"), x, "mean_same")
    x = block_e(conv.within("Mixed_7c"), x, "max_same")
    features["2048"] = mean(x)
    weight = take("fc.weight", (NUM_CLASSES, NUM_FEATURES))
    take("fc.bias", (NUM_CLASSES,))
    features["logits_unbiased"] = jnp.matmul(features["2048"], weight.T, precision=matmul_precision(x.dtype))
    return features


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of the network, by PyTorch name."""
    found = {}

    def take(name, shape):
        found[name] = shape
        return jnp.zeros(shape, jnp.float32)

    jax.eval_shape(lambda x: network(take, x), jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32))
    return found


@jax.jit
def features_of(arrays: Mapping[str, Array], images: Array) -> dict[str, Array]:
    """`network` on images uint8 (B, H, W, C) with one or three channels, which are resized to 299x299.

    arrays: the weights by PyTorch name. Their dtype is that of the computation.
    """
    x = images.astype(arrays["fc.weight"].dtype)
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    return network(lambda name, shape: arrays[name], (resize(x, IMAGE_SIZE) - 128) / 128)


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of the network from a PyTorch file, float32 by name. No code of the file is run.

    Raises:
        UserError: the file does not hold them.
    """
    wanted = shapes()
    groups = [group.arrays for group in open_model(Path(path)).content.dictionaries]
    arrays = max(groups, key=lambda group: len(wanted.keys() & group.keys()), default={})
    wrong = [name for name, shape in wanted.items() if name not in arrays or tuple(arrays[name].shape) != shape]
    if wrong:
        raise UserError(
            f"{path} does not hold the Inception-v3 of the FID: of {len(wanted)} arrays {len(wrong)} are missing or "
            f"have another shape, such as {wrong[0]}.\nGive the file pt_inception-2015-12-05-6726825d.pth."
        )
    values = read_arrays({name: arrays[name] for name in wanted}, Path(path))
    return {name: value.astype(np.float32) for name, value in values.items()}
