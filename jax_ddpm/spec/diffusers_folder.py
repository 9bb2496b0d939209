"""Model folders of the diffusers package: read their settings, and convert ours to theirs.

A folder contains a UNet2DModel (config.json and weights) or a pipeline: model_index.json, and the model and the
scheduler in the same folder or in unet/ and scheduler/.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import shortest
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# Fields with the same name in UNet2DModel and DDPMConfig, with the defaults of diffusers.
SHARED_FIELDS = {
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "dropout": 0.0,
}
# Other fields of UNet2DModel that are converted, with the defaults of diffusers.
CONVERTED_FIELDS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# Fields of UNet2DModel for which `ddpm` supports only these values. The first one is the default of diffusers.
SUPPORTED_VALUES = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv", None),
    "upsample_type": ("conv", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
DERIVED_FIELDS = ("time_embedding_dim", "attn_norm_num_groups")
# num_train_timesteps matters only for a learned time embedding. The other fields are saved by EMAModel of diffusers.
IGNORED_FIELDS = (
    *("num_train_timesteps", "decay", "min_decay", "optimization_step", "update_after_step"),
    *("use_ema_warmup", "inv_gamma", "power"),
)

SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": True,
}
# Fields of the scheduler: each supported value, and the name that jax_ddpm has for it.
SCHEDULER_VALUES = {
    "beta_schedule": {"linear": "linear", "squaredcos_cap_v2": "cosine"},
    "prediction_type": {"epsilon": "eps", "sample": "x0", "v_prediction": "v"},
    "variance_type": {
        "fixed_large": "beta",
        "fixed_small": "posterior",
        "fixed_small_log": "posterior",
        "learned_range": "learned_range",
    },
    "clip_sample": {True: "x0", False: "none"},
    "trained_betas": {None: None},
    "thresholding": {False: False},
    "clip_sample_range": {1.0: 1.0},
    "rescale_betas_zero_snr": {False: False},
}
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Folder:
    """Contents of a diffusers folder."""

    weights: Path
    network: DDPMConfig
    image_channels: int
    image_size: tuple[int, int] | None
    """(H, W), or None if config.json has no sample_size."""
    diffusion: DiffusionConfig | None
    """None if there is no scheduler."""


def is_diffusers_folder(folder: Path) -> bool:
    """Whether the folder has an index or weights of diffusers."""
    return any((folder / name).is_file() for name in (INDEX, *WEIGHTS))


def read_folder(folder: Path) -> Folder:
    """The contents of a folder. Raises UserError that names what is missing, damaged or not supported by `ddpm`."""
    if (folder / INDEX).is_file():
        parts = [name for name in read_object(folder / INDEX) if not name.startswith("_")]
        if not set(parts) <= {"unet", "scheduler"}:
            raise UserError(f"{folder} is a pipeline of {', '.join(parts)}: expected only unet and scheduler.")
    model = folder / "unet" if (folder / "unet").is_dir() else folder
    weights = next((model / name for name in WEIGHTS if (model / name).is_file()), None)
    if weights is None:
        raise UserError(f"{model} has no weights: expected {' or '.join(WEIGHTS)}.")
    network, channels, size = read_network(model / "config.json")
    schedulers = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)
    diffusion = next((read_diffusion(path) for path in schedulers if path.is_file()), None)
    return Folder(weights, network, channels, size, diffusion)


def read_network(path: Path) -> tuple[DDPMConfig, int, tuple[int, int] | None]:
    """Network, image channels and image size of a UNet2DModel's config.json."""
    given = read_object(path)
    require_supported(path, {"_class_name": ("UNet2DModel",)}, {"_class_name": None, **given})
    config = {
        **SHARED_FIELDS,
        **CONVERTED_FIELDS,
        **{name: values[0] for name, values in SUPPORTED_VALUES.items()},
        **given,
    }
    known = {*SHARED_FIELDS, *CONVERTED_FIELDS, *SUPPORTED_VALUES, *DERIVED_FIELDS, *IGNORED_FIELDS}
    unknown = {name: (None,) for name in given if name not in known and not name.startswith("_")}
    attention = {name: attention_flags(config[f"{name.lower()}_block_types"], name) for name in ("Down", "Up")}
    blocks = {
        f"{name.lower()}_block_types": (f"[{name}Block2D or Attn{name}Block2D, ...]",)
        for name, flags in attention.items()
        if flags is None
    }
    require_supported(path, {**SUPPORTED_VALUES, **unknown, **blocks}, config)
    inputs, outputs, size = (config[name] for name in ("in_channels", "out_channels", "sample_size"))
    if type(inputs) is not int or inputs < 1:
        raise UserError(f"{path}: in_channels = {inputs!r}; expected the number of image channels.")
    require_supported(path, {"out_channels": (inputs, 2 * inputs)}, config)
    sizes = [size, size] if type(size) is int else size
    if sizes is not None and not (isinstance(sizes, list) and [type(s) for s in sizes] == [int, int]):
        raise UserError(f"{path}: sample_size = {size!r}; expected an integer, or a list of height and width.")
    converted = {
        **{name: config[name] for name in SHARED_FIELDS},
        "widths": config["block_out_channels"],
        "down_attention": attention["Down"],
        "up_attention": attention["Up"],
        "learned_variance": outputs == 2 * inputs,
    }
    network = from_json(DDPMConfig, json.dumps(converted), str(path))
    network.check()
    derived = {
        "time_embedding_dim": (None, 4 * network.widths[0]),
        "attn_norm_num_groups": (None, network.norm_num_groups),
    }
    require_supported(path, {name: values for name, values in derived.items() if name in config}, config)
    return network, inputs, None if sizes is None else (sizes[0], sizes[1])


