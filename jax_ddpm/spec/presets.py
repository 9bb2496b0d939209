"""Presets: complete settings of a run, by name. Flags override them."""

from dataclasses import replace
from typing import Any

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.network_config import (
    BUILT_IN,
    NETWORKS,
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.run_config import DataConfig, OutputConfig, RunConfig, TrainingConfig
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig


def preset(name: str | None = None, dataset: str | None = None, **settings: Any) -> RunConfig:
    """All settings of a run: those of the preset `name`, with the data set replaced if `dataset` is given.

    Args:
        name: digits, clothes, tiny, conv_block, strided, attention, layer_norm, ddpm, adm, lucidrains, simple_unet,
            context_unet, superminddpm, annotated, annotated_convnext, ddpm_conditional, or the name of a registered
            network. Default: digits if the data set is digits or not given, else conv_block.
        dataset: as in `DataConfig`. Default: that of the preset.
        settings: other settings, as in `RunConfig.with_`: `preset("tiny", steps=100, batch_size=32)`.

    Raises:
        UserError: an unknown name, or a value of another type.
    """
    require(name is None or isinstance(name, str), "preset", name, "expected a name, such as 'tiny'")
    name = name or ("digits" if dataset in (None, "digits") else "conv_block")
    recipe = PRESETS.get(name)
    if recipe is None:
        raise UserError(
            f"Unknown preset '{name}': expected one of {', '.join(PRESETS)}.\n"
            "A network of your own has one of its name when registered: --import FILE.py (in Python: import FILE)."
        )
    dataset = dataset or recipe.data.dataset
    size = 8 if dataset == "digits" and name in ("digits", "tiny") else recipe.data.image_size
    return recipe.with_(**{"dataset": dataset, "image_size": size, **settings})


def add_network(config_class: type[NetworkConfig], recipe: RunConfig | None = None) -> str:
    """Add a network of the user's own, and a preset of its name; again, it replaces what was added before.

    recipe: the preset's settings. Default: those of the preset tiny, with this network, or those it has already.

    Returns the name. Raises UserError if it belongs to a network or preset of this package or to another class, or if
    `recipe` is of another network.
    """
    network = config_class()
    try:
        hash(network)
    except TypeError:
        raise UserError(
            f"{config_class.__name__} is not hashable: expected a frozen dataclass, with tuples for lists."
        ) from None
    name, known = network.name, NETWORKS.get(network.name)
    again = known is not None and (known.__module__, known.__qualname__) == (
        config_class.__module__,
        config_class.__qualname__,
    )
    if name in BUILT_IN or (known is None and name in PRESETS) or (known is not None and not again):
        kind = "preset" if known is None else "network"
        raise UserError(f"A {kind} '{name}' exists already: choose another name.")
    if recipe is not None and type(recipe.network) is not config_class:
        raise UserError(f"recipe has the network {recipe.network.name}: expected a {config_class.__name__}.")
    if recipe is None and type(PRESETS.get(name, PRESETS["tiny"]).network) is not config_class:
        recipe = replace(PRESETS["tiny"], network=network)
    if recipe is not None:
        PRESETS[name] = replace(recipe, preset=name)
    NETWORKS[name] = config_class
    return name


PRESETS: dict[str, RunConfig] = {
    # Handwritten 8x8 digits: readable samples after one or two minutes on two CPU cores.
    "digits": RunConfig(
        preset="digits",
        data=DataConfig(image_size=8),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=60, learning_rate=2e-3, ema_decay=0.999),  # an epoch has 25 steps
        output=OutputConfig(validate_every=250, sample_every=250),
    ),
    # Fashion-MNIST in its own size, in at most half an hour on two CPU cores that multiply in bfloat16.
    "clothes": RunConfig(
        preset="clothes",
        data=DataConfig(dataset="fashion_mnist", image_size=28),
        network=ConvBlockConfig(widths=(64, 128, 256), time_width=256),
        diffusion=DiffusionConfig(schedule="cosine", objective="v"),
        sampling=SamplerConfig(sampler="heun", num_steps=15, spacing="logsnr"),
        training=TrainingConfig(
            epochs=5,
            batch_size=128,
            learning_rate=1e-3,
            warmup_steps=100,
            clip_norm=1.0,
            ema_decay=0.999,
            precision="bfloat16",
        ),
        output=OutputConfig(validate_every=500, sample_every=500),
    ),
    # A small network for any data set, fast enough for a CPU.
    "tiny": RunConfig(
        preset="tiny",
        data=DataConfig(image_size=16),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=5, learning_rate=1e-3, ema_decay=0.999),
    ),
    # The full-size ConvBlock UNet with its published settings.
    "conv_block": RunConfig(
        preset="conv_block",
        data=DataConfig(dataset="fashion_mnist"),
        training=TrainingConfig(epochs=1000),
        output=OutputConfig(sample_every=10_000),
    ),
    # A UNet with strided convolutions. t is not scaled before the time embedding, so the loss starts far above 1.
    "strided": RunConfig(
        preset="strided",
        data=DataConfig(dataset="cifar10"),
        network=StridedConfig(),
        training=TrainingConfig(epochs=100, lr_schedule="constant"),
        output=OutputConfig(sample_every_epochs=1),
    ),
    # Residual blocks, and self-attention at the two deepest levels. Keeps the checkpoint with the best
    # validation loss, and samples with its weights.
    "attention": RunConfig(
        preset="attention",
        data=DataConfig(dataset="mnist", validation_fraction=0.1),
        network=AttentionConfig(),
        diffusion=DiffusionConfig(beta_start=1e-5, variance="posterior"),
        training=TrainingConfig(epochs=20, optimizer="adamw", weight_decay=0.01, lr_schedule="constant", clip_norm=1.0),
        output=OutputConfig(keep_best=True),
    ),
    # A small UNet with LayerNorm over whole images, for Fashion-MNIST or MNIST in their own size of 28x28.
    "layer_norm": RunConfig(
        preset="layer_norm",
        data=DataConfig(dataset="fashion_mnist", image_size=28),
        network=LayerNormConfig(),
        training=TrainingConfig(epochs=20, batch_size=128, learning_rate=1e-3, lr_schedule="constant"),
        output=OutputConfig(keep_best=True, gif_frames=100),
    ),
    # Ho et al. 2020, section 4 and appendix B.
    "ddpm": RunConfig(
        preset="ddpm",
        data=DataConfig(dataset="cifar10", flip=True),
        network=DDPMConfig(),
        training=TrainingConfig(
            steps=800_000,
            batch_size=128,
            learning_rate=2e-4,
            lr_schedule="constant",
            warmup_steps=5000,
            clip_norm=1.0,
        ),
        output=OutputConfig(sample_every=10_000),
    ),
    # Nichol & Dhariwal 2021, unconditional CIFAR-10 with the hybrid loss.
    "adm": RunConfig(
        preset="adm",
        data=DataConfig(dataset="cifar10"),
        network=ADMConfig(learned_variance=True, dropout=0.3, time_scale=0.25),  # rescale_timesteps: 1000 / T
        diffusion=DiffusionConfig(timesteps=4000, schedule="cosine", variance="learned_range"),
        training=TrainingConfig(steps=500_000, batch_size=128, learning_rate=1e-4, lr_schedule="constant"),
        output=OutputConfig(sample_every=10_000),
    ),
    # The README of denoising_diffusion_pytorch. Its trainer averages the weights every 10 steps with a decay of 0.995,
    # after the first 100, and its Adam has beta_2 = 0.99, not 0.999. min_snr_gamma: no limit, so that the loss of v is
    # weighted by SNR / (SNR + 1) = alpha_bar, as there.
    "lucidrains": RunConfig(
        preset="lucidrains",
        data=DataConfig(dataset="cifar10", flip=True),
        network=LucidrainsConfig(),
        diffusion=DiffusionConfig(schedule="sigmoid", objective="v", variance="posterior"),
        training=TrainingConfig(
            steps=700_000,
            batch_size=64,
            accumulate=2,
            learning_rate=8e-5,
            lr_schedule="constant",
            clip_norm=1.0,
            min_snr_gamma=1e9,
            ema_decay=0.9995,
        ),
        output=OutputConfig(sample_every=10_000),
    ),
    # DeepFindr's notebook "Diffusion models from scratch in PyTorch", which trains on Stanford Cars.
    "simple_unet": RunConfig(
        preset="simple_unet",
        data=DataConfig(dataset="cars196", image_size=64, flip=True),
        network=SimpleUNetConfig(),
        diffusion=DiffusionConfig(timesteps=300, variance="posterior", clip="state"),
        training=TrainingConfig(
            epochs=100, batch_size=128, learning_rate=1e-3, lr_schedule="constant", loss_kind="l1", ema=False
        ),
        output=OutputConfig(sample_every_epochs=5),
    ),
    # TeaPearce's Conditional_Diffusion_MNIST. There the learning rate falls once an epoch, and alpha_bar has one more
    # factor, 0.9999.
    "context_unet": RunConfig(
        preset="context_unet",
        data=DataConfig(dataset="mnist", image_size=28),
        network=ContextUNetConfig(),
        diffusion=DiffusionConfig(
            timesteps=400,
            beta_start=1e-4 + (0.02 - 1e-4) / 400,  # beta_t for t = 1 .. T of a line that starts at t = 0
            clip="none",
            data_range=(0.0, 1.0),
            t_input="fraction_from_one",
        ),
        training=TrainingConfig(
            epochs=20,
            batch_size=256,
            learning_rate=1e-4,
            lr_schedule="linear",
            min_learning_rate=0.0,
            ema=False,
            conditional=True,
        ),
        output=OutputConfig(sample_every_epochs=5),
    ),
    # superminddpm.py of cloneofsimo's minDiffusion. There alpha_bar has one more factor, 0.9999, and t = T is not
    # trained.
    "superminddpm": RunConfig(
        preset="superminddpm",
        data=DataConfig(dataset="mnist", image_size=28),
        network=SuperMinDDPMConfig(),
        diffusion=DiffusionConfig(
            beta_start=1e-4 + (0.02 - 1e-4) / 1000,  # beta_t for t = 1 .. T of a line that starts at t = 0
            clip="none",
            data_range=(-0.5, 0.5),
            t_input="fraction_from_one",
        ),
        training=TrainingConfig(epochs=100, batch_size=128, learning_rate=2e-4, lr_schedule="constant", ema=False),
        output=OutputConfig(sample_every_epochs=5),
    ),
    # Hugging Face's post "The Annotated Diffusion Model", in its version with ResNet blocks.
    "annotated": RunConfig(
        preset="annotated",
        data=DataConfig(dataset="fashion_mnist", image_size=28, flip=True),
        network=AnnotatedConfig(),
        diffusion=DiffusionConfig(timesteps=300, variance="posterior", clip="none"),
        training=TrainingConfig(
            epochs=6, batch_size=128, learning_rate=1e-3, lr_schedule="constant", loss_kind="huber", ema=False
        ),
        output=OutputConfig(sample_every_epochs=1),
    ),
    # The first version of the same post, with ConvNeXT blocks.
    "annotated_convnext": RunConfig(
        preset="annotated_convnext",
        data=DataConfig(dataset="fashion_mnist", image_size=28, flip=True),
        network=AnnotatedConvNextConfig(),
        diffusion=DiffusionConfig(timesteps=200, variance="posterior", clip="none"),
        training=TrainingConfig(
            epochs=5, batch_size=128, learning_rate=1e-3, lr_schedule="constant", loss_kind="huber", ema=False
        ),
        output=OutputConfig(sample_every_epochs=1),
    ),
    # ddpm_conditional.py of dome272's Diffusion-Models-pytorch. There t is drawn from 1 to T - 1 and labels are dropped
    # for a whole batch. The EMA starts as a copy for 2,000 steps; here its decay reaches 0.995 after 1,790 steps.
    "ddpm_conditional": RunConfig(
        preset="ddpm_conditional",
        data=DataConfig(dataset="cifar10", image_size=64),
        network=DDPMConditionalConfig(),
        diffusion=DiffusionConfig(clip="none"),
        sampling=SamplerConfig(guidance=3.0),  # cfg_scale
        training=TrainingConfig(
            epochs=300,
            batch_size=14,
            optimizer="adamw",
            weight_decay=0.01,
            learning_rate=3e-4,
            lr_schedule="constant",
            ema_decay=0.995,
            conditional=True,
        ),
        output=OutputConfig(sample_every_epochs=10),
    ),
}
