"""docs/notebooks: they name what exists, hold their outputs and no path of a machine, and run."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OWN = ("jax_ddpm", "torch_ref")
MAX_BYTES = 300_000
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|content|usr|opt|var|mnt)/|[A-Z]:\\")
notebook_by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def code_of(path: Path) -> list[ast.Module]:
    return [ast.parse("".join(cell["source"])) for cell in cells_of(path, "code")]


def imported(trees: list[ast.Module]) -> dict[str, object]:
    """What the imports of this package's modules give, by name."""
    names = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in OWN:
                    names[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OWN:
            module = importlib.import_module(node.module)
            for alias in node.names:
                found = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = found
    return names


def resolve(node: ast.AST, names: dict[str, object]) -> object:
    """The object that `a.b.c` stands for, if `a` was imported; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    owner = resolve(node.value, names) if isinstance(node, ast.Attribute) else None
    return None if owner is None else getattr(owner, node.attr)


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["ddpm_in_an_hour", "how_good_is_it", "pytorch_and_back"]


@notebook_by_notebook
def test_code_names_what_exists(path):
    trees = code_of(path)
    names = imported(trees)
    assert names
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute):
            resolve(node, names)  # AttributeError if it does not exist
        if isinstance(node, ast.Call) and callable(function := resolve(node.func, names)):
            parameters = inspect.signature(function).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                assert {word.arg for word in node.keywords} - {None} <= set(parameters), ast.unparse(node)


@notebook_by_notebook
def test_outputs_are_there_small_and_from_no_machine(path):
    text, code = path.read_text("utf-8"), cells_of(path, "code")
    assert len(text) < MAX_BYTES
    assert not MACHINE_PATHS.search(text)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


@notebook_by_notebook
def test_links_resolve(path):
    text = "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https:")]
    assert links and all((FOLDER / link.partition("#")[0]).is_file() for link in links)


def test_the_loop_written_by_hand_has_at_most_40_lines():
    sources = ["".join(cell["source"]) for cell in cells_of(FOLDER / "ddpm_in_an_hour.ipynb", "code")]
    loop = [source for source in sources if "train_step" in source or "reverse_process(" in source]
    assert len(loop) == 2 and sum(len(source.splitlines()) for source in loop) <= 40


@pytest.mark.slow
@notebook_by_notebook
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra notebooks: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs the extra notebooks: pip install nbclient ipykernel")
    import nbformat

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))  # this checkout's jax_ddpm
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
