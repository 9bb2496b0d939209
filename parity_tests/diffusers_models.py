"""Models of the diffusers package to compare `ddpm` with: the family of `google/ddpm-*`, in small."""

import torch
from diffusers import UNet2DModel

from parity_tests.golden_weights import rule

PAPER = {  # google/ddpm-cifar10-32, but for the widths
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}


def blocks(down: str, up: str) -> dict:
    """Block types from letters: a for attention."""
    return {
        "down_block_types": tuple("AttnDownBlock2D" if letter == "a" else "DownBlock2D" for letter in down),
        "up_block_types": tuple("AttnUpBlock2D" if letter == "a" else "UpBlock2D" for letter in up),
    }


ONE_LEVEL = {**SMALL, **blocks("-", "-"), "block_out_channels": (8,)}
FAMILY = {
    "the paper's choices": {**SMALL, **PAPER, **blocks("-a", "a-")},
    "the package's choices": {**SMALL, **blocks("-a", "a-")},
    "attention at all levels": {**SMALL, **PAPER, **blocks("aa", "aa"), "attention_head_dim": 4},
    "three levels, narrow in the middle": {**SMALL, **PAPER, **blocks("---", "a--"), "block_out_channels": (16, 8, 12)},
    "cosines first, shifted": {**ONE_LEVEL, **PAPER, "flip_sin_to_cos": True},
    "sines first, not shifted": {**ONE_LEVEL, "flip_sin_to_cos": False},
    "shifted by two, large epsilon": {**ONE_LEVEL, **PAPER, "freq_shift": 2, "norm_eps": 1e-3},
    "heads of one channel": {**ONE_LEVEL, **blocks("a", "a"), "attention_head_dim": 1},
    "three layers, attention on the way down": {
        **{**ONE_LEVEL, **blocks("a", "-"), "layers_per_block": 3, "attention_head_dim": 2},
    },
    "two layers, attention on the way up": {
        **{**ONE_LEVEL, **PAPER, **blocks("-", "a"), "block_out_channels": (12,), "layers_per_block": 2},
    },
    "centred input, gray, one group": {
        **{**ONE_LEVEL, "in_channels": 1, "out_channels": 1},
        **{"center_input_sample": True, "norm_num_groups": 1, "dropout": 0.3},
    },
    "learned variance, not square": {**ONE_LEVEL, **PAPER, "out_channels": 6, "sample_size": (4, 8)},
    "time as scale and shift": {**SMALL, **blocks("-a", "a-"), "resnet_time_scale_shift": "scale_shift"},
    "time as scale and shift, groups in the middle": {
        **{**ONE_LEVEL, **PAPER, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    },
    "two groups in the middle, wide time": {**ONE_LEVEL, "attn_norm_num_groups": 2, "time_embedding_dim": 20},
    "no attention in the middle, GELU": {**ONE_LEVEL, **blocks("a", "-"), "add_attention": False, "act_fn": "gelu"},
    "no middle, Mish": {**ONE_LEVEL, "mid_block_type": None, "act_fn": "mish"},
    "resampled by blocks, ReLU": {
        **{**SMALL, **PAPER, "act_fn": "relu"},
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    },
    "attention resampled by blocks, scale and shift": {
        **{**SMALL, **blocks("a-", "a-"), "downsample_type": "resnet", "upsample_type": "resnet"},
        "resnet_time_scale_shift": "scale_shift",
    },
}


def package_model(name: str) -> UNet2DModel:
    model = UNet2DModel(**FAMILY[name]).eval()
    model.load_state_dict({key: torch.from_numpy(rule(key, tuple(v.shape))) for key, v in model.state_dict().items()})
    return model
