"""The profile of an accelerator: busy time per step, and copies between host and device per step."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

HOST_COPIES = ("MemcpyH2D", "MemcpyD2H")


def profile_device(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """`summarise_profile` of run(1), which does `steps` steps. {} on CPUs, or if the profile holds no GPU."""
    if jax.default_backend() == "cpu":
        return {}
    run(1)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(1)
        files = list(Path(folder).rglob("*.xplane.pb"))
        return summarise_profile(jax.profiler.ProfileData.from_file(str(files[0])).planes, steps) if files else {}


def summarise_profile(planes: Iterable, steps: int) -> dict[str, float]:
    """Numbers per step from the streams of the first GPU, in a profile of `steps` steps; {} without a GPU.

    busy_seconds: time in which at least one stream is busy. host_copies: copies from or to the host. Profiling slows
    the host (XLA launches single kernels instead of CUDA graphs), but not the kernels.
    """
    gpus = (plane for plane in planes if plane.name.startswith("/device:GPU"))
    plane = min(gpus, key=lambda plane: plane.name, default=None)
    lines = [] if plane is None else [line for line in plane.lines if line.name.startswith("Stream")]
    events = [event for line in lines for event in line.events]
    if not events:
        return {}
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)
    busy_until, busy = spans[0][0], 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, busy_until))
        busy_until = max(busy_until, end)
    copies = sum(event.name.startswith(HOST_COPIES) for event in events)
    return {"busy_seconds": busy / 1e9 / steps, "host_copies": copies / steps}
