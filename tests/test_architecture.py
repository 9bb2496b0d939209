"""The order in which the package's files may import each other, and what stays out of which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jax_ddpm

PACKAGE = Path(jax_ddpm.__file__).parent
ORDER = (
    *("spec", "arrays", "jaxprs"),
    *("cpu", "process", "waiting", "ops", "rng", "schedules", "embeddings", "layers", "unets"),
    "diffusion",
    *("objectives", "weights", "sampling", "data", "report", "evaluation", "training", "doctor", "benchmark"),
    "plan",
    "commands",
)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
ALLOWED: dict[tuple[str, str], str] = {}
"""(file, part that it may import although it stands below): why."""


def part(path: Path) -> str:
    """The entry of ORDER that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def imported(tree: ast.AST, within: str = "jax_ddpm") -> set[str]:
    """Names of all modules that the nodes of a tree import, those inside functions too.

    Of this package also the names that are imported from modules, and what is read off `jax_ddpm` itself.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names.add(node.module)
            if node.module == within:
                names |= {f"{within}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == within:
            names.add(f"{within}.{node.attr}")
    return names


def parts_imported(tree: ast.AST) -> set[str]:
    """The entries of ORDER that a tree imports, names of the package's public interface resolved."""
    tails = [name.split(".")[1] for name in imported(tree) if name.startswith("jax_ddpm.")]
    return {jax_ddpm.PUBLIC.get(name, name).split(".")[0] for name in tails if not name.startswith("__")}


def parse(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of its functions."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

    return WithoutFunctions().visit(tree)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_stands_above_it(path):
    assert part(path) in ORDER
    above = ORDER[: ORDER.index(part(path)) + 1]
    wrong = {name for name in parts_imported(parse(path)) if name not in above}
    assert {name for name in wrong if (str(path), name) not in ALLOWED} == set()


def test_the_list_of_exceptions_is_no_longer_than_it_must_be():
    for path, name in ALLOWED:
        assert name in parts_imported(parse(Path(path)))


def test_the_rule_finds_what_breaks_it():
    tree = ast.parse("import jax_ddpm\ndef f():\n    from jax_ddpm import rng\n    return jax_ddpm.train(rng)")
    assert parts_imported(tree) == {"rng", "training"}


def test_cpu_is_called_from_two_places_only():
    callers = {str(path) for path in FILES if "cpu" in parts_imported(parse(path)) and part(path) != "cpu"}
    assert callers == {"ops.py", "process.py"}


@pytest.mark.parametrize("path", [path for path in FILES if part(path) in ("layers", "unets")], ids=str)
def test_networks_do_not_speak_of_cpus(path):
    assert "cpu" not in (PACKAGE / path).read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("path", [path for path in FILES if part(path) == "spec"], ids=str)
def test_spec_imports_no_framework(path):
    """But for torch, inside the function that writes .pt files."""
    tree = parse(path)
    frameworks = {name.split(".")[0] for name in imported(tree)} & {"jax", "jaxlib", "flax", "optax", "torch"}
    assert frameworks <= ({"torch"} if path.name == "write_model.py" else set())
    assert "torch" not in {name.split(".")[0] for name in imported(at_module_level(tree))}
    assert "jax_ddpm" not in imported(tree) and parts_imported(tree) <= {"spec"}


def test_importing_spec_loads_neither_jax_nor_torch():
    modules = [str(path.with_suffix("")).replace("/", ".") for path in FILES if part(path) == "spec"]
    imports = "; ".join(f"import jax_ddpm.{name.removesuffix('.__init__')}" for name in modules)
    program = f"{imports}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "jaxlib", "flax", "torch", "tensorflow"} & set(loaded)


def test_torch_ref_takes_nothing_but_spec_from_jax_ddpm():
    root = PACKAGE.parent / "torch_ref"
    for path in root.rglob("*.py"):
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not {name.split(".")[0] for name in names} & {"jax", "jaxlib", "flax", "optax"}, path
        assert all(name.startswith("jax_ddpm.spec") for name in names if name.split(".")[0] == "jax_ddpm"), path


PUBLIC_NAMES = {
    "jax_ddpm": (
        "ConvBlockConfig DataConfig DiffusionConfig Model ModelInfo NetworkConfig OutputConfig RunConfig SamplerConfig "
        "TrainingConfig UserError build img2img inpaint interpolate invert load_model make_tables preset reconstruct "
        "register sample train"
    ),
    "torch_ref": (
        "ConvBlockConfig DiffusionConfig ModelInfo SamplerConfig UserError build img2img inpaint interpolate invert "
        "load_model make_tables reconstruct sample"
    ),
}
"""`__all__` of both packages as of commit 228b0de."""


@pytest.mark.parametrize("package", PUBLIC_NAMES)
def test_no_public_name_is_lost(package):
    module = __import__(package)
    assert set(PUBLIC_NAMES[package].split()) <= set(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
