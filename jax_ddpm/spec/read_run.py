"""config.json, the settings of a run in its folder."""

import json
from pathlib import Path

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.own_networks import IMPORTS, recorded_imports
from jax_ddpm.spec.run_config import RunConfig

CONFIG_FILE = "config.json"
STARTS = "starts"  # entry of config.json: a list with a description of the machine for each start of the run


def read_config(path: Path) -> RunConfig:
    """The settings in a config.json. Raises UserError if the file is missing or not valid."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected the config.json of a run.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid RunConfig: {error}.") from None
    if isinstance(settings, dict):
        settings.pop(STARTS, None)
        settings.pop(IMPORTS, None)
    return from_json(RunConfig, json.dumps(settings), str(path), recorded_imports(path.parent))
