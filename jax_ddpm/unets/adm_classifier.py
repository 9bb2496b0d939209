"""ADMClassifier: the classifier of noisy images of Dhariwal & Nichol 2021, the way down of `adm` and a pooling."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array
from jax_ddpm.layers import Conv, GroupNorm, identity, unfilled
from jax_ddpm.ops import silu
from jax_ddpm.unets.adm import GROUPS, Projection, ResidualBlock, SelfAttention, TimeEmbedding, down_path, multi_head


class AttentionPool(nnx.Module):
    """What self-attention gives for the mean of the pixels, beside the pixels: (B, H, W, C) to (B, K).

    Radford et al. 2021, section 2.4. Each token has a learned position.
    """

    def __init__(self, map_size: int, channels: int, heads: int, num_classes: int):
        self.heads = heads
        self.positions = unfilled(channels, map_size**2 + 1)  # as in PyTorch
        self.projection = Projection(channels, 3 * channels)
        self.output = Projection(channels, num_classes)

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        x = x + self.positions[...].T.astype(x.dtype)
        h = multi_head(self.projection(x), self.heads, True)
        return self.output(h[:, :1])[:, 0]


class ADMClassifier(nnx.Module):
    """(x, t) -> logits (B, K) of the classes of the clean images.

    x: (B, H, W, image_channels), noisy images, about within [-1, 1] but for the noise; H = W = map_size 2^(levels - 1)
    with the pooling "attention". t: integers (B,) in [0, T). The settings are those of `ADMClassifierConfig`.
    Activations have the dtype `dtype` (default: that of the parameters). The pooling has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 384, 512),
        model_channels: int | None = None,
        num_res_blocks: int = 4,
        attention: tuple[bool, ...] = (False, True, True, True),
        num_head_channels: int = 64,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        time_scale: float = 1.0,
        pool: str = "attention",
        map_size: int | None = 8,
        num_classes: int = 1000,
        dtype=None,
    ):
        self.dtype = dtype
        embedding_width, width = model_channels or widths[0], widths[-1]
        block = partial(ResidualBlock, time_width=4 * embedding_width, scale_shift=use_scale_shift_norm)

        def attend(channels):
            return SelfAttention(channels, channels // num_head_channels, use_new_attention_order)

        self.time_embedding = TimeEmbedding(embedding_width, 4 * embedding_width, time_scale)
        down, _, middle = down_path(
            *(image_channels, widths, num_res_blocks, attention, resblock_updown, conv_resample, block, attend)
        )
        self.down = nnx.List([nnx.List(layers) for layers in down])
        self.middle = nnx.List(middle)
        self.norm = GroupNorm(GROUPS, width)
        by_attention = pool == "attention"
        self.pool = AttentionPool(map_size, width, width // num_head_channels, num_classes) if by_attention else None
        self.output = None if by_attention else Conv(width, num_classes, 1)

    def __call__(self, x: Float[Array, "b h w c"], t: Real[Array, "b"]) -> Float[Array, "b k"]:
        result_dtype = self.norm.scale.dtype
        time = self.time_embedding(t).astype(self.dtype or result_dtype)
        h = x.astype(time.dtype)
        for layers in self.down:
            for layer in layers:
                h = layer(h, time, identity)
        for layer in self.middle:
            h = layer(h, time, identity)
        h = silu(self.norm(h.astype(result_dtype)))
        return self.output(jnp.mean(h, axis=(1, 2), keepdims=True))[:, 0, 0] if self.pool is None else self.pool(h)
