"""README.md and docs/: commands parse, names and links exist, and the main examples run."""

import ast
import importlib
import inspect
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

import jax_ddpm
from jax_ddpm.commands import main
from jax_ddpm.spec import registered
from jax_ddpm.spec.flat_settings import SamplingSettings, parts_by_field
from jax_ddpm.spec.presets import PRESETS
from jax_ddpm.training import run_folder
from tests.commands import FLAGS
from tests.registry import restored

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
SCRIPTS = {"train_jax": "train"} | {name.replace("-", "_"): name for name in main.COMMANDS}
OTHER_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type", "--xla_cpu_prefer_vector_width"}
page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def arguments_of(line: str) -> list[str] | None:
    """The sub-command and its flags; None for lines that call something else."""
    program, *rest = shlex.split(line, comments=True) or [""]
    if program == "jax-ddpm" and rest:
        return rest
    if program == "python" and rest and rest[0].startswith("scripts/"):
        return [SCRIPTS[Path(rest[0]).stem], *rest[1:]]
    return None


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [found for line in [*lines, *code_spans(page)] if (found := arguments_of(line))]


class Parsed(Exception):
    """Carries the flags out of a command before it does anything."""


@pytest.fixture
def parse(monkeypatch):
    """The flags of a command, as a dataclass. Without --resume and the like, which read a run."""
    cli = tyro.cli

    def stop(*arguments, **settings):
        raise Parsed(cli(*arguments, **settings))

    monkeypatch.setattr(tyro, "cli", stop)
    monkeypatch.setattr(run_folder, "load_config", lambda folder: PRESETS["digits"])
    monkeypatch.setattr(run_folder, "read_config", lambda path: PRESETS["digits"])

    def flags(command: str, *arguments: str):
        with pytest.raises(Parsed) as parsed:
            module_of(command).main(list(arguments), command)
        return parsed.value.args[0]

    return flags


def module_of(command: str) -> ModuleType:
    return importlib.import_module(f"jax_ddpm.commands.{command.replace('-', '_')}")


