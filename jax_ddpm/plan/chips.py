"""The chips that a program can be compiled for, and what their makers publish about them. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

GPU_MEMORY_SHARE = 0.75  # the share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set
PASSES_OF_FLOAT32 = 6  # bfloat16 products that a TPU needs for one in float32, at the highest precision
PASSES_OF_TF32 = 3  # the same in tf32


@dataclass(frozen=True)
class Chip:
    """A kind of chip. Rates are the maker's figures for dense products, per second."""

    name: str
    title: str
    platform: Literal["gpu", "tpu"]
    memory: float
    """Bytes that a program can use."""
    bfloat16: float
    """FLOP/s in bfloat16."""
    float32: float
    """FLOP/s in float32 at the highest precision: without TF32 on a GPU, in six passes of bfloat16 on a TPU."""
    tf32: float
    """FLOP/s in TF32 on a GPU, in three passes of bfloat16 on a TPU."""
    bandwidth: float
    """Bytes/s to and from the chip's memory."""
    link: float
    """Bytes/s that a chip can send to the others: half of the published figure, which counts both directions."""
    source: str
    """Where the figures are published."""
    clock: float | None = None
    """Cycles/s, for the compiler's estimate in cycles."""


def tpu(name: str, title: str, memory: float, bfloat16: float, bandwidth: float, link: float, clock: float) -> Chip:
    source = f"https://cloud.google.com/tpu/docs/{name}"
    products = bfloat16, bfloat16 / PASSES_OF_FLOAT32, bfloat16 / PASSES_OF_TF32
    return Chip(name, title, "tpu", memory, *products, bandwidth, link / 2, source, clock)


H100 = Chip(
    "h100",
    "NVIDIA H100 SXM",
    "gpu",
    GPU_MEMORY_SHARE * 84_942_979_072,
    989.4e12,
    66.9e12,
    494.7e12,
    3.35e12,
    900e9 / 2,
    "https://www.nvidia.com/en-us/data-center/h100/",
)
CHIPS = {
    chip.name: chip
    for chip in (
        H100,
        tpu("v5e", "TPU v5e", 16e9, 197e12, 819e9, 400e9, 1.5e9),
        tpu("v5p", "TPU v5p", 95e9, 459e12, 2765e9, 1200e9, 1.75e9),
        tpu("v6e", "TPU v6e", 32e9, 918e12, 1638e9, 800e9, 1.75e9),
    )
}
GPUS_PER_HOST = 8
