"""A Sphinx extension: writes the pages of the API reference. AREAS lists them; their text is that of the docstrings."""

import importlib
from pathlib import Path

from sphinx.errors import ConfigError

# One page each: file, title, what it is about, modules. "jax_ddpm.unets.*" means every module of that package.
AREAS = [
    (
        "settings",
        "Settings",
        "Dataclasses with all settings of a run, presets that set them, and the error for wrong input.",
        [
            "jax_ddpm.spec.run_config",
            "jax_ddpm.spec.diffusion_config",
            "jax_ddpm.spec.network_base",
            "jax_ddpm.spec.network_config",
            "jax_ddpm.spec.adm_config",
            "jax_ddpm.spec.adm_classifier_config",
            "jax_ddpm.spec.simple_unet_config",
            "jax_ddpm.spec.context_unet_config",
            "jax_ddpm.spec.ddpm_conditional_config",
            "jax_ddpm.spec.lucidrains_config",
            "jax_ddpm.spec.superminddpm_config",
            "jax_ddpm.spec.annotated_config",
            "jax_ddpm.spec.annotated_convnext_config",
            "jax_ddpm.spec.presets",
            "jax_ddpm.spec.flat_settings",
            "jax_ddpm.spec.image_size",
            "jax_ddpm.spec.types",
            "jax_ddpm.spec.data_range",
            "jax_ddpm.spec.registered",
            "jax_ddpm.spec.errors",
        ],
    ),
    (
        "diffusion",
        "Diffusion",
        "The forward process: noise schedules, training objectives, and the addresses of random numbers.",
        ["jax_ddpm.schedules", "jax_ddpm.diffusion", "jax_ddpm.objectives", "jax_ddpm.objectives.*", "jax_ddpm.rng"],
    ),
    (
        "sampling",
        "Sampling",
        "The reverse process: images from noise, and edits of given images.",
        ["jax_ddpm.sampling.*", "jax_ddpm.spec.labels", "jax_ddpm.spec.spacing", "jax_ddpm.spec.exporting"],
    ),
    (
        "networks",
        "Networks",
        "The UNets, their layers and operations, and how a network is registered.",
        [
            "jax_ddpm.unets",
            "jax_ddpm.unets.*",
            "jax_ddpm.layers",
            "jax_ddpm.embeddings",
            "jax_ddpm.ops",
            "jax_ddpm.arrays",
        ],
    ),
    (
        "files",
        "Model files",
        "Reading and writing weights: run folders, diffusers folders, safetensors and PyTorch files.",
        [
            "jax_ddpm.weights.*",
            "jax_ddpm.spec.model_files",
            "jax_ddpm.spec.write_model",
            "jax_ddpm.spec.model_info",
            "jax_ddpm.spec.infer_network",
            "jax_ddpm.spec.recognised",
            "jax_ddpm.spec.recognise_adm",
            "jax_ddpm.spec.recognise_adm_classifier",
            "jax_ddpm.spec.noisy_classifier",
            "jax_ddpm.spec.published",
            "jax_ddpm.spec.recognise_lucidrains",
            "jax_ddpm.spec.told_by_loss_weights",
            "jax_ddpm.spec.usual_settings",
            "jax_ddpm.spec.find_weights",
            "jax_ddpm.spec.own_networks",
            "jax_ddpm.spec.file_content",
            "jax_ddpm.spec.layout",
            "jax_ddpm.spec.unpickle",
            "jax_ddpm.spec.stored_array",
            "jax_ddpm.spec.run_checkpoints",
            "jax_ddpm.spec.ema_snapshots",
            "jax_ddpm.spec.power_ema",
            "jax_ddpm.spec.diffusers_folder",
            "jax_ddpm.spec.diffusers_network",
            "jax_ddpm.spec.diffusers_scheduler",
            "jax_ddpm.spec.hub",
        ],
    ),
    (
        "training",
        "Training",
        "The training step, the loop around it, checkpoints and run folders.",
        ["jax_ddpm.training.*", "jax_ddpm.spec.data_record", "jax_ddpm.spec.read_run"],
    ),
    (
        "evaluation",
        "Evaluation",
        "How good a model is: bits per dimension, and distances between sets of images.",
        [
            "jax_ddpm.evaluation",
            "jax_ddpm.evaluation.likelihood",
            "jax_ddpm.evaluation.flow",
            "jax_ddpm.evaluation.evaluating",
            "jax_ddpm.evaluation.scores",
            "jax_ddpm.evaluation.classes",
            "jax_ddpm.evaluation.reference",
            "jax_ddpm.evaluation.image_sets",
            "jax_ddpm.evaluation.extractors",
            "jax_ddpm.evaluation.samples",
            "jax_ddpm.evaluation.results",
            "jax_ddpm.evaluation.progress",
            "jax_ddpm.evaluation.sweep",
            "jax_ddpm.evaluation.curve",
            "jax_ddpm.evaluation.distances",
            "jax_ddpm.evaluation.inception",
            "jax_ddpm.evaluation.classifier",
            "jax_ddpm.evaluation.nearest",
            "jax_ddpm.spec.classifier",
            "jax_ddpm.spec.likelihood",
        ],
    ),
    ("data", "Data", "Images from data sets, archives and folders.", ["jax_ddpm.data", "jax_ddpm.data.order"]),
    (
        "doctor",
        "The port doctor",
        "Compares a PyTorch module with a Flax module, and names the first difference and its cause.",
        [
            "jax_ddpm.doctor.comparison",
            "jax_ddpm.doctor.transferred_file",
            "jax_ddpm.doctor.forced",
            "jax_ddpm.doctor.layouts",
            "jax_ddpm.doctor.torch_side",
            "jax_ddpm.doctor.flax_side",
            "jax_ddpm.doctor.setup",
            "jax_ddpm.doctor.call_step",
            "jax_ddpm.doctor.step_variants",
            "jax_ddpm.doctor.optimiser_rules",
            "jax_ddpm.doctor.result",
            "jax_ddpm.doctor.records",
            "jax_ddpm.doctor.parameters",
            "jax_ddpm.doctor.our_arrays",
            "jax_ddpm.doctor.diffusion",
            "jax_ddpm.doctor.optimiser",
        ],
    ),
    ("report", "Pictures and figures", "Functions that turn arrays into pictures and figures.", ["jax_ddpm.report"]),
    (
        "plan",
        "Plans for other machines",
        "Compiles programs for GPUs and TPUs that are not here, and says what they need.",
        ["jax_ddpm.plan.*"],
    ),
    (
        "cpu",
        "CPUs",
        "The code that makes JAX fast on CPUs.",
        ["jax_ddpm.process", "jax_ddpm.cpu", "jax_ddpm.cpu.*"],
    ),
    (
        "torch_ref",
        "torch_ref",
        "The same mathematics in PyTorch.",
        [
            "torch_ref.rng",
            "torch_ref.schedules",
            "torch_ref.embeddings",
            "torch_ref.layers",
            "torch_ref.unets",
            "torch_ref.unets.*",
            "torch_ref.diffusion",
            "torch_ref.sampling.*",
            "torch_ref.likelihood",
            "torch_ref.flow",
            "torch_ref.classifier",
            "torch_ref.noisy_classifier",
            "torch_ref.step",
            "torch_ref.weights",
        ],
    ),
]


