"""Models of the Hugging Face Hub: names such as google/ddpm-cifar10-32, folders of the Hub's cache, uploads."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from jax_ddpm.spec.diffusers_folder import INDEX, SCHEDULER, WEIGHTS, model_folder
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_folder import MODEL_FILE
from jax_ddpm.spec.run_checkpoints import is_run
from jax_ddpm.spec.text import one_line

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
    return (snapshot / MODEL_FILE).exists() or any(model_folder(snapshot).glob("diffusion_pytorch_model*.*"))


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
                if is_run(folder):  # the config.json that `jax-ddpm push` writes
                    folder = Path(snapshot_download(name, allow_patterns=["config.json", MODEL_FILE]))
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


def check_name(name: str) -> None:
    """Raise UserError unless the name is OWNER/NAME."""
    if not NAME.fullmatch(name):
        raise UserError(f"name = {name}: expected OWNER/NAME, such as me/digits-ddpm.")


def upload(folder: Path, name: str, private: bool, log: Callable[[str], None]) -> None:
    """Upload the files of a folder as the model OWNER/NAME, which is created if there is none.

    A README.md that is there already stays: its author may have changed it. private: for a new model.

    Raises UserError if the Hub refuses it.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            "Publishing on the Hugging Face Hub needs: pip install 'jax-ddpm[hub]'.\n"
            "Then log in with: hf auth login. Without it, --folder FOLDER writes the files."
        ) from None
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        has_card = api.file_exists(name, "README.md")
        ignored = ["README.md"] if has_card else None
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload with jax_ddpm", ignore_patterns=ignored
        )
    except Exception as error:  # of the connection, of the login, or of the name: there is no common class
        raise UserError(
            f"{name} could not be published: {type(error).__name__}: {one_line(error)}.\n"
            "Log in with a token that may write: hf auth login. OWNER is you or an organisation of yours."
        ) from None
    log(f"Published: {url}. Load it with --model {name}")
    if has_card:
        log("Its README.md stays as it was. For a new one, delete it there and publish again.")
    else:
        log("Choose a license: edit README.md there.")
