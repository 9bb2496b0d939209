"""How programs use the public names. pyright checks the types in this file; nothing runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
from PIL import Image

import jax_ddpm


def train_and_look(images: np.ndarray) -> None:
    config = jax_ddpm.preset("tiny", steps=10, batch_size=32).with_(learning_rate=1e-3, tracker="none")
    assert_type(config, jax_ddpm.RunConfig)
    assert_type(config.training.steps, int | None)
    folder = jax_ddpm.train(config, "runs/x", images=images, log=print)
    assert_type(folder, Path)
    run = jax_ddpm.load_run(folder)
    assert_type(run.config, jax_ddpm.RunConfig)
    assert_type(run.checkpoints, list[int])
    assert_type(run.pictures, dict[str, Path])
    assert_type(run.picture("grid.png"), Image.Image)
    assert_type(run.model(step=5), jax_ddpm.Model)


def sample_and_edit(images: np.ndarray) -> None:
    model = jax_ddpm.load_model("runs/x", precision="bfloat16", weights="raw", clip="none")
    assert_type(model, jax_ddpm.Model)
    assert_type(model.info, jax_ddpm.ModelInfo)
    assert_type(model.info.image_shape, tuple[int, int, int])
    assert_type(jax_ddpm.sample(model, 16, sampler="ddim", num_steps=50, labels=[0, "cat", None]), np.ndarray)
    sampler = jax_ddpm.SamplerConfig("dpmpp", num_steps=20)
    assert_type(jax_ddpm.sample(Path("runs/x"), seeds=[1, 2], num_images=2, sampler=sampler, eta=0.0), np.ndarray)
    assert_type(jax_ddpm.interpolate("runs/x", 1, 2, 8, sampler="ddim"), np.ndarray)
    assert_type(jax_ddpm.invert(model, images, sampler="ddim"), np.ndarray)
    assert_type(jax_ddpm.reconstruct(model, images, sampler="ddim"), np.ndarray)
    assert_type(jax_ddpm.img2img(model, images, 100, sampler="ddim"), np.ndarray)
    assert_type(jax_ddpm.inpaint(model, images, np.ones((8, 8))), np.ndarray)
    jax_ddpm.export_sampler(model, "sampler.stablehlo", sampler="ddim", num_steps=50)


def settings() -> None:
    config = jax_ddpm.RunConfig(
        data=jax_ddpm.DataConfig(image_size=(32, 48)),
        network=jax_ddpm.ConvBlockConfig(widths=(32, 64)),
        diffusion=jax_ddpm.DiffusionConfig(timesteps=100, schedule="cosine"),
        training=jax_ddpm.TrainingConfig(steps=10),
        output=jax_ddpm.OutputConfig(tracker=("tensorboard", "wandb")),
    )
    try:
        config.check()
        network = jax_ddpm.build(config.network, 1)
        jax_ddpm.make_tables(config.diffusion.schedule, config.diffusion.timesteps)
        print(network, jax_ddpm.__version__)
    except jax_ddpm.UserError as error:
        print(error)
