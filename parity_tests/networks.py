"""A small configuration of each network, for tests that treat them all alike."""

from dataclasses import dataclass

from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)


@dataclass(frozen=True)
class Case:
    config: NetworkConfig
    channels: int
    size: int


CASES = {
    "conv_block": Case(ConvBlockConfig(widths=(32, 64), time_width=32), 3, 8),
    "strided": Case(StridedConfig(), 3, 8),
    "attention": Case(AttentionConfig(channels=32, multipliers=(1, 2), attention=(False, True), blocks=1), 1, 8),
    "layer_norm": Case(LayerNormConfig(), 1, 28),
    "ddpm": Case(
        DDPMConfig(widths=(32, 64), layers_per_block=1, down_attention=(False, True), up_attention=(True, False)),
        3,
        8,
    ),
}
