"""The pictures of a run: sample grids during the training, and the final pictures at its end."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jax_ddpm import report
from jax_ddpm.data import ImageData, to_uint8
from jax_ddpm.objectives.figures import log_snr
from jax_ddpm.sampling.guidance import with_labels
from jax_ddpm.sampling.reverse import sampling_levels, sampling_timesteps
from jax_ddpm.sampling.samplers import sample_indices
from jax_ddpm.spec.data_range import from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.labels import Labels, label_array, labels_of_images
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.noise_levels import level_name, symbol
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import diagnostics
from jax_ddpm.waiting import ticking, waiting

NUMBERS_FILE = "closing.npz"  # arrays behind the final pictures, from which the page is made
NUM_FRAMES = 31  # states of the reverse process on the page, with x_T and x_0
STRIP_COLUMNS = 11  # states in a strip
STRIP_ROWS = 8  # images in a strip; also the number of samples that are compared with training images
PREVIEW_STEPS = 50  # sampler steps of the grids during the training
MAX_SAMPLING_SECONDS = 50.0  # for a sample grid, without compilation: a slow network draws fewer images
MIN_SAMPLING_SECONDS = 10.0  # allowed for the grid at the end of a short run


class Pictures:
    """Draws samples of a run. Their noise depends only on the seed, so grids of different steps can be compared."""

    def __init__(
        self,
        folder: Path,
        graph,
        config: RunConfig,
        image_shape: tuple[int, int, int],
        class_names: tuple[str, ...] | None = None,
    ):
        self.folder, self.graph, self.config, self.image_shape = folder / "samples", graph, config, image_shape
        self.info = ModelInfo(config.network, image_shape, config.diffusion, class_names=class_names)
        self.names = class_names or ()
        self.seconds: float | None = None  # per image and network call; None until measured
        self.max_seconds = MAX_SAMPLING_SECONDS

    def sample(
        self, network: nnx.Module, sampler: SamplerConfig, frame_steps: tuple[int, ...] = ()
    ) -> tuple[np.ndarray, np.ndarray, Labels | None]:
        """(samples (N, H, W, C), frames (F, N, H, W, C)), both float, and the labels of the samples.

        N is `num_samples`, or fewer if sampling is slow; with K classes, a multiple of K if it is more than K. Frame f
        is the state after frame_steps[f] steps.
        """
        config, num_samples = self.config, self.config.output.num_samples
        if self.seconds is None:
            with waiting("compiling the network"):
                self.seconds = seconds_per_image(network, min(8, num_samples), self.image_shape, self.info)
        steps = len(sampling_timesteps(config.diffusion, sampler))
        calls = (2 * steps if sampler.sampler in ("heun", "midpoint") else steps) * (1 if sampler.guidance == 1 else 2)
        count = max(1, min(num_samples, int(self.max_seconds / (calls * self.seconds))))
        classes = config.network.label_count or 1
        count -= count % classes if count > classes else 0
        labels = labels_of_images(self.info, None, count, sampler)
        what = {"desc": f"sampling {count}", "unit": "step", "postfix": "compiling the sampler"}
        with tqdm(total=steps, leave=False, mininterval=1, **what) as bar, ticking(bar):

            def progress(done):
                bar.set_postfix_str("", refresh=False)
                bar.update(done - bar.n)

            x, frames = sample_indices(
                network,
                config.diffusion,
                self.image_shape,
                config.training.seed,
                np.arange(count),
                sampler=sampler,
                num_frames=frame_steps,
                labels=labels,
                progress=progress,
            )
        return np.asarray(x), np.asarray(frames), labels

    def grid(self, samples: np.ndarray, labels: Labels | None):
        """The samples in one picture, with a row for each class if there are classes."""
        return report.class_grid(samples, labels and labels.wanted, self.names)

    def save_grid(self, weights: nnx.State, buffers: nnx.State, step: int) -> Path:
        """Draw a sample grid with `preview_sampler`, and save it as step-NNNNNNN.png."""
        samples, _, labels = self.sample(nnx.merge(self.graph, weights, buffers), preview_sampler(self.config))
        path = self.folder / grid_name(step)
        with atomic_path(path) as draft:
            self.grid(to_uint8(samples), labels).save(draft, "PNG")
        return path

    def limit_seconds(self, of_run: float) -> None:
        """Let the final grid take half the time of the run at most, so that a short run ends soon."""
        self.max_seconds = min(MAX_SAMPLING_SECONDS, max(MIN_SAMPLING_SECONDS, of_run / 2))

    def save_final(
        self,
        weights: nnx.State,
        buffers: nnx.State,
        step: int,
        images: ImageData | None,
        rows: list[dict],
        are_raw: bool = False,
    ) -> list[tuple[Path, str]]:
        """Make the final pictures from the weights of `step`. Returns the path of each and what it shows.

        Saves their numbers in closing.npz, for the page. images: None if the data set is not available; then the
        pictures that need it are left out. rows: the rows of metrics.jsonl. are_raw: whether the weights are raw though
        the run has an average of them.
        """
        network, config = nnx.merge(self.graph, weights, buffers), self.config
        gif_frames, levels = config.output.gif_frames, sampling_levels(config.diffusion, config.sampling)
        # logSNR of the states after 0, 1, ... steps; the last state, x_0, has none.
        log_snrs = log_snr(config.diffusion, levels)  # -inf in pure noise
        frame_steps = report.evenly_spaced(np.maximum(log_snrs, -20), max(NUM_FRAMES, gif_frames) - 1)
        x_0, all_frames, labels = self.sample(network, config.sampling, (*frame_steps.tolist(), len(levels)))
        chosen = evenly_spaced_indices(len(all_frames), NUM_FRAMES)
        frames, steps = all_frames[chosen, :STRIP_ROWS], frame_steps[chosen[:-1]]
        t = levels[steps]
        shown = labels and labels.rows(slice(STRIP_ROWS))
        drawn_with = config.sampling, shown
        data_range = config.diffusion.data_range
        states = to_data_range(frames[:-1], data_range)
        with waiting("predicting x_0"):
            before = diagnostics.predict_x_0(network, config.diffusion, states, t, *drawn_with)
        predicted = np.concatenate([from_data_range(before, data_range), frames[-1:]])
        x_t = to_uint8(frames)
        edges = diagnostics.BIN_EDGES
        if images is not None:
            edges = diagnostics.bin_edges(np.asarray(images.train[: diagnostics.NUM_HISTOGRAM_IMAGES]))
        numbers: dict[str, np.ndarray] = {
            "step": np.int64(step),
            "are_raw": np.bool_(are_raw),
            "num_parameters": np.int64(sum(leaf.size for leaf in jax.tree.leaves(weights))),
            "num_samples": np.int64(len(x_0)),
            "level_symbol": np.str_(symbol(config.diffusion)),
            "frames_t": t,
            "frames_log_snr": log_snrs[steps],
            "frames_x_t": x_t,
            "frames_x_0": to_uint8(predicted),
            "bins": edges,
            "sampled_shares": diagnostics.bin_fractions(x_0, edges),
        }
        samples = to_uint8(x_0)
        pictures = {"grid.png": (self.grid(samples, labels), f"{len(samples)} samples")}
        if preview_sampler(config) == config.sampling:
            pictures["grid.png"][0].save(self.folder / grid_name(step))  # else it would be drawn twice
        else:
            self.save_grid(weights, buffers, step)
        columns = evenly_spaced_indices(len(x_t), STRIP_COLUMNS)
        heads = ["x_T", *level_labels(config, t[columns[1:-1]]), "x_0"]
        names = [report.label_text(label, self.names) for label in shown.wanted] if shown else []
        pictures["reverse.png"] = (
            report.table(x_t[columns].swapaxes(0, 1), heads, row_labels=names),
            f"the reverse process, from noise to samples{columns_text(config)}",
        )
        pictures["x0.png"] = (
            report.beside(x_t[columns, :4], numbers["frames_x_0"][columns, :4], heads),
            f"predicted x_0 for each x_t{columns_text(config)}",
        )
        if images is not None:
            compared, max_batch = samples[:STRIP_ROWS], max(STRIP_ROWS, len(samples))
            with waiting("measuring the loss by noise level"):
                numbers |= diagnostics.data_statistics(network, config, images, compared, max_batch, edges)
            pictures |= data_pictures(config, images, compared, numbers)
        for name, (picture, _) in pictures.items():
            picture.save(self.folder / name)
        curves = {}
        if rows:
            curves["loss.png"] = report.loss_curve(rows), "training and validation loss"
        if "loss_by_t" in numbers:
            figure = report.loss_by_timestep(numbers["loss_t"], numbers["loss_by_t"], symbol(config.diffusion))
            curves["timesteps.png"] = figure, f"loss by {level_name(config.diffusion)}"
        fractions = {"samples": numbers["sampled_shares"], "data": numbers.get("data_shares")}
        curves["histogram.png"] = (
            report.histogram(edges, {name: x for name, x in fractions.items() if x is not None}),
            "histogram of the pixel values",
        )
        for name, (figure, _) in curves.items():
            figure.savefig(self.folder / name, dpi=120)
        with atomic_path(self.folder / NUMBERS_FILE) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, **numbers)
        paths = [(self.folder / name, text) for name, (_, text) in {**pictures, **curves}.items()]
        if gif_frames:
            gif = to_uint8(all_frames[evenly_spaced_indices(len(all_frames), gif_frames)])
            report.write_gif(self.folder / "reverse.gif", gif, labels=labels and labels.wanted, names=self.names)
            paths.append((self.folder / "reverse.gif", f"the reverse process, {len(gif)} frames"))
        return paths


def grid_name(step: int) -> str:
    """The file of a grid that is drawn during the training."""
    return f"step-{step:07d}.png"


def evenly_spaced_indices(length: int, count: int) -> np.ndarray:
    """At most `count` indices of a sequence, evenly spaced, with the first and the last one."""
    return np.unique(np.round(np.linspace(0, length - 1, count)).astype(int))


def data_pictures(config: RunConfig, images: ImageData, samples: np.ndarray, numbers: dict) -> dict[str, tuple]:
    """(picture, text) by file name: training images, the forward process, nearest training images of the samples."""
    strip, levels = diagnostics.forward_process(np.asarray(images.train[:STRIP_ROWS]), config, STRIP_COLUMNS)
    neighbours = np.concatenate([samples[:, None], numbers["nearest_images"]], axis=1)
    ranks = ["nearest", *(f"#{i}" for i in range(2, neighbours.shape[1]))]
    return {
        "data.png": (report.grid(np.asarray(images.train[:64])), "training images"),
        "forward.png": (
            report.table(strip, ["x_0", *level_labels(config, levels)]),
            f"the forward process: noise added to training images{columns_text(config)}",
        ),
        "nearest.png": (report.table(neighbours, ["sample", *ranks]), "samples and their nearest training images"),
    }


def level_labels(config: RunConfig, levels: np.ndarray) -> list[str]:
    """A text for each noise level: t = 500 or t = 0.25. For edm the number alone: it fits above small pictures."""
    if config.diffusion.objective == "edm":
        return [f"{level:.2g}" for level in levels]
    return [f"t = {format(level, '.2g') if config.diffusion.is_continuous else level}" for level in levels]


def columns_text(config: RunConfig) -> str:
    """What the numbers above the columns are, if they do not say it."""
    return "; columns: sigma" if config.diffusion.objective == "edm" else ""


def preview_sampler(config: RunConfig) -> SamplerConfig:
    """Sampler of the grids during the training.

    The run's own if it sets `num_steps` or its objective is edm or flow, else DDIM in PREVIEW_STEPS.
    """
    if config.sampling.num_steps is not None or config.diffusion.is_continuous:
        return config.sampling
    steps = min(PREVIEW_STEPS, config.diffusion.timesteps)
    return replace(config.sampling, sampler="ddim", num_steps=steps, spacing=SamplerConfig.spacing, eta=0.0)


def seconds_per_image(
    network: nnx.Module, batch_size: int, image_shape: tuple[int, int, int], info: ModelInfo
) -> float:
    """Seconds per image of one network call on a batch."""
    graph, state = nnx.split(network)
    labels = label_array(info, None, batch_size)
    call = jax.jit(lambda state, x, t: with_labels(nnx.merge(graph, state), labels)(x, t))
    x, t = jnp.zeros((batch_size, *image_shape), jnp.float32), jnp.zeros(batch_size, jnp.int32)
    call(state, x, t).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call(state, x, t).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / batch_size
