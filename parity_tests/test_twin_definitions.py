"""torch_ref has the definitions of jax_ddpm: the same names, arguments, settings; and imports none of it."""

import ast
import dataclasses
import json
import subprocess
import sys

import jax_ddpm.spec.config
import pytest
import torch_ref.config
import torch_ref.network_config

import jax_ddpm.spec.network_config
import jax_ddpm.spec.presets
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.errors import UserError as JaxUserError
from parity_tests.twins import ROOT

MODULES = {  # of torch_ref: the files of jax_ddpm that it mirrors
    "config": ["config"],
    "diffusers_folder": ["diffusers_folder"],
    "diffusion": ["diffusion"],
    "editing": ["editing"],
    "embeddings": ["embeddings"],
    "errors": ["errors"],
    "inpainting": ["inpainting"],
    "layers": ["layers"],
    "model_files": ["model_files"],
    "network_config": ["network_config"],
    "recognise": ["recognise"],
    "rng": ["rng"],
    "sampler_steps": ["sampler_steps"],
    "samplers": ["samplers"],
    "schedules": ["schedules"],
    "spacing": ["spacing"],
    "step": ["training/state", "training/step"],
    "unets/__init__": ["unets/__init__"],
    "unets/attention": ["unets/attention"],
    "unets/conv_block": ["unets/conv_block"],
    "unets/ddpm": ["unets/ddpm"],
    "unets/layer_norm": ["unets/layer_norm"],
    "unets/strided": ["unets/strided"],
    "weights": ["weights"],
}
TRAINING_ONLY = "settings of training and data: the PyTorch trainer takes jax_ddpm.config's, which load no JAX"
PYTREES = "torch modules and optimisers hold their parameters, so that they are the state"
NAMES = "PyTorch names are the module's own: nothing to translate"
SEQUENTIAL = "an nn.Sequential, whose forward is torch's, for the names of its parameters"
CONVERT = "scripts/convert.py goes by jax_ddpm"
JAX_RANDOM = "what jax.random has"
LAYERS = [
    "Buffer",
    "empty",
    "matmul",
    "einsum",
    "add_bias",
    "add_to_pixels",
    "broadcast",
    "broadcast_tangent",
    "concatenate_channels",
    "silu",
    "Linear",
    "Conv",
    "convolve",
    "correlate",
    "ConvTranspose",
    "transpose_convolve",
    "ConvTranspose2x2",
    "GroupNorm",
    "layer_norm",
    "max_pool_2x2",
    "fan_in",
]
ONLY_IN_JAX = {
    "config": dict.fromkeys(
        ["DataConfig", "TrainingConfig", "OutputConfig", "RunConfig", "slug", "to_json"], TRAINING_ONLY
    ),
    "diffusers_folder": {"configs": CONVERT},
    "editing": {"_invert": "the jitted part of invert"},
    "inpainting": {"_inpaint": "the jitted part of inpaint"},
    "layers": {
        **dict.fromkeys(["rematerialised", "remat_block"], "saves memory on the devices that JAX is for"),
        "exact": "torch computes so unless told otherwise; unets.build tells cuDNN",
        **dict.fromkeys(LAYERS, "torch has it"),
    },
    "model_files": {
        "Model": "load_model returns the nn.Module itself, with an attribute info",
        **dict.fromkeys(["check_output", "convert_to", "atomically"], CONVERT),
    },
    "samplers": {
        **dict.fromkeys(["begin", "advance", "in_parts"], "the parts of reverse_process, whose scan is jitted"),
        "_sample": "the jitted part of sample_indices",
        "spread": "several devices are JAX's",
    },
    "step": {
        "num_parameters": "in model_files, for commands that only sample",
        "make_gradients": "a step of its own, for --replay-step; nested in make_train_step in torch_ref",
        "make_dispatch": "dispatching several steps at once is JAX's",
    },
    "unets/__init__": {
        "fast_in_loops": "XLA's loops are JAX's",
        "register": "a network of one's own has no PyTorch twin",
    },
    "unets/attention": dict.fromkeys(
        ["Frequencies", "QueryKeyValue", "AttentionOutput"], "arrays whose names or initial values are their own"
    ),
    "unets/layer_norm": {"LayerNorm": "torch.nn has it"},
    "weights": {
        "Entry": NAMES,
        "entries": NAMES,
        "translated": NAMES,
        "to_device": "nn.Module.to",
        "uniform": "NumPy does not compile, so that shapes are free",
    },
}
ONLY_IN_TORCH = {
    "config": dict.fromkeys(["parsed", "parsed_fields"], "jax_ddpm has pydantic for this; torch_ref needs torch alone"),
    "model_files": {
        "num_parameters": "a property of JAX's Model",
        "to_numpy": "the tensors of two kinds of files; JAX reads one as NumPy",
    },
    "rng": {
        **dict.fromkeys(["fold_in", "split", "bits", "uniform", "randint", "bernoulli"], JAX_RANDOM),
        **dict.fromkeys(["threefry2x32", "erf_inv"], "what is inside jax.random"),
    },
    "sampler_steps": {"of_images": "jnp.full, which takes arrays too"},
    "samplers": dict.fromkeys(["device_of", "numpy_dtype", "channels_first"], "between NumPy (N, H, W, C) and tensors"),
    "step": {
        "draw": "with the permutation of noise; one line in JAX",
    },
    "unets/layer_norm": {"TimeTable": "a module, for the name of its array"},
    "weights": {"draw": "uniform, with the address", "fan_in": "in layers.py in JAX, whose layers are its own"},
}
OTHER_ARGUMENTS = {
    "network_config": {"NetworkConfig": "in JAX with what pydantic needs"},
    "unets/layer_norm": {"Stage": SEQUENTIAL},
    "unets/strided": {"DoubleConv": SEQUENTIAL},
    "step": {
        "TrainState": PYTREES,
        "make_optimizer": PYTREES,
        "ema_update": PYTREES,
        "make_train_step": PYTREES,
        "make_validation": PYTREES,
    },
}


