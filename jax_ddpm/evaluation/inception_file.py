"""Downloads the weights of the original FID's network, a public file of PyTorch."""

import hashlib
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.text import one_line

NAME = "pt_inception-2015-12-05-6726825d.pth"  # ends in the first digits of its SHA-256
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
DIGEST_START = NAME.removesuffix(".pth").rpartition("-")[2]
TIMEOUT = 20  # seconds without an answer


def download(cache_dir: Path, log: Callable[[str], None] = print) -> Path:
    """The file in `cache_dir`/inception, downloaded now if it is not there.

    Raises UserError that says where to get the file, if it cannot be downloaded, or if it is another one than its name
    says.
    """
    path = cache_dir / "inception" / NAME
    advice = f"Get {URL} on a machine with a connection, and give --features inception:{NAME}."
    if path.is_file():
        return path
    log(f"Downloading {URL} (91 MB)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft:
            with urllib.request.urlopen(URL, timeout=TIMEOUT) as source, draft.open("wb") as file:
                size = int(source.headers.get("Content-Length") or 0) or None
                with tqdm.wrapattr(source, "read", total=size, desc=NAME, delay=0.5, leave=False) as counted:
                    shutil.copyfileobj(counted, file)
            with draft.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(DIGEST_START):
                raise UserError(
                    f"What was downloaded is not {NAME}: its SHA-256 begins with {digest[:8]}, not {DIGEST_START}.\n"
                    f"{advice}"
                )
    except OSError as error:  # URLError, timeouts and what the disk refuses
        reason = error.reason if isinstance(getattr(error, "reason", None), Exception) else error
        why = getattr(reason, "strerror", None) or one_line(reason)
        raise UserError(f"{NAME} cannot be downloaded ({why}).\n{advice}") from None
    return path
