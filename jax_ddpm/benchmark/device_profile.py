"""What an accelerator does meanwhile: how much of the time it works, and how often the host sends or fetches."""

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
    """Of the planes of a profile over so many steps, the GPUs' streams: {} if there are none.

    busy: share of the time between the first and the last event in which any stream is at work. host_copies: copies
    from or to the host, per step.
    """
    lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    events = [event for line in lines if line.name.startswith("Stream") for event in line.events]
    if not events:
        return {}
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)
    first, until, busy = spans[0][0], spans[0][0], 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    copies = sum(event.name.startswith(HOST_COPIES) for event in events)
    return {"busy": busy / (until - first), "host_copies": copies / steps}
