"""`load_run`: what a training run has left in its folder, for a notebook."""

import base64
import html
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_ddpm.evaluation.results import read_results
from jax_ddpm.report import figures
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.inputs import check_path
from jax_ddpm.spec.read_run import CONFIG_FILE, read_config
from jax_ddpm.spec.run_checkpoints import steps_of
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.run_folder import MetricsLog
from jax_ddpm.weights.model import Model, load_model


@dataclass(frozen=True)
class TrainingRun:
    """A training run that has ended or goes on. What it has is read from its folder at each access."""

    folder: Path
    """The folder of the run."""
    config: RunConfig
    """Its settings."""

    def __repr__(self) -> str:
        rows = self._rows()
        step = rows[-1]["step"] if rows else 0
        return f"TrainingRun {self.folder}: preset {self.config.preset}, {self.config.data.dataset}, step {step:,}"

    def _repr_html_(self) -> str:
        """For a notebook: the run in a line, its settings, and its newest sample grid."""
        pictures = self.pictures
        grids = [name for name in pictures if name.startswith("step-")]
        shown = "grid.png" if "grid.png" in pictures else max(grids, default=None)
        text = "".join(f"<div>{html.escape(line)}</div>" for line in (repr(self), repr(self.config)))
        if shown is None:
            return text
        data = base64.b64encode(pictures[shown].read_bytes()).decode()
        return f'{text}<img src="data:image/png;base64,{data}" alt="{shown}">'

    @property
    def metrics(self) -> Any:
        """The rows of metrics.jsonl as columns: a pandas DataFrame if pandas is installed, else a dict of arrays.

        A value that a row does not have is nan.
        """
        rows = self._rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: np.array([number(row.get(name)) for row in rows]) for name in names}
        if importlib.util.find_spec("pandas") is None:
            return columns
        import pandas

        return pandas.DataFrame(columns)

    @property
    def evaluations(self) -> list[dict]:
        """The results of `jax-ddpm evaluate`, oldest first."""
        return read_results(self.folder)

    @property
    def checkpoints(self) -> list[int]:
        """The steps of its checkpoints."""
        return sorted(steps_of(self.folder))

    @property
    def pictures(self) -> dict[str, Path]:
        """Its pictures by file name: sample grids, processes, charts."""
        found = sorted((self.folder / "samples").glob("*"))
        return {path.name: path for path in found if path.suffix in (".png", ".gif")}

    def picture(self, name: str) -> Image.Image:
        """A picture by its file name. Raises UserError if there is none."""
        pictures = self.pictures
        if name not in pictures:
            raise UserError(f"{self.folder} has no picture {name}: expected one of {', '.join(pictures) or 'none'}.")
        return Image.open(pictures[name])

    def loss_curve(self) -> figures.Figure:
        """Training and validation loss by step."""
        return figures.loss_curve(self._rows())

    def model(self, **settings: Any) -> Model:
        """`jax_ddpm.load_model` of the folder, with its arguments."""
        return load_model(self.folder, **settings)

    def _rows(self) -> list[dict]:
        return MetricsLog(self.folder, print).rows()


def load_run(folder: str | os.PathLike[str]) -> TrainingRun:
    """The run in a folder. Raises UserError if there is none.

    `load_run("runs/x").metrics` has its metrics as columns; see `TrainingRun` for the rest.
    """
    check_path("folder", folder, "expected the path of a run")
    folder = Path(folder)
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds no run: expected a folder with a {CONFIG_FILE}, as jax_ddpm.train writes it.")
    return TrainingRun(folder, read_config(folder / CONFIG_FILE))


def number(value):
    return np.nan if value is None else value
