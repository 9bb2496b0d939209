"""TensorBoard's event files of a run: tensorboard/ in its folder, with every row of metrics.jsonl and the grids."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

FOLDER = "tensorboard"
APART = 30  # seconds at least between two flushes to the disk, beside those before a checkpoint


class TensorBoard:
    """Writes into a file's buffer, without thread or queue: a row takes a tenth of a millisecond.

    In a folder that holds earlier files, the first event tells TensorBoard to drop what these have after step `start`.
    A disk that refuses a write is told of once; then nothing more is written. on: False writes nothing at all.
    """

    def __init__(self, folder: Path, start: int, on: bool, log: Callable[[str], None]):
        self.folder, self.log, self.flushed, self.writer = folder / FOLDER, log, time.monotonic(), None
        if not on:
            return
        protocol, summary, files = import_tensorboardx()
        self.Event, self.Summary = protocol.Event, summary.Summary
        resumed = self.folder.is_dir()
        with self.disk_may_fail():
            self.folder.mkdir(exist_ok=True)
            # Files are read in the order of their names: seconds, host, and what is given here.
            self.writer = files.EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")
        if resumed:
            self.write(step=start + 1, session_log=protocol.SessionLog(status=protocol.SessionLog.START))

    def row(self, row: dict) -> None:
        """A row of metrics.jsonl; figures that are null are left out."""
        if self.writer is None:
            return
        figures = {name: value for name, value in row.items() if name != "step" and value is not None}
        values = [self.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self.write(step=row["step"], summary=self.Summary(value=values))
        if time.monotonic() - self.flushed >= APART:
            self.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file as it is."""
        if self.writer is None:
            return
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            (width, height), channels = image.size, len(image.getbands())
        picture = self.Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=content)
        self.write(step=step, summary=self.Summary(value=[self.Summary.Value(tag=name, image=picture)]))

    def write(self, **fields) -> None:
        if self.writer is not None:
            with self.disk_may_fail():
                self.writer.write_event(self.Event(wall_time=time.time(), **fields))

    def flush(self) -> None:
        """Put what was written on the disk."""
        self.flushed = time.monotonic()
        if self.writer is not None:
            with self.disk_may_fail():
                self.writer.flush()

    @contextmanager
    def disk_may_fail(self):
        try:
            yield
        except OSError as error:
            self.writer = None
            self.log(f"{self.folder} could not be written ({error.strerror}). Training goes on without it.")


def import_tensorboardx():
    """Its messages and its file writer. It would import torch where that is installed, which a run has no use for."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        if hide:
            del sys.modules["torch"]
    return event_pb2, summary_pb2, event_file_writer
