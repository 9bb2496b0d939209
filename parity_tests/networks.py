"""A small configuration of each network, for tests that treat them all alike."""

from dataclasses import dataclass, replace

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig


@dataclass(frozen=True)
class Case:
    config: NetworkConfig
    channels: int
    size: int


VARIANTS = {  # with other settings; those of ddpm and adm have every setting between them that CASES does not have
    "ddpm with scales, resampled by blocks": Case(
        DDPMConfig(
            **{"widths": (32, 64), "layers_per_block": 1, "down_attention": (True, False)},
            **{"up_attention": (False, True), "resnet_downsample": (True, False), "resnet_upsample": (True, False)},
            **{"resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 48, "act_fn": "gelu"},
        ),
        3,
        8,
    ),
    "ddpm with groups of its middle, mish": Case(
        DDPMConfig(
            **{"widths": (32,), "layers_per_block": 1, "down_attention": (False,), "up_attention": (False,)},
            **{"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "act_fn": "mish"},
        ),
        1,
        4,
    ),
    "ddpm without attention in its middle, relu": Case(
        DDPMConfig(
            **{"widths": (32,), "layers_per_block": 1, "down_attention": (False,), "up_attention": (False,)},
            **{"add_attention": False, "act_fn": "relu"},
        ),
        1,
        4,
    ),
    "ddpm without middle": Case(
        DDPMConfig(
            **{"widths": (32,), "layers_per_block": 1, "down_attention": (False,), "up_attention": (False,)},
            mid_block=False,
        ),
        1,
        4,
    ),
    "adm resampled by blocks, new order": Case(
        ADMConfig(
            **{"widths": (32, 64), "model_channels": 64, "num_res_blocks": 1, "attention": (True, False)},
            **{"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True},
            **{"time_scale": 0.25, "learned_variance": True},
        ),
        3,
        8,
    ),
    "adm without scales, resampled by pooling": Case(
        ADMConfig(
            **{"widths": (32, 32), "num_res_blocks": 1, "attention": (True, False), "num_heads_upsample": 2},
            **{"use_scale_shift_norm": False, "conv_resample": False},
        ),
        1,
        4,
    ),
    "layer_norm with leaky ReLU": Case(LayerNormConfig(time_activation="leaky_relu"), 1, 28),
    "ddpm_conditional without deep blocks": Case(
        DDPMConditionalConfig(channels=8, time_width=16, heads=2, remove_deep_conv=True), 3, 8
    ),
}
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
    "adm": Case(ADMConfig(widths=(32, 64), num_res_blocks=1, attention=(False, True)), 3, 8),
    "simple_unet": Case(SimpleUNetConfig(widths=(8, 16, 24)), 3, 8),
    "context_unet": Case(ContextUNetConfig(channels=8, pool=2), 1, 8),
    "ddpm_conditional": Case(DDPMConditionalConfig(channels=8, time_width=16), 1, 16),
}

LABELLED = {  # the same with labels
    **{f"{name} with labels": replace(case, config=case.config.with_classes(5)) for name, case in CASES.items()},
    **{
        f"ddpm with labels as {kind}": replace(
            VARIANTS["ddpm without middle"],
            config=replace(VARIANTS["ddpm without middle"].config, class_embed_type=class_embed_type),
        )
        for kind, class_embed_type in (("timesteps", "timestep"), ("vectors", "identity"))
    },
}

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": (2,), "attn_dim_head": (4,)}
CASES["lucidrains"] = Case(LucidrainsConfig(**SMALL, num_mem_kv=2), 3, 8)  # takes no labels
LUCIDRAINS = {  # other versions of the package, which between them have every trait and setting
    "lucidrains 0.27.12": Case(LucidrainsConfig(**SMALL, package_version="0.27.12", num_mem_kv=0), 1, 8),
    "lucidrains 1.7.0": Case(
        LucidrainsConfig(**SMALL, package_version="1.7.0", num_mem_kv=0, resnet_block_groups=4), 1, 8
    ),
    "lucidrains 1.9, learned frequencies": Case(
        LucidrainsConfig(
            **{**SMALL, "dim_mults": (1, 1), "attn_heads": (2, 1), "attn_dim_head": (4, 6)},
            **{"package_version": "1.9", "full_attn": (True, False), "num_mem_kv": 3, "resnet_block_groups": 4},
            **{"init_dim": 12, "learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6, "learned_variance": True},
        ),
        1,
        4,
    ),
}
CASES["superminddpm"] = Case(SuperMinDDPMConfig(widths=(8, 12, 6), kernel_size=5), 3, 6)  # takes no labels
ANNOTATED = {"dim": 8, "dim_mults": (1, 2), "attn_width": 8}
CASES["annotated"] = Case(AnnotatedConfig(**ANNOTATED), 3, 8)  # takes no labels
VARIANTS["annotated with kernels divided"] = Case(
    AnnotatedConfig(**{**ANNOTATED, "dim_mults": (2,), "init_kernel": 7, "kernel_scale": "divided"}), 1, 4
)
CASES["annotated_convnext"] = Case(AnnotatedConvNextConfig(**ANNOTATED), 3, 8)  # takes no labels