def setup(app):
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "api"))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Write an index and one page per area. ConfigError if a public name would be on no page."""
    pages = {f"{file}.rst": page(title, about, module_names(modules)) for file, title, about, modules in AREAS}
    covered = {module for *_, modules in AREAS for module in module_names(modules)}
    missing = [
        name for package in ("jax_ddpm", "torch_ref") for name, m in sources(package).items() if m not in covered
    ]
    if missing:
        raise ConfigError(f"docs/reference.py: add the modules of {missing} to AREAS")
    pages["index.rst"] = index()
    folder.mkdir(exist_ok=True)
    for old in {path.name for path in folder.glob("*.rst")} - pages.keys():
        (folder / old).unlink()
    for name, content in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != content:
            path.write_text(content)


def sources(package: str) -> dict[str, str]:
    """The package's public names, such as jax_ddpm.sample, and the modules that define them."""
    public = importlib.import_module(package).PUBLIC
    full = {name: m if m.startswith(("jax_ddpm.", "torch_ref.")) else f"{package}.{m}" for name, m in public.items()}
    return {f"{package}.{name}": module for name, module in full.items()}


def module_names(modules: list[str]) -> list[str]:
    """The modules, with every module of a package in place of "package.*"."""
    names = []
    for module in modules:
        if not module.endswith(".*"):
            names.append(module)
            continue
        folder = Path(importlib.import_module(module[:-2]).__file__).parent
        names += [f"{module[:-1]}{file.stem}" for file in sorted(folder.glob("[!_]*.py"))]
    return names


def public_names(module: str) -> list[str]:
    """The public names that the module defines, as in `jax_ddpm.sample`."""
    return [name for name, source in sources(module.partition(".")[0]).items() if source == module]


def index() -> str:
    text = heading("API reference", "=")
    text += "Every public function and class of ``jax_ddpm`` and ``torch_ref``, from the docstrings of the code.\n"
    for file, title, about, modules in AREAS:
        text += f"\n:doc:`{title} <{file}>`\n    {about}\n"
        names = [name for module in module_names(modules) for name in public_names(module)]
        if names:
            text += "\n    " + ", ".join(f":py:obj:`{name}`" for name in names) + "\n"
    return text + "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {file}\n" for file, *_ in AREAS)


def page(title: str, about: str, modules: list[str]) -> str:
    text = heading(title, "=") + f"{about}\n"
    public = [name for module in modules for name in public_names(module)]
    if public:
        text += "\n" + heading("Public names", "-")
        text += "".join(f"\n.. {directive(name)}:: {name}\n" for name in public)
    for module in modules:
        text += "\n" + heading(f"``{module}``", "-") + f"\n.. automodule:: {module}\n"
        if names := public_names(module):
            links = ", ".join(f":py:obj:`{name}`" for name in names)
            excluded = ", ".join(name.rpartition(".")[2] for name in names)
            text += f"   :exclude-members: {excluded}\n\n   Public names: {links}.\n"
    return text


def directive(name: str) -> str:
    package, _, attribute = name.partition(".")
    value = getattr(importlib.import_module(package), attribute)
    if not isinstance(value, type):
        return "autofunction"
    return "autoexception" if issubclass(value, Exception) else "autoclass"


def heading(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}\n\n"
