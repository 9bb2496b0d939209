"""What TensorBoard sees of a run: its event files, read as TensorBoard reads them."""

import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(folder) -> list[Event]:
    """Every event of the files in their names' order; what a restart has made void is left out.

    A record: length (8 bytes), its checksum (4), the message, its checksum (4).
    """
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            if event.session_log.status == SessionLog.START:
                found = [earlier for earlier in found if earlier.step < event.step]
            found.append(event)
            place += 16 + length
    return found


def scalars(folder) -> list[dict]:
    """A dict of the figures for each event that holds any, with its step."""
    rows = []
    for event in events(folder):
        values = {value.tag: value.simple_value for value in event.summary.value if value.HasField("simple_value")}
        if values:
            rows.append({"step": event.step, **values})
    return rows


def pictures(folder) -> list[tuple[str, int, bytes]]:
    """Tag, step and PNG of every picture."""
    return [
        (value.tag, event.step, value.image.encoded_image_string)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("image")
    ]
