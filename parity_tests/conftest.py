"""Folders that several test files read."""

import pytest

from parity_tests.diffusers_models import FAMILY, package_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders as the package writes them, by the names of FAMILY."""
    made = {}
    for name in FAMILY:
        made[name] = tmp_path_factory.mktemp("model")
        package_model(name).save_pretrained(made[name])
    return made
