"""The pictures of a run, made from its weights: sample grids while it trains, and five at its end."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jax_ddpm import diffusion, report, rng
from jax_ddpm.config import RunConfig
from jax_ddpm.data import to_float, to_uint8
from jax_ddpm.samplers import sample_indices
from jax_ddpm.schedules import make_tables

NUM_FRAMES = 11  # of the way from noise to picture, x_T and x_0 among them
STRIP_ROWS = 8
SECONDS = 50.0  # what a sample grid may take, compilation aside


class Pictures:
    """Samples of a run; always the same images of its seed, so that grids can be compared over the training."""

    def __init__(self, folder: Path, graph, config: RunConfig, image_shape: tuple[int, int, int]):
        self.folder, self.graph, self.config, self.image_shape = folder / "samples", graph, config, image_shape
        self.num_frames = min(max(NUM_FRAMES, config.output.gif_frames), config.diffusion.timesteps + 1)
        self.count: int | None = None

    def sample(self, weights: nnx.State, buffers: nnx.State) -> tuple[np.ndarray, np.ndarray]:
        """uint8 samples (N, H, W, C) and their frames (F, N, H, W, C); N as many as the time allows."""
        network = nnx.merge(self.graph, weights, buffers)
        if self.count is None:
            self.count = affordable_count(network, self.config, self.image_shape)
        timesteps = self.config.diffusion.timesteps
        with tqdm(total=timesteps, desc=f"sampling {self.count}", unit="step", leave=False, mininterval=1) as bar:
            x, frames = sample_indices(
                network,
                self.config.diffusion,
                self.image_shape,
                self.config.training.seed,
                np.arange(self.count),
                num_frames=self.num_frames,
                progress=lambda done: bar.update(int(done) - bar.n),
            )
            jax.effects_barrier()
        return to_uint8(np.asarray(x)), to_uint8(np.asarray(frames))

    def save_grid(self, weights: nnx.State, buffers: nnx.State, step: int) -> Path:
        """A sample grid of this step."""
        path = self.folder / f"step-{step:07d}.png"
        report.grid(self.sample(weights, buffers)[0]).save(path)
        return path

    def save_all(
        self, weights: nnx.State, buffers: nnx.State, images: np.ndarray, rows: list[dict]
    ) -> list[tuple[Path, str]]:
        """The closing pictures and what each one shows."""
        samples, frames = self.sample(weights, buffers)
        timesteps = self.config.diffusion.timesteps
        made = {}
        made["grid.png"] = report.grid(samples), f"{len(samples)} samples"
        made["data.png"] = report.grid(np.asarray(images[:64])), "training images"
        strip, ts = forward_strip(np.asarray(images[:STRIP_ROWS]), self.config)
        labels = ["x_0", *(f"t = {t}" for t in ts)]
        made["forward.png"] = report.table(strip, labels), "forward process: noise added to training images"
        done = np.round(np.linspace(0, timesteps, self.num_frames)).astype(int)
        columns = np.round(np.linspace(0, self.num_frames - 1, min(NUM_FRAMES, self.num_frames))).astype(int)
        labels = ["x_T", *(f"t = {timesteps - k}" for k in done[columns[1:-1]]), "x_0"]
        strip = frames[columns, :STRIP_ROWS].swapaxes(0, 1)
        made["reverse.png"] = report.table(strip, labels), "reverse process: from noise to samples"
        for name, (picture, _) in made.items():
            picture.save(self.folder / name)
        shown = [(self.folder / name, text) for name, (_, text) in made.items()]
        if rows:
            report.loss_curve(rows).savefig(self.folder / "loss.png", dpi=120)
            shown.append((self.folder / "loss.png", "loss over the training"))
        if self.config.output.gif_frames:
            report.write_gif(self.folder / "reverse.gif", frames)
            shown.append((self.folder / "reverse.gif", f"the reverse process, {len(frames)} frames"))
        return shown


def forward_strip(images: np.ndarray, config: RunConfig) -> tuple[np.ndarray, list[int]]:
    """uint8 (rows, columns, H, W, C): each image, then q(x_t | x_0) at growing t; and these t."""
    d = config.diffusion
    tables = make_tables(d.schedule, d.timesteps, d.beta_start, d.beta_end)
    ts = sorted({round(t) for t in np.linspace(0, d.timesteps - 1, NUM_FRAMES)[1:]} or {0})
    x_0 = jnp.asarray(to_float(images))
    noise = rng.normal(rng.key(config.training.seed, rng.NOISE, 0), x_0.shape)
    noisy = [diffusion.q_sample(tables, x_0, jnp.full(len(images), t), noise) for t in ts]
    return np.stack([images, *(to_uint8(np.asarray(x)) for x in noisy)], axis=1), ts


def affordable_count(network: nnx.Module, config: RunConfig, image_shape: tuple[int, int, int]) -> int:
    """How many images, at most `num_samples`, T network calls bring in SECONDS; at least one."""
    wanted = config.output.num_samples
    probe = min(8, wanted)
    graph, state = nnx.split(network)
    call = jax.jit(lambda state, x, t: nnx.merge(graph, state)(x, t))
    x, t = jnp.zeros((probe, *image_shape), jnp.float32), jnp.zeros(probe, jnp.int32)
    call(state, x, t).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call(state, x, t).block_until_ready()
        seconds.append(time.perf_counter() - start)
    per_image = min(seconds) / probe
    return max(1, min(wanted, int(SECONDS / (config.diffusion.timesteps * per_image))))
