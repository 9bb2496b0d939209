"""The pictures of a run, made from its weights: sample grids while it trains, and the closing ones at its end."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jax_ddpm import report
from jax_ddpm.data import ImageData, to_uint8
from jax_ddpm.sampling.reverse import chain_of
from jax_ddpm.sampling.samplers import sample_indices
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import diagnostics as looks

CLOSING_FILE = "closing.npz"  # what the page is made from
NUM_FRAMES = 31  # states of the reverse process that are kept, x_T and x_0 among them
COLUMNS = 11  # of them in a strip
ROWS = 8  # images in strips, and beside their nearest training images
FEW_STEPS = 50  # of the grids along the way
SECONDS = 50.0  # what a sample grid may take, compilation aside


class Pictures:
    """Samples of a run; always the same images of its seed, so that grids can be compared over the training."""

    def __init__(self, folder: Path, graph, config: RunConfig, image_shape: tuple[int, int, int]):
        self.folder, self.graph, self.config, self.image_shape = folder / "samples", graph, config, image_shape
        self.seconds: float | None = None  # that the network takes for an image

    def sample(
        self, network: nnx.Module, sampler: SamplerConfig, kept: tuple[int, ...] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Float samples (N, H, W, C), N as time allows, and states (F, N, H, W, C) after `kept` steps."""
        config, wanted = self.config, self.config.output.num_samples
        if self.seconds is None:
            self.seconds = seconds_per_image(network, min(8, wanted), self.image_shape)
        steps = sampler.num_steps or config.diffusion.timesteps
        calls = 2 * steps if sampler.sampler == "heun" else steps
        count = max(1, min(wanted, int(SECONDS / (calls * self.seconds))))
        with tqdm(total=steps, desc=f"sampling {count}", unit="step", leave=False, mininterval=1) as bar:
            x, frames = sample_indices(
                network,
                config.diffusion,
                self.image_shape,
                config.training.seed,
                np.arange(count),
                sampler=sampler,
                num_frames=kept,
                progress=lambda done: bar.update(done - bar.n),
            )
        return np.asarray(x), np.asarray(frames)

    def save_grid(self, weights: nnx.State, buffers: nnx.State, step: int) -> Path:
        """A sample grid of this step, drawn in few steps."""
        samples, _ = self.sample(nnx.merge(self.graph, weights, buffers), along(self.config))
        path = self.folder / f"step-{step:07d}.png"
        with atomic_path(path) as draft:
            report.grid(to_uint8(samples)).save(draft, "PNG")
        return path

    def save_all(
        self, weights: nnx.State, buffers: nnx.State, step: int, images: ImageData | None, rows: list[dict]
    ) -> list[tuple[Path, str]]:
        """The closing pictures of the weights of `step`, and what each one shows.

        Their numbers go into closing.npz, from which the page is made. images: None where the data cannot be had; the
        pictures that need it are then left out.
        """
        network, config = nnx.merge(self.graph, weights, buffers), self.config
        gif_frames, chain = config.output.gif_frames, chain_of(config.diffusion, config.sampling)
        log_snr = np.log(schedule_tables(config.diffusion, np.float64).snr)[
            chain
        ]  # of the states after 0, 1, ... steps
        kept = report.evenly_spaced(log_snr, max(NUM_FRAMES, gif_frames) - 1)
        x_0, every_frame = self.sample(network, config.sampling, (*kept.tolist(), len(chain)))
        some = evenly_spaced_indices(len(every_frame), NUM_FRAMES)
        frames, t = every_frame[some, :ROWS], chain[kept[some[:-1]]]
        predicted = np.concatenate([looks.predict_x_0(network, config.diffusion, frames[:-1], t), frames[-1:]])
        x_t = to_uint8(frames)
        numbers: dict[str, np.ndarray] = {
            "step": np.int64(step),
            "num_parameters": np.int64(sum(leaf.size for leaf in jax.tree.leaves(weights))),
            "num_samples": np.int64(len(x_0)),
            "frames_t": t,
            "frames_log_snr": log_snr[kept[some[:-1]]],
            "frames_x_t": x_t,
            "frames_x_0": to_uint8(predicted),
            "bins": looks.BINS,
            "sampled_shares": looks.shares(x_0),
        }
        samples = to_uint8(x_0)
        made = {"grid.png": (report.grid(samples), f"{len(samples)} samples")}
        self.save_grid(weights, buffers, step)
        columns = evenly_spaced_indices(len(x_t), COLUMNS)
        labels = ["x_T", *(f"t = {t[column]}" for column in columns[1:-1]), "x_0"]
        made["reverse.png"] = (
            report.table(x_t[columns].swapaxes(0, 1), labels),
            "reverse process: from noise to samples, evenly in logSNR",
        )
        made["x0.png"] = (
            report.beside(x_t[columns, :4], numbers["frames_x_0"][columns, :4], labels),
            "what the network takes each x_t for",
        )
        if images is not None:
            numbers |= looks.data_numbers(network, config, images, samples[:ROWS], max(ROWS, len(samples)))
            made |= data_pictures(config, images, samples[:ROWS], numbers)
        for name, (picture, _) in made.items():
            picture.save(self.folder / name)
        figures = {}
        if rows:
            figures["loss.png"] = report.loss_curve(rows), "loss over the training"
        if "loss_by_t" in numbers:
            figures["timesteps.png"] = report.loss_by_timestep(numbers["loss_t"], numbers["loss_by_t"]), "loss by t"
        shares = {"samples": numbers["sampled_shares"], "data": numbers.get("data_shares")}
        figures["histogram.png"] = (
            report.histogram(looks.BINS, {name: share for name, share in shares.items() if share is not None}),
            "distribution of the pixel values",
        )
        for name, (figure, _) in figures.items():
            figure.savefig(self.folder / name, dpi=120)
        with atomic_path(self.folder / CLOSING_FILE) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, **numbers)
        shown = [(self.folder / name, text) for name, (_, text) in {**made, **figures}.items()]
        if gif_frames:
            chosen = to_uint8(every_frame[evenly_spaced_indices(len(every_frame), gif_frames)])
            report.write_gif(self.folder / "reverse.gif", chosen)
            shown.append((self.folder / "reverse.gif", f"the reverse process, {len(chosen)} frames"))
        return shown


