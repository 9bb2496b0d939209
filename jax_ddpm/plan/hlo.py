"""Reads the text of a program that XLA has optimised: instructions, and how often each of them runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,<=]*)\](\{[^}]*\})?")
OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")  # a TPU's vector memory, or the host's
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "optimization-barrier",
    ]
)
"""Instructions that move no data themselves."""


@dataclass(frozen=True)
class ArrayType:
    """An array in a program."""

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool = True
    """Whether it is in the device's main memory."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype) or int(re.search(r"\d+", self.dtype)[0])
        return self.size * bits // 8


def array_types(text: str) -> list[ArrayType]:
    """The arrays in the text of a type, which may be a tuple."""
    return [
        ArrayType(
            dtype, tuple(int(n.lstrip("<=")) for n in shape.split(",") if n), not OTHER_MEMORY.search(layout or "")
        )
        for dtype, shape, layout in ARRAY.findall(text)
    ]


@dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """What follows the operands."""

    @cached_property
    def arrays(self) -> list[ArrayType]:
        return array_types(self.type)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        return [name.lstrip("%") for names in CALLED.findall(self.attributes) for name in names.split(", ")]


class Program:
    """An optimised program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.header = text.partition("\n")[0]
        self.text = text
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[found[2]] = []
                self.entry = found[2] if found[1] else self.entry
            elif instruction := parse_instruction(line):
                current.append(instruction)
        self.by_name = {i.name: i for instructions in self.computations.values() for i in instructions}

    @property
    def num_aliased(self) -> int:
        """How many results are written over an argument: the leaves that are donated, and used."""
        return len(re.findall(r"\b(?:may|must)-alias\b", self.header))

    @cached_property
    def loops(self) -> list[Instruction]:
        return [i for instructions in self.computations.values() for i in instructions if i.opcode == "while"]

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a while loop goes round; None if the program does not know that before it runs.

        XLA notes it for GPUs and CPUs. On TPUs it is the number with which the loop's counter, from 0 on, is compared.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)[1]
        last = self.computations[condition][-1]
        if last.opcode != "compare" or "direction=LT" not in last.attributes:
            return None
        limit = self.by_name[last.operands[1]]
        return int(limit.operands[0]) if limit.opcode == "constant" else None

    @cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs, those within fusions too. A loop of an unknown length counts once."""
        times: dict[str, int] = {}

        def visit(name: str, count: int) -> None:
            times[name] = times.get(name, 0) + count
            for instruction in self.computations.get(name, ()):
                inner = count * (self.trip_count(instruction) or 1) if instruction.opcode == "while" else count
                for called in instruction.called:
                    visit(called, inner)

        visit(self.entry, 1)
        return times

    @cached_property
    def scheduled(self) -> set[str]:
        """The computations whose instructions run as such: the program, its loops and branches; not fusions."""
        found, to_visit = set(), [self.entry]
        while to_visit:
            name = to_visit.pop()
            if name in found or name not in self.computations:
                continue
            found.add(name)
            for instruction in self.computations[name]:
                if instruction.opcode in ("while", "conditional", "call"):
                    to_visit += instruction.called
        return found

    def instructions(self, *, scheduled_only: bool) -> Iterator[tuple[Instruction, int]]:
        """(instruction, how often it runs)."""
        for name, times in self.runs.items():
            if not scheduled_only or name in self.scheduled:
                yield from ((instruction, times) for instruction in self.computations.get(name, ()))

    def bytes_moved(self, instruction: Instruction) -> int:
        """Bytes of main memory that an instruction reads and writes.

        Of an array from which it gathers, only the rows that it takes count.
        """
        if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
            return 0
        written = 0 if instruction.opcode.endswith("-start") else bytes_of(instruction.arrays)
        inner = self.computations.get(instruction.called[0], []) if instruction.opcode == "fusion" else []
        return written + sum(self.bytes_read(instruction, i, inner) for i in range(len(instruction.operands)))

    def bytes_read(self, instruction: Instruction, index: int, inner: list[Instruction]) -> int:
        operand = self.by_name.get(instruction.operands[index])
        if operand is None:
            return 0
        takers = [instruction]
        name = operand.name
        if inner:
            name = next(i.name for i in inner if i.opcode == "parameter" and i.operands == (str(index),))
            takers = [i for i in inner if name in i.operands]
        if takers and all(i.opcode in ("gather", "dynamic-slice") and i.operands[0] == name for i in takers):
            return sum(bytes_of(taker.arrays, any_memory=bool(inner)) for taker in takers)
        return bytes_of(operand.arrays)


def bytes_of(arrays: list[ArrayType], any_memory: bool = False) -> int:
    return sum(array.bytes for array in arrays if array.in_memory or any_memory)


def parse_instruction(line: str) -> Instruction | None:
    """The instruction in a line such as "ROOT %add.1 = f32[8]{0} add(%a, %b), metadata={...}"; None if it has none."""
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    start = found.end()
    end = closing(line, start) + 1 if line[start] == "(" else line.find(" ", start)
    call = re.match(r"[^ ]* ?([\w\-]+)\(", line[end:])
    if end <= 0 or not call:
        return None
    first = end + call.end()
    last = closing(line, first - 1)
    inside = line[first:last]
    names = tuple(re.findall(r"%([\w.\-]+)", inside)) or ((inside,) if call[1] in ("parameter", "constant") else ())
    return Instruction(found[1], line[start:end], call[1], names, line[last + 1 :])


def closing(line: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if depth == 0:
            return position
    return len(line)
