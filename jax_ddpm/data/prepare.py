"""Download and prepare a data set of tensorflow_datasets: a separate program, because it loads TensorFlow.

    python -m jax_ddpm.data.prepare NAME DATA_DIR MANUAL_DIR      ("" instead of a folder: its default)

Progress goes to stderr. stdout is one JSON object: empty after a success, else `kind` ("network", "package" or
"other") and `cause`, one line. tensorflow_datasets writes into a temporary folder and renames it at the end, so an
interrupted preparation is not taken for a data set.
"""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from urllib.error import URLError
from urllib.parse import urlsplit

from jax_ddpm.spec.text import one_line

# Retries per file. Without a network, 5 take about 6 s; the default of tensorflow_datasets, 10, takes over 3 minutes.
RETRIES = 5


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> None:
    """Prepare a data set as array_record files; as TFRecord files on systems without array_record (Windows).

    Raises:
        Exception: of any class, from any depth of tensorflow_datasets.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = RETRIES
    for library in ("absl", "urllib3"):  # they warn at each retry; the last error is enough
        logging.getLogger(library).setLevel(logging.ERROR)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    file_format = "array_record" if importlib.util.find_spec("array_record") else "tfrecord"
    builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_config=config)


def _outcome(error: Exception) -> dict[str, str]:
    import requests
    from tensorflow_datasets.core.download.util import DownloadError

    said = f"{type(error).__name__}: {one_line(error)}"
    for cause in _chain(error):
        if isinstance(cause, requests.exceptions.ConnectionError) and cause.request is not None:
            return {"kind": "network", "cause": f"no connection to {urlsplit(cause.request.url).hostname}"}
        if isinstance(cause, requests.exceptions.RequestException | DownloadError | URLError):
            return {"kind": "network", "cause": said}
        if isinstance(cause, ImportError):
            return {"kind": "package", "cause": said}
    return {"kind": "other", "cause": said}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main(name: str, data_dir: str, manual_dir: str) -> None:
    """Prepare, and report on stdout; what libraries print there goes to stderr."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    outcome = {}
    try:
        prepare(name, data_dir or None, manual_dir or None)
    except Exception as error:
        outcome = _outcome(error)
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(outcome), file=report, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
