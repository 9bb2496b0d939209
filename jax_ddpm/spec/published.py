"""Settings of published checkpoints of `adm` by the names of their files, which do not say them themselves.

From the flags that are published with them: Nichol & Dhariwal 2021 (improved-diffusion), Dhariwal & Nichol 2021
(guided-diffusion), Choi et al. 2022 (P2-weighting), Chung et al. 2023 (diffusion-posterior-sampling).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.network_base import NetworkConfig
from jax_ddpm.spec.recognised import Recognised

MULTIPLIERS: dict[int, tuple[float, ...]] = {  # by image size: channel_mult unless a flag sets it
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


@dataclass(frozen=True)
class Published:
    """A published model, which is trained on RGB images."""

    source: str
    """The package that it was published with."""
    network: ADMConfig
    image_size: int
    diffusion: DiffusionConfig

    def fits(self, recognised: Recognised) -> bool:
        """Whether names and shapes are those of this model."""
        shown, rows = recognised.settings, recognised.label_rows
        same = all(self.network.arguments.get(name) == value for name, value in shown.items())
        return recognised.kind is ADMConfig and same and (rows is None or rows == self.network.num_classes)

    def proposed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The network's settings that shapes do not show. given: by the user; heads replace the channels per head."""
        names = ["num_heads", "num_heads_upsample", "use_new_attention_order", "time_scale", "null_label"]
        names += [] if "num_heads" in given else ["num_head_channels"]
        return {name: self.network.arguments[name] for name in names}


def published(path: Path) -> Published | None:
    """The published model that has a file of this name, None if there is none."""
    return PUBLISHED.get(path.stem)


def usual_image_size(network: NetworkConfig) -> int | None:
    """The image size at which OpenAI's packages choose these multipliers of the channels; None if there is none."""
    if not isinstance(network, ADMConfig):
        return None
    base = network.model_channels or network.widths[0]
    multipliers = tuple(width / base for width in network.widths)
    return next((size for size, usual in MULTIPLIERS.items() if usual == multipliers), None)


def adm(image_size: int, channels: int, blocks: int, attention: tuple[int, ...], **settings) -> ADMConfig:
    """The network for the flags num_channels, num_res_blocks and attention_resolutions. It predicts a variance."""
    widths = tuple(round(channels * multiplier) for multiplier in MULTIPLIERS[image_size])
    return ADMConfig(
        widths=widths,
        model_channels=None if widths[0] == channels else channels,
        num_res_blocks=blocks,
        attention=tuple(image_size // 2**level in attention for level in range(len(widths))),
        learned_variance=True,
        **settings,
    )


LINEAR = DiffusionConfig(variance="learned_range")
COSINE = DiffusionConfig(schedule="cosine", variance="learned_range")
COSINE_4000 = DiffusionConfig(timesteps=4000, schedule="cosine", variance="learned_range")


def improved(
    image_size: int, channels: int, blocks: int, attention: tuple[int, ...], diffusion, **settings
) -> Published:
    return Published(
        "improved-diffusion", adm(image_size, channels, blocks, attention, **settings), image_size, diffusion
    )


def guided(image_size: int, diffusion: DiffusionConfig = LINEAR, channels: int = 256, blocks: int = 2, **settings):
    network = adm(image_size, channels, blocks, (32, 16, 8), resblock_updown=True, **settings)
    return Published("guided-diffusion", network, image_size, diffusion)


def of_faces(source: str) -> Published:
    network = adm(256, 128, 1, (16,), resblock_updown=True, num_head_channels=64)
    return Published(source, network, 256, LINEAR)


CIFAR10 = improved(32, 128, 3, (16, 8), COSINE_4000, time_scale=0.25, dropout=0.3)
IMAGENET64 = improved(64, 128, 3, (16, 8), COSINE_4000, time_scale=0.25)
BEDROOM = improved(256, 128, 2, (16,), LINEAR, num_heads=1, use_scale_shift_norm=False)
LSUN = guided(256, num_head_channels=64, dropout=0.1)
PUBLISHED = {  # by the file's name without its ending
    "cifar10_uncond_50M_500K": CIFAR10,
    "cifar10_uncond_vlb_50M_500K": CIFAR10,
    "imagenet64_uncond_100M_1500K": IMAGENET64,
    "imagenet64_uncond_vlb_100M_1500K": IMAGENET64,
    "imagenet64_cond_270M_250K": improved(64, 192, 3, (16, 8), COSINE_4000, num_classes=1000),
    "lsun_uncond_100M_1200K_bs128": BEDROOM,
    "lsun_uncond_100M_2400K_bs64": BEDROOM,
    "64x64_diffusion": guided(
        *(64, COSINE, 192, 3),
        **{"num_head_channels": 64, "use_new_attention_order": True, "dropout": 0.1, "num_classes": 1000},
    ),
    "128x128_diffusion": guided(128, num_heads=4, num_classes=1000),
    "256x256_diffusion": guided(256, num_head_channels=64, num_classes=1000),
    "256x256_diffusion_uncond": guided(256, num_head_channels=64),
    "512x512_diffusion": guided(512, num_head_channels=64, num_classes=1000),
    **dict.fromkeys(("lsun_bedroom", "lsun_cat", "lsun_horse"), LSUN),
    "lsun_horse_nodropout": guided(256, num_head_channels=64),
    **dict.fromkeys(
        ("ffhq_baseline", "ffhq_p2", "celebahq_p2", "cub_baseline", "cub_p2", "afhq_baseline"),
        of_faces("P2-weighting"),
    ),
    "ffhq_10m": of_faces("diffusion-posterior-sampling"),
}
