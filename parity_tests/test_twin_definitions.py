"""torch_ref has the definitions of jax_ddpm, with the same names, order and arguments, but imports only its spec."""

import ast
import subprocess
import sys

import pytest

import torch_ref
from parity_tests.twins import ROOT

MODULES = {  # modules of torch_ref, and the modules of jax_ddpm that they mirror
    "classifier": ["evaluation/classifier"],
    "diffusion": ["diffusion"],
    "dtypes": [],
    "embeddings": ["embeddings"],
    "layers": ["layers"],
    "layouts": [],
    "flow": ["evaluation/flow"],
    "likelihood": ["evaluation/likelihood"],
    "noisy_classifier": ["weights/noisy_classifier"],
    "objectives/__init__": ["objectives/__init__"],
    "objectives/continuous": ["objectives/continuous"],
    "objectives/discrete": ["objectives/discrete"],
    "objectives/edm": ["objectives/edm"],
    "objectives/flow": ["objectives/flow"],
    "rng": ["rng"],
    "sampling/__init__": ["sampling/__init__"],
    "sampling/classifier_guidance": ["sampling/classifier_guidance"],
    "sampling/editing": ["sampling/editing"],
    "sampling/export": [],
    "sampling/guidance": ["sampling/guidance"],
    "sampling/inpainting": ["sampling/inpainting"],
    "sampling/reverse": ["sampling/reverse"],
    "sampling/samplers": ["sampling/samplers"],
    "sampling/solvers": ["sampling/solvers"],
    "sampling/steps": ["sampling/steps"],
    "schedules": ["schedules"],
    "step": ["training/state", "training/step"],
    "unets/__init__": ["unets/__init__"],
    "unets/adm": ["unets/adm"],
    "unets/adm_classifier": ["unets/adm_classifier"],
    "unets/annotated": ["unets/annotated"],
    "unets/annotated_convnext": ["unets/annotated_convnext"],
    "unets/attention": ["unets/attention"],
    "unets/context_unet": ["unets/context_unet"],
    "unets/conv_block": ["unets/conv_block"],
    "unets/ddpm": ["unets/ddpm"],
    "unets/ddpm_conditional": ["unets/ddpm_conditional"],
    "unets/layer_norm": ["unets/layer_norm"],
    "unets/lucidrains": ["unets/lucidrains"],
    "unets/simple_unet": ["unets/simple_unet"],
    "unets/strided": ["unets/strided"],
    "unets/superminddpm": ["unets/superminddpm"],
    "unets/tf32": ["unets/tf32"],
    "weights": ["weights/model", "weights/convert", "weights/initial_values"],
}
NAMES = "PyTorch's names are the module's own: nothing to translate"
JITTED = "the jitted part of the function after it"
LAYERS = [
    "Buffer",
    "Statistic",
    "batch_statistics",
    "unfilled",
    "cast",
    "cast_once",
    "Linear",
    "Embedding",
    "Conv",
    "ConvTranspose",
    "ConvTranspose2x2",
    "GroupNorm",
    "BatchNorm",
    "store_statistics",
    "fan_in",
]
TRAINED = "jax_ddpm trains the classifier and keeps it; torch_ref reads its file"
ONLY_IN_JAX = {  # in the order in which they stand there
    "classifier": {
        "prepare_images": "in loss and features",
        **dict.fromkeys(["num_steps", "train", "optimizer", "train_step"], TRAINED),
        **dict.fromkeys(["apply", "normalise", "in_batches", "accuracy"], TRAINED),
        **dict.fromkeys(["kept_classifier", "checked_labels", "cached_file", "read_if_there", "describe"], TRAINED),
        "extractor": "its function `features` is that of torch_ref",
    },
    "layers": {
        **dict.fromkeys(["remat_blocks", "remat_block"], "saves memory on the devices that JAX is for"),
        **dict.fromkeys(LAYERS, "torch has it; fan_in is in weights.py"),
    },
    "flow": {"_start": JITTED, "_heun_steps": JITTED},
    "likelihood": {"_terms": JITTED},
    "noisy_classifier": {"NoisyClassifier": "load_noisy_classifier returns the nn.Module, with an attribute info"},
    "sampling/editing": {"_invert": JITTED},
    "sampling/inpainting": {"_inpaint": JITTED},
    "sampling/reverse": {
        "sampling_levels": "for the pictures of a run",
        **dict.fromkeys(
            ["initial_carry", "scan_steps", "run_with_progress"], "the parts of reverse_process, whose scan is jitted"
        ),
    },
    "sampling/samplers": {
        "scan_sampler": "the part that `export` has, too",
        "_sample": JITTED,
        "shard": "several devices are JAX's",
    },
    "step": {
        "num_parameters": "in weights.py, where load_model's network is",
        "with_statistics": "the module of torch_ref holds its statistics",
        "make_gradients": "a step of its own, for --replay-step; nested in make_train_step in torch_ref",
    },
    "unets/adm": {"Projection": "torch has it: a convolution of width 1"},
    "unets/attention": dict.fromkeys(
        ["Frequencies", "QueryKeyValue", "AttentionOutput"], "arrays whose names or initial values are their own"
    ),
    "unets/annotated_convnext": {"DepthwiseConv": "torch has it: groups of one channel"},
    "unets/context_unet": {"average_pool": "torch.nn has it"},
    "unets/ddpm_conditional": dict.fromkeys(
        ["ConvWithoutBias", "LayerNorm", "interpolate_rows"], "torch.nn and torch.nn.functional have it"
    ),
    "unets/layer_norm": {"LayerNorm": "torch.nn has it"},
    "unets/tf32": dict.fromkeys(
        ["in_full_float32", "class_in", "is_in_tf32", "class_of"],
        "a call is traced in a context, which its gradient follows",
    ),
    "unets/lucidrains": dict.fromkeys(
        ["Normal", "RandomFrequencies", "ConvWithoutBias"], "arrays whose initial values or layouts are their own"
    ),
    "weights": {
        "Model": "load_model returns the nn.Module itself, with an attribute info",
        **dict.fromkeys(["TorchArray", "torch_arrays"], NAMES),
        "shapes_of_class": "remembers the shapes of array_shapes by the class that is registered",
        **dict.fromkeys(["same_layout", "with_torch_names"], NAMES),
        "to_device": "nn.Module.to",
        "uniform": "draws of one size are cut, since every shape would be compiled; NumPy compiles nothing",
    },
}
ONLY_IN_TORCH = {
    "classifier": {"flatten": "in the order of JAX, channels last", "features": "in extractor in JAX"},
    "dtypes": {
        "timesteps": "in jax_ddpm, Model does it, and networks take t as it is",
        "float_time": "networks of JAX take floats as they are",
        **dict.fromkeys(["without_autocast", "activations"], "autocast is torch's"),
        "ExactBuffers": "a module's dtype is changed in torch only",
    },
    "layouts": dict.fromkeys(["device_of", "numpy_dtype", "channels_first"], "between NumPy (N, H, W, C) and tensors"),
    "rng": {
        **dict.fromkeys(["fold_in", "split", "bits", "uniform", "randint", "bernoulli"], "in jax.random"),
        **dict.fromkeys(["threefry2x32", "erf_inv"], "inside jax.random"),
    },
    "sampling/export": dict.fromkeys(
        ["export_step", "Step", "example_inputs", "file_settings", "as_onnx", "as_pt2"],
        "jax_ddpm exports the whole sampler with jax.export",
    ),
    "sampling/samplers": {"tensors": "JAX takes the NumPy arrays of labels"},
    "sampling/guidance": {"twice": "jnp.concatenate; networks of torch_ref take marked floats only"},
    "sampling/solvers": {"for_images": "jnp.full, which takes arrays too"},
    "sampling/steps": {"of_images": "jnp.full, which takes arrays too", "where": "stands for lax.cond"},
    "step": {
        **dict.fromkeys(["running_statistics", "copy_statistics"], "in JAX they are in the state"),
        "draw_level_and_noise": "one line in JAX; here with the permutation of the noise",
    },
    "unets/__init__": {"with_autocast": "a Flax module of the user's own takes dtype itself"},
    "unets/context_unet": {"DownBlock": "a module, for the names of its arrays"},
    "unets/conv_block": {"Sinusoids": "a module, for the name of its array"},
    "unets/ddpm_conditional": {"Sinusoids": "a module, for a buffer that half precision does not round"},
    "unets/simple_unet": {"Sinusoids": "a module, whose place gives the Linear its name"},
    "unets/ddpm": dict.fromkeys(["average_pool_2x2", "repeat_2x2"], "in ops.py in JAX; torch has functions for both"),
    "unets/layer_norm": {"TimeTable": "a module, for the name of its array"},
    "unets/tf32": dict.fromkeys(
        ["set_tf32", "tf32", "begin_tf32", "end_tf32"], "PyTorch has flags of the process, which gradients obey, too"
    ),
    "weights": {
        "state_arrays": "BatchNorm's counters of batches have no counterpart in Flax",
        "refuse_checkpoint": "in jax_ddpm, weights/run_checkpoint.py reads the checkpoint",
        "num_parameters": "a property of Model in JAX",
        "draw_uniform": "uniform, with the address",
        "fan_in": "in layers.py in JAX, whose layers are its own",
    },
}
PYTREES = "torch modules and optimisers hold their parameters, so that they are the state"
SEQUENTIAL = "an nn.Sequential, whose forward is torch's, for the names of its parameters"
OTHER_ARGUMENTS = {
    "sampling/samplers": {"sample_in_batches": "several processes draw together in JAX alone"},
    "classifier": {"load_classifier": TRAINED},
    "step": dict.fromkeys(
        ["TrainState", "make_optimizer", "ema_update", "power_ema_update", "make_train_step", "make_validation"],
        PYTREES,
    ),
    "unets/__init__": {"register": "the names of a PyTorch module need no table"},
    "unets/annotated": {"AttentionOutput": SEQUENTIAL},
    "unets/layer_norm": {"Stage": SEQUENTIAL},
    "unets/lucidrains": dict.fromkeys(["AttentionOutput", "Downsample", "Upsample"], SEQUENTIAL),
    "unets/strided": {"DoubleConv": SEQUENTIAL},
    "unets/superminddpm": {"Block": SEQUENTIAL},
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
    return ast.unparse(arguments).replace("jnp.", "").replace("torch.", "").replace("F.", "")


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


def imported_by(path) -> set[str]:
    """Modules that a file imports anywhere; for `from a import b`, a.b, for b may be a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_nothing_of_jax_ddpm_but_its_spec():
    imported = set().union(*(imported_by(path) for path in (ROOT / "torch_ref").rglob("*.py")))
    imported |= set(torch_ref.PUBLIC.values())  # imported by name, when they are first used
    assert all(name.startswith("jax_ddpm.spec.") for name in imported if name.startswith("jax_ddpm"))
    outside = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert outside == {"torch", "numpy", "jax_ddpm", "torch_ref"}


USE = """
import sys
import torch
with_torch = set(sys.modules)

import torch_ref
import torch_ref.weights
from jax_ddpm.spec.write_model import write_model
for module in {modules}:
    __import__(module)
for name in dir(torch_ref):
    getattr(torch_ref, name)
network = torch_ref.ConvBlockConfig(widths=(32,), time_width=8)
model = torch_ref.build(network)
torch_ref.weights.initialise(model, 0)
info = torch_ref.ModelInfo(network=network, image_shape=(4, 4, 1), diffusion=torch_ref.DiffusionConfig())
write_model(sys.argv[1], torch_ref.weights.state_dict(model), info)
torch_ref.load_model(sys.argv[1])
print(*(set(sys.modules) - with_torch))
"""
OF_PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}


def test_using_torch_ref_loads_no_jax(tmp_path):
    modules = [f"torch_ref.{m}".replace("/__init__", "").replace("/", ".") for m in MODULES]
    command = [sys.executable, "-c", USE.format(modules=modules), str(tmp_path / "model.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(result.stdout.split())
    ours = {name for name in loaded if name.startswith("jax_ddpm.")}
    assert ours and all(name == "jax_ddpm.spec" or name.startswith("jax_ddpm.spec.") for name in ours)
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    packages = {name for name in packages if not name.startswith("_sysconfigdata")}  # of the standard library
    assert {"torch_ref", "safetensors"} <= packages
    assert packages <= {"torch_ref", "jax_ddpm", "torch", "numpy", "safetensors"} | OF_PYDANTIC


def test_importing_torch_ref_itself_loads_no_torch():
    code = "import sys, torch_ref; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "False"
