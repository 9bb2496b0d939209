"""torch_ref is jax_ddpm again: the same definitions, and the same numbers from each of them."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jax_ddpm.config
import jax_ddpm.diffusion
import jax_ddpm.embeddings
import jax_ddpm.layers
import jax_ddpm.model_files
import jax_ddpm.network_config
import jax_ddpm.presets
import jax_ddpm.rng
import jax_ddpm.samplers
import jax_ddpm.schedules
import jax_ddpm.unets
import jax_ddpm.weights
import torch_ref.config
import torch_ref.diffusion
import torch_ref.embeddings
import torch_ref.model_files
import torch_ref.network_config
import torch_ref.rng
import torch_ref.samplers
import torch_ref.schedules
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.errors import UserError as JaxUserError
from jax_ddpm.training import state as jax_state
from jax_ddpm.training import step as jax_step
from parity_tests.budgets import EMBEDDING, FORMULA, LOSS, NETWORK, RATE, SAMPLING, UPDATE
from torch_ref import step
from torch_ref.errors import UserError

torch.set_num_threads(1)  # beside JAX's, its threads wait for one another; ten times slower on two cores

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
TORCH = {np.float32: torch.float32, np.float64: torch.float64}
OBJECTIVES, VARIANCES, CLIPS = ["eps", "x0", "v"], ["beta", "posterior"], ["x0", "state", "none"]
ROOT = Path(__file__).parent.parent


def to_torch(x) -> torch.Tensor:
    """Channels last to channels first."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """Channels first to channels last."""
    return np.moveaxis(x.detach().numpy(), -3, -1)


def assert_close(ours, theirs, budget):
    """Equal shapes and dtypes, and apart by at most `budget` of the largest magnitude."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=budget * max(1e-30, np.abs(theirs).max()))


# The same definitions -------------------------------------------------------------------------------------------------

