"""Where the real data sets that some tests read lie: `$JAX_DDPM_SHARED`, else `shared` beside the checkout."""

import os
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("JAX_DDPM_SHARED") or Path(__file__).resolve().parents[2] / "shared")

SHARED: Path | None = _FOLDER if (_FOLDER / "data" / "tfds").is_dir() else None
needs_shared = pytest.mark.skipif(
    SHARED is None, reason=f"no real data: {_FOLDER} holds no data/tfds (JAX_DDPM_SHARED names another folder)"
)
