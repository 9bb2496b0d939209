"""The code in PyTorch that is timed, set up for speed: networks and formulas of torch_ref or of diffusers.

It uses torch's own random numbers, a fused optimiser and a grouped EMA. The noise of jax_ddpm, which torch_ref can
draw, is used only to compare outputs.
"""

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jax_ddpm.benchmark.job import SEED, TORCH_SETTINGS, Contender, Job, Unavailable
from jax_ddpm.data import batch_indices
from jax_ddpm.spec.model_info import ModelInfo
from torch_ref import diffusion, rng, unets, weights
from torch_ref.objectives import Discrete
from torch_ref.sampling import reverse, samplers
from torch_ref.schedules import Tables, schedule_tables
from torch_ref.step import draw_level_and_noise, learning_rate, prepare_images
from torch_ref.unets.tf32 import set_tf32

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True


def about(compile_seconds: float) -> dict:
    """`Contender.about`."""
    gpu = DEVICE.type == "cuda"
    return {
        "platform": "gpu" if gpu else "cpu",
        "device": f"1 x {torch.cuda.get_device_name()}" if gpu else f"CPU, {torch.get_num_threads()} threads",
        "version": f"torch {torch.__version__}",
        "compile_seconds": compile_seconds,
    }


def synchronise() -> None:
    """Wait until the GPU has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int | None:
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None


def peak_reserved_memory() -> int | None:
    """For CUDA graphs: they reserve their memory permanently, and it does not count as allocated when they run."""
    return torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else None


def reset_peak_memory() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Network:
    """The network of a job, of torch_ref or of diffusers. `module` holds its parameters."""

    def __init__(self, job: Job):
        settings = TORCH_SETTINGS[job.contender]
        self.compile_mode = settings.get("compile_mode")
        if self.compile_mode:
            check_can_compile(self.compile_mode)
        self.peak_memory = peak_memory if self.compile_mode in (None, "default") else peak_reserved_memory
        self.bfloat16 = job.run.training.precision == "bfloat16"
        self.dropout_rate = getattr(job.run.network, "dropout", 0.0)
        reference = unets.build(job.run.network, job.image_channels, torch.bfloat16 if self.bfloat16 else None)
        set_tf32(*[job.run.training.precision == "tf32"] * 2)  # the only network of this process
        weights.initialise(reference, SEED)
        self.module: nn.Module = unet2d(job, reference) if job.contender == "diffusers" else reference
        self.module.to(DEVICE)
        if settings.get("channels_last"):
            self.module.to(memory_format=torch.channels_last)
        self.memory_format = torch.channels_last if settings.get("channels_last") else torch.contiguous_format
        self.is_diffusers = job.contender == "diffusers"

    def predict(self, x: Tensor, t: Tensor, dropout: bool = False) -> Tensor:
        """The output of the network, float32 (B, C, H, W)."""
        x = x.contiguous(memory_format=self.memory_format)
        if self.is_diffusers:
            self.module.train(dropout)
            with torch.autocast(DEVICE.type, torch.bfloat16) if self.bfloat16 else nullcontext():
                return self.module(x, t, return_dict=False)[0].float()
        if dropout:
            return self.module(x, t, dropout=lambda h: F.dropout(h, self.dropout_rate))
        return self.module(x, t)

    def compiled(self, function: Callable) -> Callable:
        """The function, compiled if the contender compiles."""
        return torch.compile(function, mode=self.compile_mode, fullgraph=False) if self.compile_mode else function


def check_can_compile(mode: str) -> None:
    """Raises Unavailable if torch.compile does not work here in this mode."""
    if mode != "default" and DEVICE.type == "cpu":
        raise Unavailable("CUDA graphs need a GPU that torch can use")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if DEVICE.type == "cpu" and shutil.which(compiler) is None:
        raise Unavailable(f"torch.compile needs a C++ compiler on the CPU, and there is no {compiler}")


def unet2d(job: Job, reference: nn.Module) -> nn.Module:
    """The network of diffusers with the weights of `reference`."""
    if job.run.network.name != "ddpm":
        raise Unavailable("diffusers has no network like this one; it has ddpm")
    from diffusers import UNet2DModel

    model = UNet2DModel.from_config(diffusers_configs(job)["config.json"])
    model.load_state_dict(reference.state_dict())
    return model


def diffusers_configs(job: Job) -> dict[str, dict]:
    """The configuration files of diffusers for the job, by name."""
    from jax_ddpm.spec import diffusers_folder

    return diffusers_folder.to_diffusers(ModelInfo(job.run.network, job.image_shape, job.run.diffusion))


def tables_on_device(config) -> Tables:
    return Tables(
        **{name: torch.as_tensor(v, device=DEVICE) for name, v in vars(schedule_tables(config, np.float32)).items()}
    )


def train(job: Job) -> Contender:
    """Prepare to time training steps.

    Check: loss and gradient norm of step 0, without dropout, with the timesteps and the noise that jax_ddpm draws.
    """
    network, training, config = Network(job), job.run.training, job.run.diffusion
    tables, parameters = tables_on_device(config), list(network.module.parameters())
    ema = list(copy.deepcopy(network.module).requires_grad_(False).parameters()) if training.ema else []
    optimizer_class = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    optimizer = optimizer_class(parameters, lr=0.0, weight_decay=training.weight_decay, fused=True)
    images = torch.as_tensor(job.images(), device=DEVICE)
    epoch = [
        batch_indices(training.seed, step, len(images), training.batch_size)
        for step in range(len(images) // training.batch_size)
    ]
    # Copied to the device once: a copy at each step would wait for the GPU.
    epoch = torch.as_tensor(np.stack(epoch), device=DEVICE).long()

    def loss_of(x_0, t, noise, dropout):
        predict = partial(network.predict, dropout=dropout)
        return diffusion.loss(tables, config.objective, predict, x_0, t, noise, training.min_snr_gamma)

    loss_of = network.compiled(loss_of)

    def batch(step: int) -> Tensor:
        return images[epoch[step % len(epoch)]]

    def gradients(x_0, t, noise, dropout) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm; the gradients are in the parameters afterwards."""
        optimizer.zero_grad()
        if network.compile_mode:
            torch.compiler.cudagraph_mark_step_begin()
        loss = loss_of(x_0, t, noise, dropout)
        loss.backward()
        if training.clip_norm is not None:
            return loss, nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        grads = [p.grad for p in parameters if p.grad is not None]
        return loss, torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    def step(number: int) -> None:
        x_0 = prepare_images(batch(number), torch.float32, None)
        if job.run.data.flip:
            flipped = torch.rand(len(x_0), device=DEVICE) < 0.5
            x_0 = torch.where(flipped[:, None, None, None], x_0.flip(-1), x_0)
        t = torch.randint(config.timesteps, (len(x_0),), device=DEVICE)
        gradients(x_0, t, torch.randn_like(x_0), network.dropout_rate > 0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, number, 1_000_000)
        optimizer.step()
        if ema:
            decay = min(training.ema_decay, (1 + number) / (10 + number))
            with torch.no_grad():
                torch._foreach_lerp_(ema, parameters, 1 - decay)

    flip = rng.key(training.seed, rng.FLIP, 0) if job.run.data.flip else None
    x_0 = prepare_images(batch(0), torch.float32, flip)
    keys = rng.key(training.seed, rng.TIMESTEPS, 0), rng.key(training.seed, rng.NOISE, 0)
    t, noise = draw_level_and_noise(*keys, x_0, Discrete(config))
    start = time.perf_counter()
    loss, norm = gradients(x_0, t, noise, False)
    check = {"loss": loss.detach().cpu().numpy(), "grad_norm": norm.detach().cpu().numpy()}
    seconds, done = [time.perf_counter() - start], 0

    def work(runs):
        nonlocal done
        for number in range(done, done + runs):
            step(number)
        done += runs
        synchronise()

    for _ in range(3):
        start = time.perf_counter()
        work(1)
        seconds.append(time.perf_counter() - start)
    compiled = max(seconds) - min(seconds) if network.compile_mode else 0.0
    return Contender(work, 1, check, about(compiled), network.peak_memory, reset_peak_memory)


