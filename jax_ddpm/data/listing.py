"""What a folder or a zip file of pictures holds: images by suffix or first bytes, splits, classes, and the rest."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jax_ddpm.data.decode import ImageFiles
from jax_ddpm.data.files import File, Item, Source
from jax_ddpm.data.formats import FORMAT_OF_SUFFIX, REMEDIES, format_of_head, formats
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import printable

TRAINING = ("train", "training")
VALIDATION = ("valid", "val", "validation", "test", "testing")  # the first that is there is used
# Files that are no images, whatever their first bytes: these need not be looked at.
NO_IMAGES = frozenset(
    (
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".md", ".rst", ".pdf", ".doc"),
        *(".docx", ".xls", ".xlsx", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".ipynb", ".sh", ".log"),
        *(".db", ".npy", ".npz", ".mat", ".pkl", ".pt", ".pth", ".h5", ".hdf5", ".parquet", ".tfrecord", ".zip"),
        *(".gz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3"),
        *(".wav", ".svg", ".eps", ".ps", ".psd", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf"),
        *(".rw2"),
    )
)
MAX_NAMED = 6  # largest number of suffixes or folders that a note names


@dataclass
class Listing:
    """Names of the files, relative to the root, with `/` between folders."""

    images: list[str]
    """Those that are read, in order."""
    unreadable: Counter
    """Number of image files that cannot be read here, by suffix and what to do."""
    others: Counter
    """Number of files that are no images, by suffix."""
    by_content: Counter
    """Number of images whose suffix does not tell that they are, by suffix."""

    @property
    def notes(self) -> list[str]:
        """Notes for the user: what was left out, and what was recognised by its content."""
        notes = []
        for (suffix, remedy), count in self.unreadable.items():
            notes.append(f"left out: {count} {suffix} ({remedy})")
        if self.others:
            named = [f"{count} {suffix}" for suffix, count in self.others.most_common(MAX_NAMED)]
            more = f" and {len(self.others) - MAX_NAMED} other kinds" if len(self.others) > MAX_NAMED else ""
            notes.append(f"other files, left out: {', '.join(named)}{more}")
        if self.by_content:
            named = [f"{count} {suffix}" for suffix, count in self.by_content.most_common(MAX_NAMED)]
            notes.append(f"read as images because of their content: {', '.join(named)}")
        return notes


def list_images(names: Iterable[str], head: Callable[[str], bytes]) -> Listing:
    """Sort files into images and others. Hidden files (`.name`) are left out, and counted if they look like images.

    Args:
        names: names of all files, relative to the root, with `/` between folders.
        head: gives the first bytes of a file; called only if the suffix does not decide.
    """
    listing = Listing([], Counter(), Counter(), Counter())
    for name in sorted(names):
        last = name.rpartition("/")[2]
        stem, dot, end = last.rpartition(".")
        suffix = f".{end.lower()}" if stem and dot else ""
        known = FORMAT_OF_SUFFIX.get(suffix)
        if last.startswith("."):
            if known:
                listing.others[f"hidden {suffix}"] += 1
            continue
        if known in formats():
            listing.images.append(name)
            continue
        content = None if suffix in NO_IMAGES else format_of_head(head(name))
        shown = printable(suffix)[:20] or "without a suffix"
        if content in formats() and not (content == "TIFF" and suffix):  # raw files of cameras begin like TIFF
            listing.images.append(name)
            listing.by_content[shown] += 1
        elif known or content in REMEDIES:
            listing.unreadable[shown, REMEDIES.get(known or content, "not readable here")] += 1
        else:
            listing.others[shown] += 1
    return listing


def source_of(label: str, listing: Listing, file: Callable[[str], File], key: object) -> Source:
    """The listed images as a source: training and validation images, and classes, as the folders say.

    Args:
        label: for messages.
        listing: at least one image.
        file: gives the file of a name.
        key: that of the source.
    """
    parts, notes = split_by_folder(label, listing.images)
    classes = class_names([name for names in parts.values() for name in names.values()])
    if classes:
        shown = ", ".join(map(printable, classes[:5])) + (", ..." if len(classes) > 5 else "")
        notes.append(f"{len(classes)} classes, named by the folders: {shown}")
    number = {name: index for index, name in enumerate(classes or ())}

    def files(part: str) -> ImageFiles:
        names = parts[part]
        has_classes = classes and all("/" in inner for inner in names.values())

        def read() -> Iterable[Item]:
            for name, inner in names.items():
                yield Item(name, file(name), number[inner.partition("/")[0]] if has_classes else None)

        return ImageFiles(f"{label}/{part}" if len(parts) > 1 else label, len(names), None, read)

    train, *validation = parts
    return Source(
        files(train),
        files(validation[0]) if validation else None,
        [key, list(parts)],
        (*listing.notes, *notes),
        classes,
    )


def split_by_folder(label: str, names: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The images of each split, the training images first, and notes.

    A split is a folder at the top, or inside one folder that holds all images: `train`, beside `valid`, `val`,
    `validation` or `test`. Without both, all images are one split.

    Returns:
        For each split its name and the images: name to the part of the name inside of the split.
    """
    prefix = _common_folder(names)
    tops: dict[str, dict[str, str]] = {}
    for name in names:
        top, slash, rest = name[len(prefix) :].partition("/")
        tops.setdefault(top if slash else "", {})[name] = rest
    by_name = {top.lower(): top for top in tops}
    train = next((by_name[name] for name in TRAINING if name in by_name), None)
    own = next((by_name[name] for name in VALIDATION if name in by_name), None)
    if train is None or own is None:
        prefix = _common_folder(names, through_splits=True)
        return {"all": {name: name[len(prefix) :] for name in names}}, []
    unused = [
        f"{len(inner):,} in {printable(top) + '/' if top else 'no split'}"
        for top, inner in tops.items()
        if top not in (train, own)
    ]
    notes = [f"{label}: training on {printable(train)}/, validation on {printable(own)}/"]
    if unused:
        more = f" and {len(unused) - MAX_NAMED} other folders" if len(unused) > MAX_NAMED else ""
        notes.append(f"images that are not used, because they are in neither: {', '.join(unused[:MAX_NAMED])}{more}")
    return {train: tops[train], own: tops[own]}, notes


def class_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """The folders at the top, sorted, if they are two or more and each image is in one."""
    folders = {name.partition("/")[0] if "/" in name else "" for name in names}
    return tuple(sorted(folders)) if len(folders) > 1 and "" not in folders else None


def _common_folder(names: Sequence[str], through_splits: bool = False) -> str:
    """The path, ending in `/`, of the innermost folder that holds all images.

    It stops above a folder that is named like a split, unless `through_splits`.
    """
    prefix = ""
    while True:
        top, slash, _ = names[0][len(prefix) :].partition("/")
        if not slash or (not through_splits and top.lower() in (*TRAINING, *VALIDATION)):
            return prefix
        if not all(name.startswith(f"{prefix}{top}/") for name in names):
            return prefix
        prefix += f"{top}/"


def require_images(label: str, listing: Listing) -> None:
    """Raise UserError that says what was found if there is no image."""
    if not listing.images:
        found = "; ".join(listing.notes)
        raise UserError(
            f"{label}: no images in it or in its subfolders{f' ({found})' if found else ''}.\n"
            "Expected image files, such as .png, .jpg, .webp, .tif, .bmp, .gif, .avif or .ppm."
        )
