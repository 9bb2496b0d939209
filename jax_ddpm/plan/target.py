"""A target such as h100:8 or v5e:4x4: which chips, how many, and the devices that JAX's compilers take for them."""

import importlib.util
import os
import re
from dataclasses import dataclass
from importlib import resources

from jax_ddpm.plan.chips import CHIPS, GPUS_PER_HOST, Chip
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line

EXPECTED = "expected cpu, h100:N (N GPUs), or v5e:AxB, v6e:AxB or v5p:AxBxC (TPU chips in this arrangement)"
INSTALL = "pip install -c constraints.txt -e '.[{}]'"
COMPILERS = {"gpu": ("aot-gpu", ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")), "tpu": ("aot-tpu", ("libtpu",))}
"""For each platform the extra that brings its compiler, and the modules of which one has it."""
QUIET_TPU = {  # libtpu looks for a TPU's own settings, and complains where there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: its lock is for processes that share a TPU
}


@dataclass(frozen=True)
class Target:
    """Some chips of one kind. chip: None for the CPU of this machine."""

    name: str
    chip: Chip | None
    topology: tuple[int, ...]
    """The TPU chips in each direction, or the number of GPUs."""

    @property
    def platform(self) -> str:
        """As `jax.default_backend` names it."""
        return self.chip.platform if self.chip else "cpu"


def parse_target(text: str) -> Target:
    """The target that a text names. UserError if it names none."""
    if text == "cpu":
        return Target(text, None, (1,))
    name, _, arrangement = text.partition(":")
    chip = CHIPS.get(name)
    numbers = (
        tuple(map(int, arrangement.split("x"))) if re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", arrangement) else ()
    )
    dimensions = {"h100": 1, "v5p": 3}.get(name, 2)
    if chip is None or len(numbers) != dimensions:
        raise UserError(f"target = {text}: {EXPECTED}.")
    if chip.platform == "gpu" and numbers[0] > GPUS_PER_HOST and numbers[0] % GPUS_PER_HOST:
        raise UserError(f"target = {text}: expected up to {GPUS_PER_HOST} GPUs, or a multiple of {GPUS_PER_HOST}.")
    return Target(text, chip, numbers)


def devices_of(target: Target) -> list:
    """The devices to compile for; only the CPU's can run anything.

    Raises UserError if the compiler for them is not installed, or if it does not know them.
    """
    import jax
    from jax.experimental import topologies

    if target.chip is None:
        return jax.devices("cpu")[:1]
    extra, modules = COMPILERS[target.platform]
    if not any(is_installed(module) for module in modules):
        raise UserError(
            f"target = {target.name}: the compiler for it is not installed.\nInstall it: {INSTALL.format(extra)}"
        )
    try:
        if target.platform == "gpu":
            count = target.topology[0]
            hosts = -(-count // GPUS_PER_HOST)
            description = resources.files("jax_ddpm.plan").joinpath(f"{target.chip.name}.txtpb").read_text("utf-8")
            topology = topologies.get_topology_desc(
                "", "cuda", topology=f"1x{hosts}x{count // hosts}", target_config=description
            )
        else:
            os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_TPU.items()})
            topology = topologies.get_topology_desc(target.name, "tpu", chips_per_host_bounds=host_bounds(target))
    except Exception as error:  # of several kinds, by plugin
        raise UserError(
            f"target = {target.name}: the compiler does not take it ({one_line(error, 300)}).\nIt {EXPECTED}."
        ) from None
    return list(topology.devices)


def host_bounds(target: Target) -> tuple[int, ...]:
    """How many TPU chips in each direction share a host: 2x2x1, or fewer if the target has fewer."""
    sizes = (*target.topology, 1, 1)
    return *(2 if size % 2 == 0 else 1 for size in sizes[:2]), 1


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False