def help_text(*arguments: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        module_of(arguments[0]).main([*arguments[1:], "--help"], "jax-ddpm")
    return text.getvalue()


@page_by_page
def test_commands_parse(page, parse):
    for command, *arguments in commands(page):
        assert command in main.COMMANDS
        if not arguments or "--help" in arguments:
            continue
        flags = parse(command, *arguments)
        if command.startswith("train") and "--import" not in arguments:  # a file of the page
            flags.config.check()
        if command == "sample":
            importlib.import_module("jax_ddpm.commands.drawing").check_together(flags)


def test_flags_in_the_text_exist():
    known = {flag for name in main.COMMANDS for flag in re.findall(r"--[a-z][\w-]*", help_text(name))}
    known |= {flag for name in PRESETS for flag in re.findall(r"--[a-z][\w-]*", help_text("train", "--preset", name))}
    for page in PAGES:
        spans = [span for span in code_spans(page) if span.startswith("--")]
        named = {flag for span in spans for flag in re.findall(r"--[a-z][\w-]*", span)}
        assert named <= known | OTHER_FLAGS, page.name


@page_by_page
def test_python_examples_name_what_exists(page):
    own = {Path(file).stem for file, _, _ in blocks_in_order(page) if file}
    for block in blocks(page, "python"):
        tree, names = ast.parse(block), {}
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imports = [node for node in imports if not own & {getattr(node, "module", ""), node.names[0].name}]
        exec(compile(ast.Module(imports, []), page.name, "exec"), names)
        for node in ast.walk(tree):
            found = resolve(node, names)
            if isinstance(node, ast.Call) and (function := resolve(node.func, names)) is not None:
                parameters = inspect.signature(function.__init__ if isinstance(function, type) else function).parameters
                given = {keyword.arg for keyword in node.keywords}
                assert given <= {*parameters, *(SETTINGS if "settings" in parameters else ())}, ast.unparse(node)
            assert not isinstance(found, Missing), ast.unparse(node)


SETTINGS = {*SamplingSettings.__annotations__, *parts_by_field(jax_ddpm.RunConfig())}


class Missing:
    """An attribute that a module of ours does not have."""


def resolve(node: ast.AST, names: dict):
    """What a name of jax_ddpm or torch_ref such as `jax_ddpm.sample` means; None for all else."""
    if isinstance(node, ast.Name):
        value = names.get(node.id)
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") or ""
        return value if home.startswith(("jax_ddpm", "torch_ref")) else None
    if isinstance(node, ast.Attribute) and isinstance(module := resolve(node.value, names), ModuleType):
        return getattr(module, node.attr, Missing())
    return None


def test_names_in_the_text_exist():
    for page in PAGES:
        for span in code_spans(page):
            if re.fullmatch(r"(jax_ddpm|torch_ref)(\.\w+)+(\(\))?", span):
                value = importlib.import_module(span.partition(".")[0])
                for name in span.removesuffix("()").split(".")[1:]:
                    if isinstance(value, ModuleType) and not hasattr(value, name):
                        importlib.import_module(f"{value.__name__}.{name}")
                    value = getattr(value, name)
            elif re.fullmatch(r"(jax_ddpm|torch_ref|tests|parity_tests|scripts|docs|\.ci|\.github)/[\w./-]*", span):
                assert (ROOT / span).exists(), f"{page.name}: {span}"


@page_by_page
def test_links_resolve(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def test_the_readme_is_short_and_begins_with_two_blocks():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 900
    section = text.partition("## Quick start\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 2 and all(block.startswith("pip install -c constraints.txt") for block in found)


# The examples, run in a shortened form -------------------------------------------------------------------------------


def shortened(text: str) -> str:
    """The same with few images and steps, for a model with T = 20."""
    text = re.sub(r"((?:--num-steps |num_steps=))\d+", r"\g<1>12", text)
    text = re.sub(r"((?:--num-images |num_images=))\d+", r"\g<1>4", text)
    return text.replace("--start-t 400", "--start-t 10").replace("images, 400)", "images, 10)")


def run_command(arguments: list[str]) -> None:
    main.run(arguments[0], arguments[1:], "jax-ddpm")


def run_python(block: str, **names) -> dict:
    exec(compile(block, "example", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(command_run, tmp_path_factory):
    """A folder with a run of a small network in runs/digits-digits, and that as checkpoint.pt."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(command_run[0], folder / "runs" / "digits-digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(["convert", "runs/digits-digits", "checkpoint.pt"])
    return folder


def test_the_readmes_examples_run(folder, monkeypatch):
    """Draws with both frameworks, converts to PyTorch and back, and makes the page: the pictures agree."""
    monkeypatch.chdir(folder)
    section = (ROOT / "README.md").read_text("utf-8").partition("## Your own checkpoint")[2].partition("\n## ")[0]
    lines = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)[1].splitlines()
    for line in lines:
        run_command(arguments_of(shortened(line)))
    assert {"grid.png", "model.safetensors", "digits.pt", "torch.png"} <= {path.name for path in folder.iterdir()}
    run_command(["report", "runs/digits-digits", "--out", "page.html"])
    assert "digits-digits" in (folder / "page.html").read_text("utf-8")

    in_torch, in_jax = (shortened(block) for block in blocks(ROOT / "README.md", "python"))
    drawn = run_python(in_torch)["images"]
    trained = 'folder = "runs/digits-digits"'
    assert "folder = jax_ddpm.train(config)" in in_jax
    names = run_python(in_jax.replace("folder = jax_ddpm.train(config)", trained))
    np.testing.assert_allclose(names["images"], drawn, atol=3e-5)
    assert names["fast"].shape == (16, 8, 8, 1)
    assert run_folder.default_out(names["config"]) == Path("runs/digits-digits")
    for file in ("checkpoint.pt", "digits.pt", "model.safetensors"):
        np.testing.assert_array_equal(jax_ddpm.sample(jax_ddpm.load_model(file), 4), names["images"])


def blocks_in_order(page: Path) -> list[tuple[str, str, str]]:
    """The code blocks of a page: the file that the paragraph before says it is, or "", the language and the text."""
    parts = re.split(r"^```(\w+)\n(.*?)^```\n", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    texts = zip(parts[::3], parts[1::3], parts[2::3], strict=False)
    return [(named_file(before.strip().split("\n\n")[-1]), language, text) for before, language, text in texts]


def named_file(paragraph: str) -> str:
    """The file in "in the file `x.py`"; "" for a paragraph without one."""
    found = re.search(r"in the file\s`(\w+\.py)`", paragraph)
    return found[1] if found else ""


@pytest.mark.parametrize("with_commands", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bring_your_own_network_runs(with_commands, tmp_path, monkeypatch):
    """Every block of the page, in order: the port has PyTorch's numbers and pictures, trains, resumes and goes back."""
    monkeypatch.chdir(tmp_path)
    for file, language, text in blocks_in_order(ROOT / "docs" / "your-own-network.md"):
        with restored():
            monkeypatch.syspath_prepend(tmp_path)
            if file:
                (tmp_path / file).write_text(text, "utf-8")
            elif language == "python" and (with_commands or "back.pt" not in text):
                assert run_python(text).get("difference", 0) < 5e-6
            for line in text.splitlines() if language == "bash" and with_commands else ():
                few = "--timesteps 10 --beta-end 0.4 --steps 4 --batch-size 8 --num-samples 2 --no-tensorboard "
                more = {"sample": "--num-steps 10 ", "train": few if "--preset" in line else "--steps 6 "}
                command, arguments = line.split(" ", 2)[1:]
                try:
                    run_command([command, *shlex.split(more.get(command, "") + arguments)])
                except SystemExit as end:
                    assert (command, end.code) == ("doctor", 0)  # it says "Equal"
                jax.config.update("jax_enable_x64", False)  # the doctor computes in float64
    if not with_commands:
        return
    drawn = [np.asarray(Image.open(tmp_path / name), np.int16) for name in ("jax.png", "torch.png")]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and drawn[0].std() > 10
    assert json.loads((tmp_path / "runs/mine/config.json").read_text("utf-8"))["imports"] == ["my_unet.py"]
    page = (tmp_path / "runs/mine/report.html").read_text("utf-8")
    assert "jax-ddpm sample --model runs/mine --import my_unet.py" in page


@pytest.mark.slow
def test_your_own_process_runs(tmp_path, monkeypatch, request):
    """Every block of the page: both frameworks draw the same pictures; a loop of one's own draws those of `sample`."""
    for table in (registered.SCHEDULES, registered.OBJECTIVES, registered.SAMPLERS):
        request.addfinalizer(table.clear)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for file, language, text in blocks_in_order(ROOT / "docs" / "your-own-process.md"):
        if file:
            (tmp_path / file).write_text(text, "utf-8")
        elif language == "python":
            found |= run_python(text)
        for line in text.splitlines() if language == "bash" else ():
            command, arguments = line.split(" ", 2)[1:]
            few = "--timesteps 60 --steps 4 --batch-size 8 --num-samples 2 --no-tensorboard "
            run_command([command, *shlex.split((few if command == "train" else "") + arguments)])
    drawn = [np.asarray(Image.open(tmp_path / name), np.int16) for name in ("jax.png", "torch.png")]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and drawn[0].std() > 10
    assert found["difference"] < 5e-6 and np.isfinite(found["loss"])
    config = found["config"].diffusion
    same = jax_ddpm.sample(found["model"], 4, config=config, image_shape=(8, 8, 1))
    np.testing.assert_allclose(found["images"], same, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampling", "editing", "conversion", "page-of-a-run", "cpu", "data"])
def test_examples_of_the_pages_run(name, folder, monkeypatch):
    """Python examples, and commands other than those that need data, a full-size network or another run."""
    monkeypatch.chdir(folder)
    page = ROOT / "docs" / f"{name}.md"
    python = [block for block in blocks(page, "python") if "PIL" in block]  # makes the mask that a command uses
    for block in python + [block for block in blocks(page, "python") if block not in python]:
        if "digits.pt" not in block:
            run_python(shortened(block))
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            arguments = arguments_of(shortened(line))
            if arguments and arguments[0] != "train" and "diffusers" not in line:
                run_command(arguments)
    if name == "conversion":
        assert (folder / "jax.png").read_bytes() == (folder / "torch.png").read_bytes()
        run_command(["train", *FLAGS, "--init-from", "digits.pt", "--out", "runs/further"])
        for block in blocks(page, "python"):
            run_python(shortened(block))


@pytest.mark.slow
def test_examples_of_the_page_about_evaluation_run(folder, monkeypatch):
    """Those of the quick start's run; other lines need images or runs that are not here."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    page = ROOT / "docs" / "evaluation.md"
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            arguments = arguments_of(shortened(line)) or [""]
            if arguments[:2] == ["evaluate", "runs/digits-digits"]:
                run_command([*arguments, "--num-images", "12"])
    for block in blocks(page, "python"):
        if "runs/digits-digits" in block:
            run_python(shortened(block).replace("num_timesteps=50", "num_timesteps=5"))
    assert {"bound.png", "sweep.png"} <= {path.name for path in folder.glob("runs/digits-digits/evaluation/*")}