MODULES = {  # of torch_ref: the files of jax_ddpm that it mirrors
    "config": ["config"],
    "diffusers_folder": ["diffusers_folder"],
    "diffusion": ["diffusion"],
    "embeddings": ["embeddings"],
    "errors": ["errors"],
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
    "Linear",
    "Conv",
    "convolve",
    "convolve_2x2",
    "ConvTranspose",
    "ConvTranspose2x2",
    "GroupNorm",
    "fan_in",
]
ONLY_IN_JAX = {
    "config": dict.fromkeys(
        ["DataConfig", "TrainingConfig", "OutputConfig", "RunConfig", "slug", "to_json"], TRAINING_ONLY
    ),
    "diffusers_folder": {"configs": CONVERT},
    "layers": {
        **dict.fromkeys(["rematerialised", "remat_block"], "saves memory on the devices that JAX is for"),
        **dict.fromkeys(LAYERS, "torch.nn has it"),
    },
    "model_files": {
        "Model": "load_model returns the nn.Module itself, with an attribute info",
        **dict.fromkeys(["check_output", "convert_to", "atomically"], CONVERT),
    },
    "samplers": {"_sample": "the jitted part of sample_indices"},
    "step": {
        "num_parameters": "in model_files, for commands that only sample",
        "make_gradients": "a step of its own, for --replay-step; nested in make_train_step in torch_ref",
        "make_dispatch": "dispatching several steps at once is JAX's",
    },
    "unets/__init__": {"register": "a network of one's own has no PyTorch twin"},
    "unets/attention": dict.fromkeys(
        ["Frequencies", "QueryKeyValue", "AttentionOutput"], "arrays whose names or initial values are their own"
    ),
    "unets/layer_norm": {"LayerNorm": "torch.nn has it"},
    "unets/conv_block": {"max_pool_2x2": "torch.nn.functional has it"},
    "weights": {
        "Entry": NAMES,
        "entries": NAMES,
        "translated": NAMES,
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
    "step": {
        "clip_by_global_norm": "what optax has",
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


# Settings -------------------------------------------------------------------------------------------------------------


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


# Tables, embeddings, diffusion ----------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("timesteps", [1, 10, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_tables_are_equal(schedule, timesteps, dtype):
    ours = torch_ref.schedules.make_tables(schedule, timesteps, 1e-5, 0.03, dtype)
    theirs = jax_ddpm.schedules.make_tables(schedule, timesteps, 1e-5, 0.03, dtype)
    assert list(vars(ours)) == list(vars(theirs))
    for name, value in vars(theirs).items():
        assert getattr(ours, name).dtype == dtype
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


@DTYPES
def test_embeddings(dtype):
    with jax.enable_x64(dtype == np.float64):
        t, frequencies = np.arange(0, 1000, 37), jax_ddpm.embeddings.interleaved_frequencies(64)
        np.testing.assert_array_equal(torch_ref.embeddings.interleaved_frequencies(64), frequencies)
        frequencies = frequencies.astype(dtype)
        theirs = jax_ddpm.embeddings.interleaved(jnp.asarray(t), jnp.asarray(frequencies))
        ours = torch_ref.embeddings.interleaved(torch.from_numpy(t), torch.from_numpy(frequencies))
        assert_close(ours, theirs, EMBEDDING[dtype])


def batch(dtype, seed=0, shape=(5, 4, 6, 3)):
    """x_0, noise, prediction (channels last) and t, with the first and the last timestep of a thousand."""
    g = np.random.default_rng(seed)
    x_0, noise, prediction = g.standard_normal((3, *shape)).astype(dtype)
    return x_0, noise, prediction, np.array([0, 1, 500, 998, 999])


@DTYPES
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_diffusion(objective, dtype):
    x_0, noise, prediction, t = batch(dtype)
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        ours, theirs = torch_ref.diffusion, jax_ddpm.diffusion

        def compare(name, *arrays, objective=None, **settings):
            said = () if objective is None else (objective,)
            theirs_is = getattr(theirs, name)(tables, *said, *arrays, **settings)
            tensors = [torch.from_numpy(a) if a.ndim == 1 else to_torch(a) for a in arrays]
            ours_is = getattr(ours, name)(tables, *said, *tensors, **settings)
            for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (ours_is, theirs_is)), strict=True):
                assert_close(to_numpy(a) if a.ndim == 4 else a, b, FORMULA[dtype])

        compare("q_sample", x_0, t, noise)
        compare("posterior", x_0, noise, t)
        compare("objective_target", x_0, t, noise, objective=objective)
        compare("predicted_x_0", x_0, t[1:4].repeat([2, 2, 1]), prediction, objective=objective)
        compare("predicted_eps", x_0, t, prediction, objective=objective)
        compare("loss_weights", t, objective=objective, min_snr_gamma=5.0)
        for gamma in (None, 5.0):
            arguments = {"min_snr_gamma": gamma}
            a = ours.loss_per_image(
                tables,
                objective,
                lambda x, t: 0.5 * x,
                to_torch(x_0),
                torch.from_numpy(t),
                to_torch(noise),
                **arguments,
            )
            b = theirs.loss_per_image(tables, objective, lambda x, t: 0.5 * x, x_0, t, noise, **arguments)
            assert_close(a, b, LOSS[dtype])
        mean = ours.loss(tables, objective, lambda x, t: 0.5 * x, to_torch(x_0), torch.from_numpy(t), to_torch(noise))
        assert_close(mean, theirs.loss(tables, objective, lambda x, t: 0.5 * x, x_0, t, noise), LOSS[dtype])


# Sampling -------------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hybrid_loss_and_its_gradient(objective, dtype):
    """Of the prediction and of the variance's v, from t = 0 to T - 1, with black and white pixels."""
    x_0, noise, prediction, t = batch(dtype)
    x_0, v = np.clip(np.round(x_0 * 127.5) / 127.5, -1, 1).astype(dtype), np.sin(x_0)
    said = np.concatenate([prediction, v], axis=-1)
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        settings = {"min_snr_gamma": 5.0, "variance": "learned_range"}

        def their_loss(said):
            return jax_ddpm.diffusion.loss(tables, objective, lambda x, t: said, x_0, t, noise, **settings)

        theirs, their_gradient = jax.value_and_grad(their_loss)(jnp.asarray(said))
        leaf = to_torch(said).requires_grad_()
        ours = torch_ref.diffusion.loss(
            tables, objective, lambda x, t: leaf, to_torch(x_0), torch.from_numpy(t), to_torch(noise), **settings
        )
        ours.backward()
    assert_close(ours.detach(), theirs, LOSS[dtype])
    assert_close(to_numpy(leaf.grad), their_gradient, LOSS[dtype])


@DTYPES
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ancestral_step(objective, variance, clip, dtype):
    x_t, noise, prediction, _ = batch(dtype)
    settings = {"objective": objective, "variance": variance, "clip": clip}
    with jax.enable_x64(dtype == np.float64):
        tables = jax_ddpm.schedules.make_tables(dtype=dtype)
        for t in (0, 1, 500, 999):
            theirs = jax_ddpm.samplers.ancestral_step(tables, x_t, prediction, jnp.int32(t), noise, **settings)
            ours = torch_ref.samplers.ancestral_step(
                tables, to_torch(x_t), to_torch(prediction), t, to_torch(noise), **settings
            )
            assert_close(to_numpy(ours), theirs, FORMULA[dtype])


@pytest.mark.parametrize("num_frames", [0, 1, 2, 5, (0, 2, 5, 6), (4,)])
def test_reverse_process_order_frames_and_progress(num_frames):
    """x <- 3 x + 5 t + noise_t: integers, so that every order of evaluation but the right one differs."""
    timesteps, x_T = 6, np.arange(8, dtype=np.float64).reshape(2, 2, 2, 1)
    calls = {"ours": [], "theirs": []}

    def make(package, x_T, name):
        return package.samplers.reverse_process(
            lambda x, prediction, t, noise: prediction + noise,
            lambda x, t: 3 * x + 5 * t.reshape(-1, 1, 1, 1),
            x_T,
            timesteps,
            lambda t: t % 4,
            num_frames,
            lambda done: calls[name].append(int(done)),
        )

    with jax.enable_x64(True):
        theirs = make(jax_ddpm, jnp.asarray(x_T), "theirs")
        jax.effects_barrier()
    ours = make(torch_ref, to_torch(x_T), "ours")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(to_numpy(a), b)
    assert calls["ours"] == calls["theirs"] == [1, 2, 3, 4, 5, 6]


NETWORK_SETTINGS = {"widths": (32, 64), "time_width": 32}


def networks(dtype=np.float32, seed=7, channels=3, **settings):
    """A small conv_block with the same random weights in both."""
    theirs = jax_ddpm.unets.build(jax_ddpm.network_config.ConvBlockConfig(**NETWORK_SETTINGS | settings), channels)
    ours = torch_ref.unets.build(torch_ref.network_config.ConvBlockConfig(**NETWORK_SETTINGS | settings), channels)
    jax_ddpm.weights.initialise(theirs, seed)
    values = jax_ddpm.weights.state_dict(theirs)
    jax_ddpm.weights.load_state_dict(theirs, values, dtype)
    torch_ref.weights.load_state_dict(ours, values, dtype)
    return ours, theirs


@DTYPES
def test_network(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        x, _, _, t = batch(dtype)
        y = ours(to_torch(x), torch.from_numpy(t))
        assert_close(to_numpy(y), jax.jit(lambda x, t: theirs(x, t))(x, t), NETWORK[dtype])


def test_bfloat16_touches_activations_only():
    settings = torch_ref.network_config.ConvBlockConfig(**NETWORK_SETTINGS)
    network = torch_ref.unets.build(settings, 3, torch.bfloat16)
    torch_ref.weights.load_state_dict(network, torch_ref.weights.state_dict(networks()[0]))
    seen = {}
    for name in ("time_emb", "enc_convs.0.seq1.0", "output"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
    x, t = to_torch(batch(np.float32)[0]), torch.tensor([998, 999, 1000, 1001, 3])
    y = network(x, t)
    assert y.dtype == torch.float32 and all(p.dtype == torch.float32 for p in network.parameters())
    assert seen["enc_convs.0.seq1.0"].dtype == seen["output"].dtype == torch.bfloat16
    exact = networks()[0]
    assert torch.equal(seen["time_emb"], exact.time_emb(t))
    assert len(torch.unique(seen["time_emb"], dim=0)) == 5
    error = (y - exact(x, t)).abs().max() / y.abs().max()
    assert 1e-4 < error < 0.1  # eight bits of mantissa


@DTYPES
@pytest.mark.parametrize(("objective", "variance", "clip"), [("eps", "beta", "x0"), ("v", "posterior", "state")])
def test_sampling(objective, variance, clip, dtype):
    """40 steps from the same seed, three pictures in batches of two, and frames on the way."""
    settings = {"timesteps": 40, "schedule": "cosine", "objective": objective, "variance": variance, "clip": clip}
    shape = (4, 6, 3)
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        a = torch_ref.samplers.sample(
            ours, 3, 5, 2, config=torch_ref.config.DiffusionConfig(**settings), image_shape=shape, dtype=TORCH[dtype]
        )
        b = jax_ddpm.samplers.sample(
            theirs, 3, 5, 2, config=jax_ddpm.config.DiffusionConfig(**settings), image_shape=shape, dtype=dtype
        )
        assert a.shape == (3, *shape) and a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=SAMPLING[dtype])
        alone, frames = torch_ref.samplers.sample_indices(
            ours, torch_ref.config.DiffusionConfig(**settings), shape, 5, [2], num_frames=3, dtype=TORCH[dtype]
        )
        np.testing.assert_allclose(to_numpy(alone)[0], a[2], rtol=0, atol=SAMPLING[dtype])
        assert frames.shape == (3, 1, 3, 4, 6) and torch.equal(frames[-1], alone)
        x_T = torch_ref.rng.normal(torch_ref.rng.key(5, torch_ref.rng.SAMPLING, 2, 40), shape, TORCH[dtype])
        assert torch.equal(frames[0, 0], to_torch(x_T))


FEW_STEPS = [  # sampler, spacing, eta, clip, objective
    ("ddpm", "leading", 0.0, "dynamic", "eps"),
    ("ddim", "linspace", 0.5, "x0", "v"),
    ("dpmpp", "logsnr", 0.0, "dynamic", "eps"),
    ("heun", "trailing", 0.0, "x0", "v"),
    ("euler", "trailing", 0.0, "state", "x0"),
]


@DTYPES
@pytest.mark.parametrize(("sampler", "spacing", "eta", "clip", "objective"), FEW_STEPS)
def test_few_steps(sampler, spacing, eta, clip, objective, dtype):
    """7 of 40 steps, frames after each, and as many calls of progress."""
    found, calls = {}, {"jax_ddpm": [], "torch_ref": []}
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        for package, network, float_type in ((jax_ddpm, theirs, dtype), (torch_ref, ours, TORCH[dtype])):
            settings = package.config.SamplerConfig(sampler, 7, spacing, eta)
            config = package.config.DiffusionConfig(
                timesteps=40, beta_end=0.3, objective=objective, clip=clip, clip_percentile=0.8
            )
            name = package.__name__
            found[name] = package.samplers.sample_indices(
                network,
                config,
                (4, 6, 3),
                5,
                [0, 2],
                sampler=settings,
                num_frames=8,
                dtype=float_type,
                progress=lambda done, name=name: calls[name].append(int(done)),
            )
        jax.effects_barrier()
    for a, b in zip(found["torch_ref"], found["jax_ddpm"], strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=0, atol=SAMPLING[dtype] * max(1, np.abs(b).max()))
    assert calls["jax_ddpm"] == calls["torch_ref"] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("wrong", [{"num_steps": 41}, {"sampler": "ddim", "eta": 2.0}, {"sampler": "heun", "eta": 0.1}])
def test_wrong_samplers_are_refused_in_the_same_words(wrong):
    said = []
    for package, error in ((jax_ddpm, JaxUserError), (torch_ref, UserError)):
        with pytest.raises(error, match=f"{list(wrong)[-1]} = ") as caught:
            package.config.SamplerConfig(**wrong).check(40)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["num_images", "batch_size"])
def test_nothing_to_sample_is_refused(name):
    with pytest.raises(UserError, match=f"{name} = 0: expected at least 1"):
        torch_ref.samplers.sample(networks()[0], **{name: 0})


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_initial_weights_are_equal(seed):
    theirs = jax_ddpm.unets.build(jax_ddpm.network_config.ConvBlockConfig(widths=(32, 64, 128), time_width=32), 3)
    ours = torch_ref.unets.build(torch_ref.network_config.ConvBlockConfig(widths=(32, 64, 128), time_width=32), 3)
    jax_ddpm.weights.initialise(theirs, seed)
    torch_ref.weights.initialise(ours, seed)
    values = jax_ddpm.weights.state_dict(theirs)
    assert set(ours.state_dict()) == set(values)
    for name, value in torch_ref.weights.state_dict(ours).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, values[name], err_msg=name)


