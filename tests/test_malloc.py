"""Memory that malloc keeps for the next step, and what compiling left of it."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")

FAULTS = """
import resource, sys
import numpy as np
from jax_ddpm.cpu.memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)  # at least 32 faults, if all pages are huge ones of 2 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


@pytest.mark.parametrize(("own", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "0"}, False)])
def test_freed_memory_is_kept_unless_the_environment_says_how(own, kept):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | own
    result = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    first, second = map(int, result.stdout.split())
    assert first > 30 and (second < first / 10) == kept


RESIDENT = """
from pathlib import Path
import numpy as np
from jax_ddpm import process
from jax_ddpm.cpu import memory
def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) >> 10
memory.keep_freed_memory()
process.TRIM_AFTER_SECONDS = 0
process.trim_memory_after_compilation()
import jax
program = jax.jit(lambda x: x * x + 1).lower(1.0)
jax.block_until_ready(jax.device_put(0.0))
np.ones(256 << 20, np.uint8)
before = resident()
program.compile()
print(before - resident())
"""


def test_what_is_free_after_compiling_goes_back_to_the_system():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", RESIDENT], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) > 200, "megabytes"


PIECES = """
import ctypes
from pathlib import Path
from jax_ddpm.cpu import memory
library = ctypes.CDLL("libc.so.6")
library.malloc.restype, library.free.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
library.malloc.argtypes = [ctypes.c_size_t]
memory.keep_freed_memory()
sizes = 200, 900, 5000
pieces = [[library.malloc(size) for _ in range(4000)] for size in sizes]
free = {piece for same in pieces for piece in same[::2]}
for piece in free:
    library.free(piece)
def reused():
    new = [library.malloc(size) for size in sizes for _ in range(100)]
    for piece in new:
        library.free(piece)
    return sum(piece in free for piece in new)
before = reused()
memory.trim_and_hold_free_blocks()
settled, held = reused(), len(memory.held_blocks)
def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    return int(line.split()[1]) >> 10
grown = megabytes()
for _ in range(8):
    memory.trim_and_hold_free_blocks()
print(before, settled, reused(), held, len(memory.held_blocks), megabytes() - grown)
"""


def test_small_free_pieces_are_out_of_mallocs_way():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run([sys.executable, "-c", PIECES], env=environment, capture_output=True, text=True, check=True)
    before, settled, again, held, held_again, grown = map(int, result.stdout.split())
    assert before > 200 and settled < 20 and again < 20
    assert held > 5000 and held_again < 1.1 * held, "what was held is given back first"
    assert grown < 20


WITHOUT_ROOM = """
import resource
from jax_ddpm.cpu import memory
memory.keep_freed_memory()
pieces = [bytearray(900) for _ in range(10000)]
del pieces[::2]
if {small}:
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 16, resource.getrlimit(resource.RLIMIT_DATA)[1]))
memory.trim_and_hold_free_blocks()
print(len(memory.held_blocks) > 1000)
"""


@pytest.mark.parametrize("small", [False, True])
def test_pieces_stay_where_malloc_cannot_grow(small):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    program = WITHOUT_ROOM.format(small=small)
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(not small)