def attention_flags(block_types, direction: str) -> list[bool] | None:
    """For each block, whether it has attention. None if there is another block type. direction: "Down" or "Up"."""
    has_attention = {f"{direction}Block2D": False, f"Attn{direction}Block2D": True}
    types = [str(name).removeprefix("UNetRes") for name in block_types] if isinstance(block_types, list) else [""]
    return [has_attention[name] for name in types] if set(types) <= set(has_attention) else None


def read_diffusion(path: Path) -> DiffusionConfig:
    """The diffusion settings of a scheduler_config.json of DDPMScheduler or DDIMScheduler."""
    config = {"_class_name": None, **SCHEDULER_DEFAULTS, **read_object(path)}
    if config["clip_sample"] is False:
        config.pop("clip_sample_range", None)
    supported = {name: tuple(values) for name, values in SCHEDULER_VALUES.items() if name in config}
    require_supported(path, {"_class_name": ("DDPMScheduler", "DDIMScheduler"), **supported}, config)
    converted = {
        "timesteps": config["num_train_timesteps"],
        "beta_start": config["beta_start"],
        "beta_end": config["beta_end"],
        **{
            our_name: SCHEDULER_VALUES[name][config[name]]
            for our_name, name in (
                ("schedule", "beta_schedule"),
                ("objective", "prediction_type"),
                ("variance", "variance_type"),
                ("clip", "clip_sample"),
            )
        },
    }
    return from_json(DiffusionConfig, json.dumps(converted), str(path))


def read_object(path: Path) -> dict:
    """The object in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: expected a settings file of diffusers.")
    return value


def require_supported(path: Path, supported: dict[str, tuple], config: dict) -> None:
    """Raise UserError that names the fields whose value is not among the supported ones."""
    wrong = [
        f"{name} = {config[name]!r} (expected {' or '.join(map(str, values))})"
        for name, values in supported.items()
        if config[name] not in values
    ]
    if wrong:
        raise UserError(f"{path} is not supported: {', '.join(wrong)}.")


def current_name(name: str) -> str:
    """Rename an attention parameter of an old diffusers file to its current name. Other names stay as they are."""
    old = rf"(\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION_NAMES)})\."
    return re.sub(old, lambda match: f"{match[1]}.{OLD_ATTENTION_NAMES[match[2]]}.", name)


def to_diffusers(info: ModelInfo) -> dict[str, dict]:
    """The JSON files of a folder, name to content, that diffusers loads as a model and as a pipeline.

    Raises UserError for settings that diffusers does not have.
    """
    network, diffusion = info.network, info.diffusion
    if not isinstance(network, DDPMConfig):
        raise UserError(f"Only ddpm can be written as a diffusers folder, not {network.name}.")
    scheduler_values = {}
    for name, value in (
        ("beta_schedule", diffusion.schedule),
        ("prediction_type", diffusion.objective),
        ("variance_type", diffusion.variance),
        ("clip_sample", diffusion.clip),
    ):
        diffusers_values = [key for key, our_value in SCHEDULER_VALUES[name].items() if our_value == value]
        if not diffusers_values:
            expected = ", ".join(dict.fromkeys(SCHEDULER_VALUES[name].values()))
            raise UserError(f"The {name} of diffusers cannot express {value}: expected {expected}.")
        scheduler_values[name] = diffusers_values[0]
    height, width, channels = info.image_shape
    model = {
        "_class_name": "UNet2DModel",
        "sample_size": shortest((height, width)),
        "in_channels": channels,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "block_out_channels": network.widths,
        "down_block_types": ["AttnDownBlock2D" if flag else "DownBlock2D" for flag in network.down_attention],
        "up_block_types": ["AttnUpBlock2D" if flag else "UpBlock2D" for flag in network.up_attention],
        **{name: getattr(network, name) for name in SHARED_FIELDS},
    }
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        **scheduler_values,
    }
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return {"config.json": model, SCHEDULER: scheduler, INDEX: index}