def test_initial_weights_are_within_the_bounds_of_pytorch():
    """The largest of the numbers that PyTorch itself draws, and of ours, for layers of every kind."""
    settings = torch_ref.network_config.ConvBlockConfig(widths=(32, 64), time_width=32)
    fresh, ours = torch_ref.unets.build(settings, 3), torch_ref.unets.build(settings, 3)
    torch_ref.weights.initialise(ours, 1)
    for (name, a), b in zip(fresh.named_parameters(), ours.parameters(), strict=True):
        if a.numel() > 1000:
            torch.testing.assert_close(b.abs().max(), a.abs().max(), rtol=0.02, atol=0, msg=name)
            torch.testing.assert_close(b.std(), a.std(), rtol=0.1, atol=0, msg=name)
        elif ".1.weight" in name and "seq" in name:
            assert torch.equal(b, torch.ones_like(b)), name


@DTYPES
def test_weights_go_round(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype)
        values = torch_ref.weights.state_dict(ours)
        jax_ddpm.weights.load_state_dict(theirs, values, dtype)
        back = jax_ddpm.weights.state_dict(theirs)
    assert set(back) == set(values)
    for name in values:
        assert back[name].dtype == values[name].dtype == dtype
        np.testing.assert_array_equal(back[name], values[name], err_msg=name)


