"""TensorBoard's event files, in tensorboard/ of the run's folder: the rows of metrics.jsonl and the sample grids."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

FOLDER = "tensorboard"
MIN_SECONDS_BETWEEN_FLUSHES = 30  # a checkpoint flushes too


class TensorBoard:
    """Writes events into a file's buffer, without a thread or queue: a row takes a tenth of a millisecond.

    If the folder holds files of earlier starts, the first event tells TensorBoard to drop their events after step
    `start`. After the first failed write, this logs it once and writes nothing more. on: False writes nothing at all.
    """

    def __init__(self, folder: Path, start: int, on: bool, log: Callable[[str], None]):
        self.folder, self.log, self.flushed, self.writer = folder / FOLDER, log, time.monotonic(), None
        if not on:
            return
        protocol, summary, files = import_tensorboardx()
        self.Event, self.Summary = protocol.Event, summary.Summary
        resumed = self.folder.is_dir()
        with self.stop_on_write_error():
            self.folder.mkdir(exist_ok=True)
            # TensorBoard reads files in name order. Names contain the time in seconds and the host; the suffix orders
            # files of the same second.
            self.writer = files.EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")
        if resumed:
            self.write(step=start + 1, session_log=protocol.SessionLog(status=protocol.SessionLog.START))

    def row(self, row: dict) -> None:
        """Write a row of metrics.jsonl, without its null values."""
        if self.writer is None:
            return
        metrics = {name: value for name, value in row.items() if name != "step" and value is not None}
        values = [self.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self.write(step=row["step"], summary=self.Summary(value=values))
        if time.monotonic() - self.flushed >= MIN_SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG file."""
        if self.writer is None:
            return
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            (width, height), channels = image.size, len(image.getbands())
        picture = self.Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=content)
        self.write(step=step, summary=self.Summary(value=[self.Summary.Value(tag=name, image=picture)]))

    def write(self, **fields) -> None:
        """Write an event with these fields."""
        if self.writer is not None:
            with self.stop_on_write_error():
                self.writer.write_event(self.Event(wall_time=time.time(), **fields))

    def flush(self) -> None:
        """Write the buffer to the disk."""
        self.flushed = time.monotonic()
        if self.writer is not None:
            with self.stop_on_write_error():
                self.writer.flush()

    def finish(self, failed: bool) -> None:
        """Write the buffer to the disk, however the run ended."""
        self.flush()

    @contextmanager
    def stop_on_write_error(self):
        """Inside this context, an error while writing is logged, and nothing more is written."""
        try:
            yield
        except OSError as error:
            self.writer = None
            self.log(f"{self.folder} could not be written ({error.strerror}). Training continues without it.")


def import_tensorboardx():
    """tensorboardX's event messages, summary messages and file writer.

    tensorboardX imports torch if torch is installed. A run does not need torch, so it is hidden during the import.
    """
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