def evenly_spaced_indices(length: int, count: int) -> np.ndarray:
    """At most `count` of the indices of a sequence, evenly spaced, first and last among them."""
    return np.unique(np.round(np.linspace(0, length - 1, count)).astype(int))


def data_pictures(config: RunConfig, images: ImageData, samples: np.ndarray, numbers: dict) -> dict[str, tuple]:
    """By file name: the training images, the forward process, and the training images nearest to the samples."""
    strip, ts = looks.forward_strip(np.asarray(images.train[:ROWS]), config, COLUMNS)
    beside = np.concatenate([samples[:, None], numbers["nearest_images"]], axis=1)
    ranks = ["nearest", *(f"{i}." for i in range(2, beside.shape[1]))]
    return {
        "data.png": (report.grid(np.asarray(images.train[:64])), "training images"),
        "forward.png": (
            report.table(strip, ["x_0", *(f"t = {t}" for t in ts)]),
            "forward process: noise added to training images",
        ),
        "nearest.png": (report.table(beside, ["sample", *ranks]), "samples and the training images nearest to them"),
    }


def along(config: RunConfig) -> SamplerConfig:
    """What draws the grids along the way: the run's own sampler where that takes few steps, else DDIM."""
    if config.sampling.num_steps is not None:
        return config.sampling
    return SamplerConfig(sampler="ddim", num_steps=min(FEW_STEPS, config.diffusion.timesteps))


def seconds_per_image(network: nnx.Module, batch_size: int, image_shape: tuple[int, int, int]) -> float:
    """What a network call takes for each image of a batch."""
    graph, state = nnx.split(network)
    call = jax.jit(lambda state, x, t: nnx.merge(graph, state)(x, t))
    x, t = jnp.zeros((batch_size, *image_shape), jnp.float32), jnp.zeros(batch_size, jnp.int32)
    call(state, x, t).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call(state, x, t).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / batch_size
