"""Recipes: whole settings of a run by a name, which flags override."""

from dataclasses import replace

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import AttentionConfig, ConvBlockConfig, DDPMConfig, LayerNormConfig, StridedConfig
from jax_ddpm.spec.run_config import DataConfig, OutputConfig, RunConfig, TrainingConfig


def preset(name: str | None = None, dataset: str | None = None) -> RunConfig:
    """The recipe `name`, on a data set other than its own where one is given.

    Without a name: `digits` for the digits, which are also the default data set, and `conv_block` for all else. Raises
    UserError for an unknown name.
    """
    name = name or ("digits" if dataset in (None, "digits") else "conv_block")
    recipe = PRESETS.get(name)
    if recipe is None:
        raise UserError(f"Unknown preset '{name}': expected one of {', '.join(PRESETS)}.")
    dataset = dataset or recipe.data.dataset
    size = 8 if dataset == "digits" and name in ("digits", "tiny") else recipe.data.image_size
    return replace(recipe, data=replace(recipe.data, dataset=dataset, image_size=size))


PRESETS: dict[str, RunConfig] = {
    # Real 8x8 digits, readable after a minute or two on two cores.
    "digits": RunConfig(
        preset="digits",
        data=DataConfig(image_size=8),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=60, learning_rate=2e-3, ema_decay=0.999),  # of 25 steps
        output=OutputConfig(validate_every=250, sample_every=250),
    ),
    # Any data, on a CPU.
    "tiny": RunConfig(
        preset="tiny",
        data=DataConfig(image_size=16),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=5, learning_rate=1e-3, ema_decay=0.999),
    ),
    # The full-size ConvBlock UNet and its published recipe.
    "conv_block": RunConfig(
        preset="conv_block",
        data=DataConfig(dataset="fashion_mnist"),
        training=TrainingConfig(epochs=1000),
        output=OutputConfig(sample_every=10_000),
    ),
    # Strided convolutions, and t as it is beside the features: the loss begins far above 1.
    "strided": RunConfig(
        preset="strided",
        data=DataConfig(dataset="cifar10"),
        network=StridedConfig(),
        training=TrainingConfig(epochs=100, lr_schedule="constant"),
        output=OutputConfig(sample_every_epochs=1),
    ),
    # Residual blocks and self-attention at every size; the weights of the best validation loss are kept and sampled.
    "attention": RunConfig(
        preset="attention",
        data=DataConfig(dataset="mnist", validation_fraction=0.1),
        network=AttentionConfig(),
        diffusion=DiffusionConfig(beta_start=1e-5, variance="posterior"),
        training=TrainingConfig(epochs=20, optimizer="adamw", weight_decay=0.01, lr_schedule="constant", clip_norm=1.0),
        output=OutputConfig(keep_best=True),
    ),
    # Small, with LayerNorm over whole maps, on Fashion-MNIST or MNIST at their own 28x28.
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
}