def test_wrong_weights_are_all_named_in_the_same_words():
    ours, theirs = networks()
    values = torch_ref.weights.state_dict(ours)
    before = torch_ref.weights.state_dict(ours)
    del values["output.bias"]
    values["extra"] = np.zeros((2, 3), np.float32)
    values["output.weight"] = values["output.weight"][:1]
    values["time_emb.1.bias"] = values["time_emb.1.bias"].copy()
    values["time_emb.1.bias"][3] = np.nan
    with pytest.raises(UserError) as error:
        torch_ref.weights.load_state_dict(ours, values)
    with pytest.raises(JaxUserError) as their_error:
        jax_ddpm.weights.load_state_dict(theirs, values)
    for said in (
        "missing: output.bias (3,)",
        "unexpected: extra (2, 3)",
        "shape: output.weight is (1, 32, 1, 1), expected (3, 32, 1, 1)",
        "not finite: time_emb.1.bias",
    ):
        assert said in str(error.value)
    faults, their_faults = (str(e.value).partition(": ")[2].rstrip(".").split("; ") for e in (error, their_error))
    assert len(faults) == 4 and sorted(faults) == sorted(their_faults)
    for name, value in torch_ref.weights.state_dict(ours).items():
        np.testing.assert_array_equal(value, before[name], err_msg="changed by a refused state dict")