def sample(job: Job) -> Contender:
    """Prepare to time sampling. Check: the images from the noise that jax_ddpm draws."""
    network, config = Network(job), job.run.diffusion
    batch = job.run.training.batch_size
    height, width, channels = job.image_shape
    keys = rng.fold_in(rng.key(SEED, rng.SAMPLING), np.arange(batch))

    def torch_noise(t) -> Tensor:
        return torch.randn((batch, channels, height, width), device=DEVICE)

    def shared_noise(t) -> Tensor:
        noise = rng.normal(rng.fold_in(keys, t), job.image_shape).permute(0, 3, 1, 2)
        # Use the memory layout of torch_noise. With another one, torch.compile would compile again.
        return noise.clone(memory_format=torch.contiguous_format).to(DEVICE)

    sample_images = pipeline(job, network) if job.contender == "diffusers" else reverse_process(job, network)

    def work(runs):
        for _ in range(runs):
            sample_images(torch_noise)
        synchronise()

    compiled = 0.0
    if network.compile_mode:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            work(1)
            seconds.append(time.perf_counter() - start)
        compiled = max(0.0, seconds[0] - seconds[1])
    check = {"x_0": sample_images(shared_noise).permute(0, 2, 3, 1).cpu().numpy()}
    work(1)
    return Contender(work, config.timesteps, check, about(compiled), network.peak_memory, reset_peak_memory)


