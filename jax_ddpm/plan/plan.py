"""Compiles the programs of a run for a target, and describes in plain words what they need and what bounds them."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from jax_ddpm.plan.chips import GPU_MEMORY_SHARE, Chip
from jax_ddpm.plan.measure import Measured, Seconds, bytes_in, measure, seconds
from jax_ddpm.plan.programs import Lowered, lower_sampling, lower_training
from jax_ddpm.plan.target import Target, devices_of
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.text import one_line

What = Literal["train", "sample"]
PARTS = {
    "products": "convolutions and matrix products",
    "memory": "memory traffic",
    "network": "traffic between devices",
}


def plan(
    config: RunConfig, target: Target, what: What, num_images: int, image_shape: tuple[int, int, int]
) -> Iterator[str]:
    """The lines about one program, after it was compiled.

    Args:
        config: settings of the run. sampling: those of the sampler.
        target: chips to compile for.
        what: train or sample.
        num_images: in the data set (train), or in a batch (sample).
        image_shape: (H, W, C).

    Raises:
        UserError: a batch that the devices cannot share, a compiler that is missing, or a program that it refuses.
    """
    devices = devices_of(target)
    lower = lower_training if what == "train" else lower_sampling
    lowered = lower(config, devices, target.platform, num_images, image_shape)
    batch_size = config.training.batch_size if what == "train" else num_images
    yield headline(config, target, what, batch_size, len(devices), lowered.steps)
    start = time.perf_counter()
    try:
        compiled = lowered.program.compile()
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"It does not fit: the compiler finds no place for it in the chip's memory ({one_line(error, 300)}).\n"
            "Take more chips, a smaller --batch-size, --accumulate, --remat, --fsdp or --precision bfloat16."
        ) from None
    measured = measure(lowered, compiled, len(devices), target.chip)
    yield f"Compiled in {time.perf_counter() - start:.0f} s"
    yield from lines(measured, lowered, target, batch_size, len(devices))


def headline(config: RunConfig, target: Target, what: What, batch_size: int, num_devices: int, steps: int) -> str:
    task = "training" if what == "train" else f"sampling by {config.sampling.sampler}"
    share = "" if num_devices == 1 else f" ({batch_size // num_devices} a device)"
    return (
        f"{config.network.name} on {target.name}: {task} in {config.training.precision}, batch size {batch_size:,}"
        f"{share}, {steps:,} steps a call"
    )


def lines(measured: Measured, lowered: Lowered, target: Target, batch_size: int, num_devices: int) -> Iterator[str]:
    """What a compiled program needs, one fact a line."""
    memory, chip = measured.memory, target.chip
    limit = f" of {size(chip.memory)}" if chip else ""
    yield f"Memory per device: {size(memory.total)}{limit}"
    arguments = {name: bytes_in(tree) for name, tree in lowered.arguments.items()} if chip else {}
    parts = "".join(f", {name} {size(count)}" for name, count in arguments.items())
    yield f"  arguments    {size(memory.arguments)}{parts}"
    yield f"  results      {size(memory.results)} that are not written over arguments"
    yield f"  temporaries  {size(memory.temporaries)}"
    yield f"  code         {size(memory.code)}"
    products = ", ".join(f"{flops / 1e9:,.1f} GFLOP in {dtype}" for dtype, flops in measured.flops.most_common())
    yield f"A step of a device: {products}; {size(measured.bytes_moved)} read and written"
    if chip and chip.platform == "gpu":
        yield f"  {measured.kernels:,.0f} kernels"
    for kind, arrays in measured.collectives.items():
        yield f"Sent to other devices in a step: {kind} of {traffic(arrays)}"
    if measured.callbacks:
        yield f"The program calls the host {measured.callbacks} times."
    if chip:
        times = seconds(measured, chip, num_devices)
        yield from time_lines(measured, times, chip, batch_size)


def traffic(arrays) -> str:
    """Number of arrays and of numbers in them, by dtype."""
    counts, numbers = Counter(array.dtype for array in arrays), Counter()
    for array in arrays:
        numbers[array.dtype] += array.size
    return ", ".join(
        f"{numbers[dtype]:,} numbers of {dtype} in {count} array{'s' * (count > 1)}" for dtype, count in counts.items()
    )


def time_lines(measured: Measured, times: Seconds, chip: Chip, batch_size: int) -> Iterator[str]:
    each = ", ".join(f"{PARTS[name]} {duration(getattr(times, name))}" for name in PARTS)
    yield f"Time per step at the chip's peaks: {each}"
    least = getattr(times, times.bound)
    if measured.estimated_seconds:
        estimate = measured.estimated_seconds
        yield f"Time per step as the compiler estimates it: {duration(estimate)}, {batch_size / estimate:,.0f} images/s"
    most = f"{batch_size / least:,.0f} images/s at most"
    yield f"A step is bound by {PARTS[times.bound]}: at least {duration(least)}, {most}"
    fits = measured.memory.total <= chip.memory
    yield f"It {'fits' if fits else 'does not fit'}: {measured.memory.total / chip.memory:.0%} of the memory"
    if chip.platform == "gpu":
        yield f"  (JAX takes {GPU_MEMORY_SHARE:.0%} of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION changes that)"
    rates = f"{chip.bfloat16 / 1e12:,.0f} TFLOP/s in bfloat16, {chip.tf32 / 1e12:,.0f} in tf32, "
    rates += f"{chip.float32 / 1e12:,.0f} in float32"
    ways = f"{chip.bandwidth / 1e9:,.0f} GB/s to memory, {chip.link / 1e9:,.0f} GB/s to other chips"
    yield f"Peaks of {chip.title}: {rates}, {ways} ({chip.source})"


def size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def duration(time: float) -> str:
    return f"{time * 1e3:,.2f} ms"
