"""A small configuration of each network, for tests that treat them all alike."""

from dataclasses import dataclass

from jax_ddpm.network_config import ConvBlockConfig, NetworkConfig


@dataclass(frozen=True)
class Case:
    config: NetworkConfig
    channels: int
    size: int


CASES = {
    "conv_block": Case(ConvBlockConfig(widths=(32, 64), time_width=32), 3, 8),
}
