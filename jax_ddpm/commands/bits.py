"""Bits per dimension of held-out images, for `jax-ddpm evaluate --likelihood`."""

import jax.numpy as jnp
import numpy as np

from jax_ddpm import report
from jax_ddpm.commands.evaluating import Evaluation, picture_path
from jax_ddpm.evaluation import bits_per_dimension, choices, flow_bits_per_dimension
from jax_ddpm.evaluation.progress import Bars
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.files import atomic_path

NUM_TIMESTEPS = 50
MAX_FLOW_IMAGES = 256  # on a CPU: each step of the ODE differentiates the network


def measure(evaluation: Evaluation) -> dict:
    """Compute and print what `--likelihood` asks for. Returns it by kind, for JSON. Writes the picture of L_t."""
    flags, model = evaluation.flags, evaluation.model
    require(model.info.diffusion.timesteps >= 2, "timesteps", model.info.diffusion.timesteps, "expected 2 or more")
    (images, labels), chosen = choices.likelihood_images(evaluation.real), {}
    count = min(len(images), flags.num_held_out or choices.default_num_images())
    if flags.num_held_out is None:
        print(f"Bits per dimension: of {count:,} of {len(images):,} held-out images. --num-held-out changes that.")
    labels = choices.labels_for_model(model.info, evaluation.real, labels)
    if model.info.network.label_count:
        print(f"Bits per dimension: {about_labels(labels)}")
    steps = flags.num_timesteps or min(NUM_TIMESTEPS, model.info.diffusion.timesteps)
    settings = {"seed": flags.seed, "batch_size": flags.batch_size}
    settings["dtype"] = jnp.float64 if flags.precision == "float64" else jnp.float32

    def values(function, images, **arguments):
        given = labels and labels[: len(images)]
        total = -(-len(images) // min(flags.batch_size, len(images))) * steps
        progress = Batches(evaluation.bars, f"bits of {len(images):,} images", steps, total)
        found = function(model, images, **arguments, **settings, labels=given, progress=progress)
        evaluation.bars.close()
        return found

    if flags.likelihood in ("bound", "both"):
        bound = values(bits_per_dimension, np.asarray(images[:count]), num_timesteps=steps)
        chosen["bound"] = as_dict(bound, steps)
        print(f"Bits per dimension, bound: {text(bound)}, {steps} of {model.info.diffusion.timesteps} timesteps")
        path = picture_path(evaluation, "bound.png")
        with atomic_path(path) as draft:
            report.bound_by_timestep({"L_t": (bound.edges, bound.mean_terms)}).savefig(draft, dpi=120, format="png")
        print(f"Wrote the picture of L_t: {path}")
    if flags.likelihood in ("ode", "both"):
        few = min(count, flags.num_held_out or MAX_FLOW_IMAGES)
        flow = values(flow_bits_per_dimension, np.asarray(images[:few]), num_steps=steps)
        chosen["ode"] = as_dict(flow, steps)
        print(f"Bits per dimension, ODE: {text(flow)}, {steps} steps")
    return chosen


def about_labels(labels: list[int | None] | None) -> str:
    """One line: which labels the model gets with the held-out images."""
    if labels is None:
        return "without labels, since the held-out images have none."
    unknown = sum(label is None for label in labels)
    others = f", and no label for {unknown:,} images whose class the model does not have" if unknown else ""
    return f"each image with its class as label{others}."


def as_dict(found, steps: int) -> dict:
    return {"value": found.value, "standard_error": found.standard_error, "num_images": len(found.per_image)} | {
        "num_timesteps": steps
    }


def text(found) -> str:
    return f"{found.value:.3f} +- {found.standard_error:.3f}, {len(found.per_image):,} held-out images"


class Batches:
    """A `progress` of functions that count the steps of each batch from 1 again."""

    def __init__(self, bars: Bars, what: str, steps: int, total: int):
        self.bars, self.what, self.steps, self.total, self.done = bars, what, steps, total, 0

    def __call__(self, done: int) -> None:
        self.done += (done - self.done - 1) % self.steps + 1
        self.bars(self.what, min(self.done, self.total), self.total)