def test_layers_without_initial_values_are_refused():
    with pytest.raises(UserError, match="No initial values are known for 0, a BatchNorm2d"):
        torch_ref.weights.initialise(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), 0)


def test_model_files_are_read_by_both(tmp_path):
    ours, _ = networks()
    values = torch_ref.weights.state_dict(ours)
    jax_ddpm.model_files.write_model(tmp_path / "model.safetensors", values, info_of_network(jax_ddpm))
    torch_ref.model_files.write_model(tmp_path / "torch.safetensors", values, info_of_network(torch_ref))
    prefixed = {f"module.model.{name}": torch.from_numpy(value) for name, value in values.items()}
    torch.save({"model_state_dict": {"step": 3}, "ema": prefixed}, tmp_path / "stranger.pt")
    torch.save({name: value.bfloat16() for name, value in prefixed.items()}, tmp_path / "half.pth")
    for name in (".", "model.safetensors", "torch.safetensors", "stranger.pt"):
        a = torch_ref.load_model(tmp_path / name, image_size=4)
        b = jax_ddpm.load_model(tmp_path / name, image_size=4)
        assert not a.training
        assert dataclasses.asdict(a.info) == dataclasses.asdict(b.info)
        assert torch_ref.model_files.num_parameters(a) == b.num_parameters
        assert torch_ref.model_files.describe(a.info, 5) == jax_ddpm.model_files.describe(b.info, 5)
        for key, value in jax_ddpm.weights.state_dict(b.network).items():
            np.testing.assert_array_equal(torch_ref.weights.state_dict(a)[key], value, err_msg=key)
    half = torch_ref.load_model(tmp_path / "half.pth", image_size=4, precision="float64", timesteps=9)
    assert half.info.diffusion.timesteps == 9
    assert torch.equal(half.output.weight, ours.output.weight.detach().bfloat16().double())


