"""Models of the Hugging Face Hub: names such as google/ddpm-cifar10-32, and folders of the Hub's cache."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from jax_ddpm.spec.diffusers_folder import INDEX, SCHEDULER, WEIGHTS, model_folder
from jax_ddpm.spec.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # OWNER/NAME
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".json", ".npz")
SETTINGS = (INDEX, "config.json", SCHEDULER, "unet/config.json", f"scheduler/{SCHEDULER}")

REASONS = {  # by the class of an error of huggingface_hub
    "LocalEntryNotFoundError": "there is no connection",
    "RepositoryNotFoundError": "it has no public model of this name",
    "GatedRepoError": "this model needs a login (hf auth login)",
}


def local_path(path: str | os.PathLike, log: Callable[[str], None]) -> Path:
    """The file or folder that holds the model `path`.

    That is `path` itself, except: in the folder of a model in the Hub's cache (models--OWNER--NAME, or snapshots in it)
    the snapshot, and for OWNER/NAME that is no path here, a snapshot in the cache, which is downloaded if it is not
    there. log: called with a line that says what was taken.

    Raises UserError that says how to fetch the model, if it is neither here nor can be downloaded.
    """
    path = Path(path)
    if path.is_dir():
        snapshot = newest_snapshot(path if path.name.startswith("models--") else path.parent)
        if snapshot is None or path.name not in (snapshot.parents[1].name, "snapshots"):
            return path
        log(f"{path} is of the Hugging Face Hub's cache: taking its snapshot {snapshot.name}.")
        return snapshot
    name = path.as_posix()
    if path.exists() or not NAME.fullmatch(name) or name.endswith(FILE_SUFFIXES) or path.parent.exists():
        return path
    snapshot = newest_snapshot(cache_folder() / f"models--{name.replace('/', '--')}")
    if snapshot is None or not has_weights(snapshot):
        log(f"{name} is no path here: downloading the model of this name from the Hugging Face Hub.")
        return download(name)
    log(f"{name} is no path here: taking the model of this name in the Hugging Face Hub's cache, {snapshot}.")
    return snapshot


def cache_folder() -> Path:
    """The folder in which huggingface_hub keeps what it downloads."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home) / "hub")


def newest_snapshot(folder: Path) -> Path | None:
    """The snapshot of a model's folder in the cache that its main branch points at, else the newest one.

    None if the folder has none.
    """
    if not folder.name.startswith("models--") or not (folder / "snapshots").is_dir():
        return None
    main = folder / "refs" / "main"
    if main.is_file():
        chosen = folder / "snapshots" / main.read_text(encoding="utf-8", errors="replace").strip()
        if chosen.is_dir():
            return chosen
    snapshots = [snapshot for snapshot in (folder / "snapshots").iterdir() if snapshot.is_dir()]
    return max(snapshots, key=lambda snapshot: snapshot.stat().st_mtime, default=None)


def has_weights(snapshot: Path) -> bool:
    return any(model_folder(snapshot).glob("diffusion_pytorch_model*.*"))


def download(name: str) -> Path:
    """Download settings and weights of the model OWNER/NAME into the Hub's cache, and return their folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        reason = "downloading it from the Hugging Face Hub needs: pip install 'jax-ddpm[hub]'"
    else:
        try:
            for weights in (*WEIGHTS, "diffusion_pytorch_model*"):  # the last for weights in several files
                folder = Path(snapshot_download(name, allow_patterns=[*SETTINGS, weights, f"unet/{weights}"]))
                if has_weights(folder):
                    return folder
            reason = f"the model of this name in the Hugging Face Hub has no {' or '.join(WEIGHTS)}"
        except Exception as error:  # of the connection, of the Hub, or of the name: there is no common class
            why = REASONS.get(type(error).__name__, type(error).__name__)
            reason = f"downloading it from the Hugging Face Hub failed: {why}"
    raise UserError(
        f"{name} is no file or folder here, and {reason}.\n"
        f"Elsewhere: hf download {name} --local-dir {name.split('/')[1]}. Then give that folder instead of the name."
    )