def reverse_process(job: Job, network: Network) -> Callable[[Callable], Tensor]:
    """Returns sample_images(draw_noise): the sampler of torch_ref. Each step is compiled if the contender compiles."""
    config = job.run.diffusion
    network.module.eval()
    timesteps = reverse.sampling_timesteps(config, samplers.ANCESTRAL)
    step = reverse.make_step(tables_on_device(config), config, samplers.ANCESTRAL, timesteps, network.predict)
    advance = network.compiled(lambda x, t, noise: step(x, network.predict(x, t), t, noise))

    @torch.no_grad()
    def sample_images(draw_noise):
        if not network.compile_mode:
            x_T = draw_noise(config.timesteps)
            return reverse.reverse_process(step, network.predict, x_T, timesteps, draw_noise)[0]
        x = draw_noise(config.timesteps)
        for t in timesteps.tolist():
            torch.compiler.cudagraph_mark_step_begin()
            x = advance(x, torch.full((len(x),), t, device=DEVICE), draw_noise(t))
            x = x.clone(memory_format=torch.contiguous_format)  # the next run of a CUDA graph overwrites its output
        return x

    return sample_images


def pipeline(job: Job, network: Network) -> Callable[[Callable], Tensor]:
    """Returns sample_images(draw_noise): the DDPMPipeline of diffusers."""
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler.from_config(diffusers_configs(job)["scheduler_config.json"])
    pipe = DDPMPipeline(network.module.eval(), scheduler).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    timesteps, batch = job.run.diffusion.timesteps, job.run.training.batch_size

    def sample_images(draw_noise):
        remaining = iter(range(timesteps, 0, -1))  # x_T, then one draw per step except for the last

        def randn_tensor(*_, **__):
            return draw_noise(next(remaining))

        modules = ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm")
        with (
            mock.patch(f"diffusers.{modules[0]}.randn_tensor", randn_tensor),
            mock.patch(f"diffusers.{modules[1]}.randn_tensor", randn_tensor),
            torch.autocast(DEVICE.type, torch.bfloat16) if network.bfloat16 else nullcontext(),
        ):
            images = pipe(batch_size=batch, num_inference_steps=timesteps, output_type="np").images
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1  # the pipeline returns images in [0, 1]

    return sample_images


def matrix_product(job: Job) -> Contender:
    """Prepare to time the product of two square matrices in the precision of the job."""
    size = 3000 if DEVICE.type == "cpu" else 8192
    in_tf32 = job.run.training.precision == "tf32"
    set_tf32(in_tf32, in_tf32)
    dtype = torch.float32 if in_tf32 else getattr(torch, job.run.training.precision)
    a = torch.as_tensor(np.random.default_rng(SEED).standard_normal((size, size)), dtype=dtype, device=DEVICE)

    def work(runs):
        for _ in range(runs):
            torch.matmul(a, a)
        synchronise()

    work(1)
    return Contender(work, 1, {}, {**about(0.0), "flops_per_step": 2 * size**3}, peak_memory, reset_peak_memory)