def info_of_network(package):
    config = package.config
    network = package.network_config.ConvBlockConfig(**NETWORK_SETTINGS)
    return config.ModelInfo(network=network, image_shape=(4, 4, 3), diffusion=config.DiffusionConfig(objective="v"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("model.onnx", b"x", "is no model"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read as safetensors"),
        ("cut.pt", b"PK\x03\x04", "cannot be read as a PyTorch checkpoint"),
        ("", None, "holds no model.safetensors"),
    ],
)
def test_files_that_are_no_models_are_refused_in_the_same_words(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        torch_ref.load_model(tmp_path / name)
    with pytest.raises(JaxUserError) as their_error:
        jax_ddpm.load_model(tmp_path / name)
    assert str(error.value) == str(their_error.value)


def test_contradictions_and_unknown_precisions_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    torch_ref.model_files.write_model(path, torch_ref.weights.state_dict(networks()[0]), info_of_network(torch_ref))
    with pytest.raises(UserError, match="objective = eps was given, but it was trained with v"):
        torch_ref.load_model(path, objective="eps")
    assert torch_ref.load_model(path, clip="state").info.diffusion.clip == "state"
    with pytest.raises(UserError, match="precision = half: expected one of float32, bfloat16, float64"):
        torch_ref.load_model(path, precision="half")


# Training -------------------------------------------------------------------------------------------------------------

PLAIN = {"optimizer": "adam", "lr_schedule": "constant"}
EVERYTHING = {
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "warmup_steps": 1,
    "clip_norm": 0.05,
    "accumulate": 2,
    "min_snr_gamma": 5.0,
}


def run_config(dtype, flip, objective, **training):
    config = jax_ddpm.config
    return config.RunConfig(
        data=config.DataConfig(flip=flip),
        diffusion=config.DiffusionConfig(objective=objective),
        training=config.TrainingConfig(
            batch_size=4, learning_rate=1e-3, precision=np.dtype(dtype).name, seed=3, ema_decay=0.99, **training
        ),
    )


@DTYPES
@pytest.mark.parametrize(
    ("training", "objective", "flip"), [(PLAIN, "eps", False), (EVERYTHING, "v", True)], ids=["plain", "everything"]
)
def test_three_training_steps(training, objective, flip, dtype):
    """Loss, gradient norm and learning rate of every step; parameters and EMA after the last."""
    config = run_config(dtype, flip, objective, **training)
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 6, 3), dtype=np.uint8)
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = networks(dtype, widths=(64,))
        optimizer = jax_step.make_optimizer(config.training)
        graph, state = jax_state.create_state(theirs, optimizer, True, dtype)
        train_step = jax.jit(jax_step.make_train_step(graph, optimizer, config, 10))
        their_metrics = []
        for batch_of_images in images:
            state, metrics = train_step(state, batch_of_images)
            their_metrics.append({name: float(value) for name, value in metrics.items()})
        their_params, their_ema = (
            jax_ddpm.weights.state_dict(nnx.merge(graph, weights, state.buffers))
            for weights in (state.params, state.ema)
        )

    before = torch_ref.weights.state_dict(ours)
    ours = step.create_state(ours, step.make_optimizer(config.training, ours), True, TORCH[dtype])
    train_step = step.make_train_step(config, 10)
    for batch_of_images, metrics in zip(images, their_metrics, strict=True):
        ours, our_metrics = train_step(ours, batch_of_images)
        for name, budget in (("loss", LOSS[dtype]), ("grad_norm", LOSS[dtype]), ("learning_rate", RATE)):
            np.testing.assert_allclose(our_metrics[name], metrics[name], rtol=budget, err_msg=name)
    assert ours.step == 3
    rate = config.training.learning_rate
    for module, values in ((ours.network, their_params), (ours.ema, their_ema)):
        for name, value in torch_ref.weights.state_dict(module).items():
            np.testing.assert_allclose(value, values[name], rtol=0, atol=UPDATE[dtype] * rate, err_msg=name)
            if not name.endswith(".J"):
                assert np.abs(value - before[name]).max() > rate, f"{name} did not move"
    assert ours.weights is ours.ema


