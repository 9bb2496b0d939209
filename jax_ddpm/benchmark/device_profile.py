"""What an accelerator does meanwhile: how long it works for a step, and how often the host sends or fetches."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

HOST_COPIES = ("MemcpyH2D", "MemcpyD2H")


def profiled(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """`on_device` of one unit of `steps` steps; {} on CPUs and where a profile tells nothing."""
    if jax.default_backend() == "cpu":
        return {}
    run(1)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(1)
        files = list(Path(folder).rglob("*.xplane.pb"))
        return on_device(jax.profiler.ProfileData.from_file(str(files[0])).planes, steps) if files else {}


def on_device(planes: Iterable, steps: int) -> dict[str, float]:
    """Of the planes of a profile over so many steps, the streams of the first GPU: {} if there are none.

    busy_seconds: for which any stream is at work, host_copies: copies from or to the host, both per step. Whoever
    watches slows the host (XLA launches one kernel after the other instead of whole graphs), but not the kernels.
    """
    gpus = (plane for plane in planes if plane.name.startswith("/device:GPU"))
    plane = min(gpus, key=lambda plane: plane.name, default=None)
    lines = [] if plane is None else [line for line in plane.lines if line.name.startswith("Stream")]
    events = [event for line in lines for event in line.events]
    if not events:
        return {}
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)
    until, busy = spans[0][0], 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    copies = sum(event.name.startswith(HOST_COPIES) for event in events)
    return {"busy_seconds": busy / 1e9 / steps, "host_copies": copies / steps}