def definitions(files: list[str]) -> dict[str, str]:
    """Functions and classes of modules in order, each with its arguments: names, order, kind and default."""
    found = {}
    for file in files:
        for node in ast.parse((ROOT / f"{file}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = signature(node)
            elif isinstance(node, ast.ClassDef):
                parts = {"": fields(node)} | {f.name: signature(f) for f in node.body if isinstance(f, ast.FunctionDef)}
                found[node.name] = str({same_word(name): part for name, part in parts.items()})
    return found


def same_word(name: str) -> str:
    return {"__call__": "forward"}.get(name, name)


def signature(function: ast.FunctionDef) -> str:
    arguments = function.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.kwarg, arguments.vararg]:
        if argument is not None:
            argument.annotation = None
    return ast.unparse(arguments).replace("jnp.", "").replace("torch.", "")


def fields(node: ast.ClassDef) -> str:
    own = [f for f in node.body if isinstance(f, ast.AnnAssign)]
    return ", ".join(f.target.id + (f" = {ast.unparse(f.value)}" if f.value else "") for f in own)


@pytest.mark.parametrize("module", MODULES)
def test_definitions(module):
    theirs = definitions([f"jax_ddpm/{file}" for file in MODULES[module]])
    ours = definitions([f"torch_ref/{module}"])
    assert [name for name in theirs if name not in ours] == list(ONLY_IN_JAX.get(module, {}))
    assert {name for name in ours if name not in theirs} == set(ONLY_IN_TORCH.get(module, {}))
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours], "order"
    different = {name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]}
    assert set(different) == set(OTHER_ARGUMENTS.get(module, {})), different


def test_every_module_is_compared():
    found = {str(p.relative_to(ROOT / "torch_ref").with_suffix("")) for p in (ROOT / "torch_ref").rglob("*.py")}
    assert found - {"__init__"} == set(MODULES)


def test_needs_torch_numpy_and_safetensors_alone():
    imported = set()
    for path in (ROOT / "torch_ref").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch", "numpy", "safetensors", "torch_ref"}


def test_importing_all_of_torch_ref_loads_no_jax():
    modules = ["torch_ref", *(f"torch_ref.{m}".replace("/__init__", "").replace("/", ".") for m in MODULES)]
    code = (
        f"import sys; [__import__(m) for m in {modules}]; import torch_ref; "
        "[getattr(torch_ref, name) for name in dir(torch_ref)]; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'flax', 'optax', 'jax_ddpm'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_torch_ref_itself_loads_no_torch():
    code = "import sys, torch_ref; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "False"


def test_presets_are_those_of_jax():
    for name, info in torch_ref.config.PRESETS.items():
        recipe = jax_ddpm.presets.preset(name)
        assert dataclasses.asdict(info.network) == dataclasses.asdict(recipe.network)
        assert dataclasses.asdict(info.diffusion) == dataclasses.asdict(recipe.diffusion)
        assert info.image_shape[0] == recipe.data.image_size
    assert (
        set(torch_ref.network_config.NETWORKS) == set(jax_ddpm.network_config.NETWORKS) == set(torch_ref.config.PRESETS)
    )
    assert torch_ref.config.FORMAT_VERSION == jax_ddpm.config.FORMAT_VERSION


def info_of(package):
    config = package.config
    network = package.network_config.ConvBlockConfig(widths=(32, 64), time_width=16)
    diffusion = config.DiffusionConfig(timesteps=7, schedule="cosine", objective="v", variance="posterior", clip="none")
    return config.ModelInfo(network=network, image_shape=(4, 6, 3), diffusion=diffusion, step=12)


def test_metadata_goes_both_ways():
    text = jax_ddpm.config.to_json(info_of(jax_ddpm))
    assert torch_ref.config.from_json(torch_ref.config.ModelInfo, text, "x") == info_of(torch_ref)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": {"name": "conv_block", "width": 3}}, "network.*width"),
        ({"network": {"name": "conv_block", "widths": [32, 6.5]}}, r"network.*widths\.1"),
        ({"network": {"name": "conv_block", "widths": 32}}, "network.*widths"),
        ({"network": {"name": "other"}}, "network"),
        ({"diffusion": {"timesteps": True}}, "diffusion.timesteps"),
        ({"diffusion": {"beta_start": "1e-4"}}, "diffusion.beta_start"),
        ({"diffusion": {"schedule": "quadratic"}}, "diffusion.schedule"),
        ({"image_shape": [4, 4]}, "image_shape"),
        ({"step": "3"}, "step"),
        ({"colour": 1}, "colour"),
        ({"network": None}, "network"),
    ],
)
def test_wrong_metadata_is_named(change, named):
    good = dataclasses.asdict(info_of(torch_ref))
    text = json.dumps(good | change)
    with pytest.raises(UserError, match=f"x is not a valid ModelInfo: .*{named}"):
        torch_ref.config.from_json(torch_ref.config.ModelInfo, text, "x")
    with pytest.raises(JaxUserError, match=named):  # pydantic agrees
        jax_ddpm.config.from_json(jax_ddpm.config.ModelInfo, text, "x")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"network": {}}'])
def test_metadata_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="x is not a valid ModelInfo"):
        torch_ref.config.from_json(torch_ref.config.ModelInfo, text, "x")