@pytest.mark.parametrize("lr_schedule", ["cosine", "constant"])
def test_learning_rates(lr_schedule):
    config = jax_ddpm.config.TrainingConfig(lr_schedule=lr_schedule, warmup_steps=20, learning_rate=3e-4)
    for at in (0, 1, 19, 20, 21, 57, 99, 100, 130):
        theirs = float(jax_step.learning_rate(config, at, 100))
        np.testing.assert_allclose(step.learning_rate(config, at, 100), theirs, rtol=RATE, err_msg=str(at))


def test_the_coins_of_flipping_are_the_same():
    images = np.random.default_rng(2).integers(0, 256, (64, 2, 5, 3), dtype=np.uint8)
    theirs = jax_step.prepare_images(images, jnp.float32, jax_ddpm.rng.key(1, jax_ddpm.rng.FLIP, 9))
    ours = step.prepare_images(torch.from_numpy(images), torch.float32, torch_ref.rng.key(1, torch_ref.rng.FLIP, 9))
    assert_close(to_numpy(ours), theirs, FORMULA[np.float32])
    mirrored = np.any(np.abs(to_numpy(ours) - (images / 127.5 - 1)) > 1e-3, axis=(1, 2, 3))
    assert 16 < mirrored.sum() < 48


def test_validation():
    config = run_config(np.float32, False, "eps", min_snr_gamma=5.0)
    images = np.random.default_rng(4).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    mask = np.array([1, 1, 0, 1], np.float32)
    ours, theirs = networks(widths=(32,))
    graph, params, buffers = nnx.split(theirs, nnx.Param, jax_ddpm.layers.Buffer)
    loss = jax_step.make_validation(graph, config)(params, buffers, images, mask, 6)
    np.testing.assert_allclose(step.make_validation(config)(ours, images, mask, 6), loss, rtol=LOSS[np.float32])
