"""What importing the package loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jax_ddpm


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    "code", ["import jax_ddpm", "import jax_ddpm; jax_ddpm.RunConfig", "import jax_ddpm.spec.run_config"]
)
def test_import_loads_no_framework(code):
    assert not loaded_after(code) & {"jax", "flax", "torch", "tensorflow", "tensorflow_datasets", "orbax"}


def test_jax_comes_without_torch_and_tensorflow():
    modules = loaded_after("import jax_ddpm; jax_ddpm.load_model; jax_ddpm.sample; jax_ddpm.train")
    assert "jax" in modules
    assert not modules & {"torch", "tensorflow", "tensorflow_datasets"}


def test_unknown_names_are_attribute_errors():
    import jax_ddpm

    with pytest.raises(AttributeError, match="nonsense"):
        jax_ddpm.nonsense  # noqa: B018
    assert all(getattr(jax_ddpm, name) is not None for name in dir(jax_ddpm))


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(jax_ddpm.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: node.module.removeprefix("jax_ddpm.") for node in imports for alias in node.names}
    assert modules == jax_ddpm.PUBLIC and jax_ddpm.__all__ == sorted(jax_ddpm.PUBLIC)
