"""What a compiled program needs: memory, work, traffic between devices; and the time that the chip's peaks allow."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import jax

from jax_ddpm.plan.chips import Chip
from jax_ddpm.plan.hlo import ArrayType, Program
from jax_ddpm.plan.products import product_flops
from jax_ddpm.plan.programs import Lowered

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
CONVOLUTION_CALLS = re.compile(r'custom_call_target="(__cudnn\$conv\w+)"')
CALLBACK = re.compile(r'custom_call_target="[^"]*callback[^"]*"|is_host_transfer=true|\b(?:infeed|outfeed)\(')


@dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    arguments: int
    results: int
    """Without those that are written over arguments."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.results + self.temporaries + self.code


@dataclass(frozen=True)
class Measured:
    """Figures of a compiled program. Work and traffic are those of one step on one device."""

    memory: Memory
    flops: Counter
    """FLOPs of convolutions and matrix products, by the dtype of their operands."""
    bytes_moved: float
    """Bytes that instructions read from and write to the device's memory."""
    kernels: float
    """Instructions that move data: on a GPU the kernels that are launched."""
    collectives: dict[str, list[ArrayType]]
    """By kind, the arrays that a step sends to other devices."""
    estimated_seconds: float | None
    """The compiler's own estimate, if it makes one: libtpu does."""
    trip_counts: list[int | None]
    aliased: int
    """Arguments that the call overwrites with its results."""
    callbacks: int
    """Calls of the host, and transfers to and from it."""
    convolutions: Counter
    """(dtypes of the operands, precision): how many convolutions."""


def measure(lowered: Lowered, compiled, num_devices: int, chip: Chip | None) -> Measured:
    """The figures of `compiled`, which is `lowered.program`, compiled."""
    program, stats = Program(compiled.as_text()), compiled.memory_analysis()
    outer = [i for i in program.computations[program.entry] if i.opcode == "while"]
    steps = lowered.steps if any(program.trip_count(loop) == lowered.steps for loop in outer) else 1
    flops, moved, kernels, cycles = product_flops(lowered.jaxpr.jaxpr), 0, 0, 0
    if not any(equation.primitive.name == "while" for equation in lowered.jaxpr.jaxpr.eqns):
        flops = Counter({dtype: count / lowered.steps for dtype, count in flops.items()})
    for instruction, times in program.instructions(scheduled_only=True):
        if instruction_bytes := program.bytes_moved(instruction):
            moved += times * instruction_bytes
            kernels += times
        if instruction.opcode != "while" and (
            found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        ):
            cycles += times * int(found[1])
    return Measured(
        memory=Memory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes - stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        ),
        flops=Counter({dtype: count / num_devices for dtype, count in flops.items()}),
        bytes_moved=moved / steps,
        kernels=kernels / steps,
        collectives=collectives(program, steps),
        estimated_seconds=cycles / steps / chip.clock if cycles and chip and chip.clock else None,
        trip_counts=[program.trip_count(loop) for loop in program.loops],
        aliased=program.num_aliased,
        callbacks=len(CALLBACK.findall(program.text)),
        convolutions=convolutions(program),
    )


def collectives(program: Program, steps: int) -> dict[str, list[ArrayType]]:
    found: dict[str, list[ArrayType]] = {}
    for instruction, times in program.instructions(scheduled_only=False):
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES and times:
            operands = [program.by_name[name] for name in instruction.operands if name in program.by_name]
            sent = [array for operand in operands for array in operand.arrays]
            found.setdefault(kind, []).extend(sent * max(1, times // steps))
    return found


def convolutions(program: Program) -> Counter:
    """How often the program has each kind of convolution, whatever library computes it."""
    found: Counter = Counter()
    for instruction, _ in program.instructions(scheduled_only=False):
        if instruction.opcode == "convolution" or CONVOLUTION_CALLS.search(instruction.attributes):
            operands = [program.by_name.get(name) for name in instruction.operands[:2]]
            dtypes = " x ".join(operand.arrays[0].dtype for operand in operands if operand is not None)
            precision = re.search(r'operand_precision=\{(\w+)|"operand_precision":\["(\w+)"', instruction.attributes)
            found[dtypes, (precision[1] or precision[2]).lower() if precision else "default"] += 1
    return found


@dataclass(frozen=True)
class Seconds:
    """The time of one step that each part of a chip needs at its peak."""

    products: float
    memory: float
    network: float

    @property
    def bound(self) -> str:
        """The name of the part that needs most."""
        return max(("products", "memory", "network"), key=lambda name: getattr(self, name))


def seconds(measured: Measured, chip: Chip, num_devices: int) -> Seconds:
    """In a ring, an all-reduce sends each number 2 (n - 1) / n times. An all-gather sends those of its argument, the
    part of one device, n - 1 times. The other collectives send each number (n - 1) / n times.
    """
    sent = 0.0
    for kind, arrays in measured.collectives.items():
        factor = {"all-reduce": 2, "all-gather": num_devices}.get(kind, 1)
        rounds = factor * (num_devices - 1) / num_devices
        sent += rounds * sum(array.bytes for array in arrays)
    peaks = {"bfloat16": chip.bfloat16, "tf32": chip.tf32}
    products = sum(flops / peaks.get(dtype, chip.float32) for dtype, flops in measured.flops.items())
    return Seconds(products, measured.bytes_moved / chip.bandwidth, sent / chip.link)


def bytes_in(tree) -> int:
    """Bytes that the arrays in a tree of shapes take on each device."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
