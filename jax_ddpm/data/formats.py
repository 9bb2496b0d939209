"""Which image files can be read here: formats of Pillow, suffixes, and first bytes."""

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator

from PIL import Image, features

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
REMEDIES = {
    "HEIF": "pip install pillow-heif",
    "AVIF": "needs a Pillow with AVIF: pip install -U pillow",
    "JPEG2000": "needs a Pillow with OpenJPEG",
}
SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
FORMAT_OF_SUFFIX = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
HEAD = 16  # bytes that `format_of_head` needs


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here. HEIF needs pillow-heif; some builds of Pillow lack AVIF or JPEG 2000."""
    Image.init()
    missing = {name for name, codec in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if not features.check(codec)}
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in missing)


def format_of_head(head: bytes) -> str | None:
    """The format of a file that begins with these bytes; None if they do not tell."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIF" if brand[:2] in (b"he", b"mi", b"ms") else None
    return None


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings of Pillow about odd files inside this context. Not for threads: filters of warnings are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
