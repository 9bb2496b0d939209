"""`jax-ddpm evaluate`: how close the images of a model, or given ones, come to real images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_ddpm.commands.flags import DiffusionFlags, ImportFlag, LoadingFlags, SamplerFlags, parse
from jax_ddpm.commands.together import refuse_together, together
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.types import Precision
from jax_ddpm.training.start_hosts import HostFlags

EXAMPLES = (
    "runs/digits-digits",
    "model.safetensors --reference train:fashion_mnist --sampler dpmpp --num-steps 20",
    "samples.npz --reference real.npz --features inception:pt_inception-2015-12-05-6726825d.pth",
)


@dataclass(frozen=True)
class DataFlags:
    """Where data sets lie. Default: as in the settings of the run."""

    data_dir: str | None = None
    """Folder where tensorflow_datasets stores its data."""
    manual_dir: str | None = None
    """Folder of manually downloaded archives."""
    cache_dir: str | None = None
    """Folder for decoded images, features of references and classifiers. Default: ~/.cache/jax_ddpm."""
    validation_fraction: float | None = None
    """Fraction of the training images to hold out."""


@dataclass(frozen=True)
class EvaluateFlags:
    """Compare the images of a trained model, or given ones, with real images: FID, KID, precision and recall, beside
    the same numbers of held-out real images."""

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Run folder, one of its checkpoints, diffusers folder, or a model file. Or images: a .npz (`images`, `arr_0`, or
    the statistics `mu` and `sigma`), a folder of pictures, train:DATASET or validation:DATASET."""
    reference: str | None = None
    """The real images: train:DATASET or validation:DATASET (named as in --dataset), a .npz or a folder of pictures.
    Default: the training images of the run."""
    features: str | None = None
    """What is compared: pixels, classifier (trained on the data set's labels), inception or inception:FILE, or a
    function of yours, FILE.py:FUNCTION. Default: classifier if the data set has labels, else pixels."""
    num_images: int | None = None
    """Number of images. Default: 1000 of a model on a CPU, 10000 on an accelerator; all images that are given."""
    seed: int = 0
    """Seed of the drawn images."""
    batch_size: int = 64
    """Images at a time."""
    precision: Precision = "float32"
    """dtype of the network's activations. With float64, everything is computed in float64. tf32: float32, but products
    in TF32 on GPUs and in three bfloat16 passes on TPUs."""
    image_size: ImageSize | None = None
    """Height and width of the images, or one number if they are square, for model files that do not say."""
    out: Path | None = None
    """Write the scores to a .json, or the images, their features and the statistics `mu` and `sigma` to a .npz."""
    save_reference: Path | None = None
    """Write the statistics of the reference, `mu` and `sigma`, to this .npz, which can be a --reference."""
    likelihood: Literal["bound", "ode", "both"] | None = None
    """Also bits per dimension of held-out images: the variational bound, the probability-flow ODE, or both."""
    num_held_out: int | None = None
    """For --likelihood: number of held-out images. Default: all, but at most 1000 on a CPU and 10000 on an accelerator;
    256 for the ODE."""
    num_timesteps: int | None = None
    """For --likelihood: timesteps for each image, from 2 to T. T is exact. Default: 50, which gives an estimate without
    bias, with its error."""
    sweep: tuple[str, ...] = ()
    """Compare samplers: NAME=VALUE,VALUE ..., such as sampler=ddpm,ddim num_steps=10,50 clip=x0,state, or
    ema_width=0.02,0.05,0.1 for a run with --power-ema. Each combination is scored, and those with the smallest FID for
    their number of network calls are marked."""
    checkpoints: str | None = None
    """Score the checkpoints of a run, of which train --keep-every keeps more: all, or steps such as 500,1000."""
    plot: Path | None = None
    """The .png of --sweep, --checkpoints or the bound by timestep. Default: in RUN/evaluation, or sweep.png and
    bound.png here."""
    guide: Path | None = None
    """A weaker model, away from which the images are guided (autoguidance; Karras et al. 2024). Needs --guidance."""
    nearest: Path | None = None
    """Also the share of images that are copies of training images, and a .png of those most like one."""
    hosts: Annotated[HostFlags, tyro.conf.arg(name="")] = field(default_factory=HostFlags)
    imports: ImportFlag = ()
    data: DataFlags = field(default_factory=DataFlags)
    sampling: SamplerFlags = field(default_factory=SamplerFlags)
    loading: LoadingFlags = field(default_factory=LoadingFlags)
    diffusion: DiffusionFlags = field(default_factory=DiffusionFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(EvaluateFlags, arguments, prog, EXAMPLES)
    alone = {"--sweep": flags.sweep, "--checkpoints": flags.checkpoints, "--likelihood": flags.likelihood}
    refuse_together(flags.hosts, alone)
    if not flags.hosts.resolved(os.environ).distributed or flags.hosts.process_id in (None, 0):
        check_flags(flags)
    with together("evaluate", flags, arguments) as hosts:
        # imported here so that --help and flag errors appear at once
        from jax_ddpm.commands.evaluating import draw_for_process_0, run

        if hosts is None or hosts.index == 0:
            run(flags, hosts)
        else:
            draw_for_process_0(flags, hosts)


def check_flags(flags: EvaluateFlags) -> None:
    """UserError for flags that cannot be used. Creates the folders of output files."""
    for name, smallest in {"num_images": 2, "batch_size": 1, "num_timesteps": 2, "num_held_out": 2}.items():
        value = getattr(flags, name)
        require(
            value is None or value >= smallest, f"--{name.replace('_', '-')}", value, f"expected at least {smallest}"
        )
    if flags.sweep and flags.likelihood:
        raise UserError("--sweep and --likelihood do not go together: the likelihood does not depend on the sampler.")
    if flags.sweep and flags.out is not None and flags.out.suffix == ".npz":
        raise UserError(f"--out {flags.out}: --sweep draws many sets of images. Give a .json for the scores.")
    if flags.checkpoints:
        check_checkpoints(flags)
    if flags.nearest is not None and (flags.sweep or flags.checkpoints):
        raise UserError("--nearest is for one set of images: leave it out, or --sweep and --checkpoints.")
    for name in ("num_timesteps", "num_held_out"):
        if getattr(flags, name) is not None and not flags.likelihood:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} belongs to --likelihood: give --likelihood bound, or leave it out.")
    for name, path, endings in (
        ("out", flags.out, (".json", ".npz")),
        ("save_reference", flags.save_reference, (".npz",)),
        ("plot", flags.plot, (".png",)),
        ("nearest", flags.nearest, (".png",)),
    ):
        if path is not None:
            require(path.suffix in endings, name, path, f"expected a name that ends in {' or '.join(endings)}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{path.parent} cannot be written ({error.strerror}).") from None


def check_checkpoints(flags: EvaluateFlags) -> None:
    """UserError for flags that do not go together with --checkpoints."""
    others = {"--sweep": flags.sweep, "--likelihood": flags.likelihood, "--step": flags.loading.step is not None}
    others["--ema-width"] = flags.loading.ema_width is not None
    for name, given in others.items():
        if given:
            raise UserError(f"--checkpoints and {name} do not go together: give one of them.")
    if flags.out is not None and flags.out.suffix == ".npz":
        raise UserError(f"--out {flags.out}: --checkpoints draws many sets of images. Give a .json for the scores.")
