"""Model folders of the diffusers package: what their settings mean here, and ours in their words.

A folder holds a UNet2DModel (config.json beside its weights) or a whole pipeline (model_index.json, the model and the
scheduler flat beside it or in unet/ and scheduler/).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# Fields of UNet2DModel that DDPMConfig has under the same name, and what the package takes where they are absent.
SAME = {
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
OTHER = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# Fields that `ddpm` has no choice of; the first value is the package's default.
FAMILY = {
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
CHECKED_LATER = ("time_embedding_dim", "attn_norm_num_groups")
WITHOUT_MEANING = (  # the time table's length, where it is not learned; what the package's EMAModel notes of itself
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
SCHEDULER_FAMILY = {
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
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Folder:
    """What a folder tells."""

    weights: Path
    network: DDPMConfig
    image_channels: int
    image_size: tuple[int, int] | None
    """(H, W), where it is told."""
    diffusion: DiffusionConfig | None
    """None without a scheduler."""


def is_diffusers_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (INDEX, *WEIGHTS))


def read(folder: Path) -> Folder:
    """The settings of a folder. UserError that names what is missing, damaged or outside the family of `ddpm`."""
    if (folder / INDEX).is_file():
        parts = [name for name in read_object(folder / INDEX) if not name.startswith("_")]
        if not set(parts) <= {"unet", "scheduler"}:
            raise UserError(f"{folder} is a pipeline of {', '.join(parts)}: expected unet and scheduler alone.")
    model = folder / "unet" if (folder / "unet").is_dir() else folder
    weights = next((model / name for name in WEIGHTS if (model / name).is_file()), None)
    if weights is None:
        raise UserError(f"{model} holds no model: expected {' or '.join(WEIGHTS)}.")
    network, channels, size = read_network(model / "config.json")
    schedulers = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)
    diffusion = next((read_diffusion(path) for path in schedulers if path.is_file()), None)
    return Folder(weights, network, channels, size, diffusion)


def read_network(path: Path) -> tuple[DDPMConfig, int, tuple[int, int] | None]:
    """Network, image channels and image size of a UNet2DModel's config.json."""
    given = read_object(path)
    refuse(path, {"_class_name": ("UNet2DModel",)}, {"_class_name": None, **given})
    config = {**SAME, **OTHER, **{name: values[0] for name, values in FAMILY.items()}, **given}
    known = {*SAME, *OTHER, *FAMILY, *CHECKED_LATER, *WITHOUT_MEANING}
    unknown = {name: (None,) for name in given if name not in known and not name.startswith("_")}
    attention = {way: attention_flags(config[f"{way.lower()}_block_types"], way) for way in ("Down", "Up")}
    blocks = {
        f"{way.lower()}_block_types": (f"[{way}Block2D or Attn{way}Block2D, ...]",)
        for way, flags in attention.items()
        if flags is None
    }
    refuse(path, {**FAMILY, **unknown, **blocks}, config)
    inputs, outputs, size = (config[name] for name in ("in_channels", "out_channels", "sample_size"))
    if type(inputs) is not int or inputs < 1:
        raise UserError(f"{path}: in_channels = {inputs!r}; expected the image's channels.")
    refuse(path, {"out_channels": (inputs, 2 * inputs)}, config)
    sizes = [size, size] if type(size) is int else size
    if sizes is not None and not (isinstance(sizes, list) and [type(s) for s in sizes] == [int, int]):
        raise UserError(f"{path}: sample_size = {size!r}; expected one integer, or height and width.")
    translated = {
        **{name: config[name] for name in SAME},
        "widths": config["block_out_channels"],
        "down_attention": attention["Down"],
        "up_attention": attention["Up"],
        "learned_variance": outputs == 2 * inputs,
    }
    network = from_json(DDPMConfig, json.dumps(translated), str(path))
    network.check()
    implied = {
        "time_embedding_dim": (None, 4 * network.widths[0]),
        "attn_norm_num_groups": (None, network.norm_num_groups),
    }
    refuse(path, {name: values for name, values in implied.items() if name in config}, config)
    return network, inputs, None if sizes is None else (sizes[0], sizes[1])


def attention_flags(kinds, way: str) -> list[bool] | None:
    """Per block whether it has attention; None for other blocks than these two."""
    known = {f"{way}Block2D": False, f"Attn{way}Block2D": True}
    plain = [str(kind).removeprefix("UNetRes") for kind in kinds] if isinstance(kinds, list) else [""]
    return [known[kind] for kind in plain] if set(plain) <= set(known) else None


def read_diffusion(path: Path) -> DiffusionConfig:
    """The diffusion of a scheduler_config.json of DDPMScheduler or DDIMScheduler."""
    config = {"_class_name": None, **SCHEDULER_DEFAULTS, **read_object(path)}
    if config["clip_sample"] is False:
        config.pop("clip_sample_range", None)
    family = {name: tuple(values) for name, values in SCHEDULER_FAMILY.items() if name in config}
    refuse(path, {"_class_name": ("DDPMScheduler", "DDIMScheduler"), **family}, config)
    translated = {
        "timesteps": config["num_train_timesteps"],
        "beta_start": config["beta_start"],
        "beta_end": config["beta_end"],
        **{
            ours: SCHEDULER_FAMILY[name][config[name]]
            for ours, name in (
                ("schedule", "beta_schedule"),
                ("objective", "prediction_type"),
                ("variance", "variance_type"),
                ("clip", "clip_sample"),
            )
        },
    }
    return from_json(DiffusionConfig, json.dumps(translated), str(path))


def read_object(path: Path) -> dict:
    """A JSON file's object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object, as a settings file of diffusers is.")
    return value


def refuse(path: Path, family: dict[str, tuple], config: dict) -> None:
    """UserError that names the fields with other values than these."""
    outside = [
        f"{name} = {config[name]!r} (expected {' or '.join(map(str, values))})"
        for name, values in family.items()
        if config[name] not in values
    ]
    if outside:
        raise UserError(f"{path} is outside what is read here: {', '.join(outside)}.")


def current_name(name: str) -> str:
    """A parameter's name with the attention layers called as newer files call them."""
    return re.sub(
        rf"(\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.", lambda match: f"{match[1]}.{OLD_NAMES[match[2]]}.", name
    )


def configs(info: ModelInfo) -> dict[str, dict]:
    """The JSON files of a flat folder by name, which the package loads as a model and as a pipeline.

    Raises UserError for what the package has no word for.
    """
    network, diffusion = info.network, info.diffusion
    if not isinstance(network, DDPMConfig):
        raise UserError(f"Only ddpm is written as a diffusers folder; this is {network.name}.")
    words = {}
    for name, value in (
        ("beta_schedule", diffusion.schedule),
        ("prediction_type", diffusion.objective),
        ("variance_type", diffusion.variance),
        ("clip_sample", diffusion.clip),
    ):
        theirs = [word for word, ours in SCHEDULER_FAMILY[name].items() if ours == value]
        if not theirs:
            expected = ", ".join(dict.fromkeys(SCHEDULER_FAMILY[name].values()))
            raise UserError(f"diffusers has no {name} like {value}: only {expected} can be written.")
        words[name] = theirs[0]
    height, width, channels = info.image_shape
    model = {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "block_out_channels": network.widths,
        "down_block_types": ["AttnDownBlock2D" if on else "DownBlock2D" for on in network.down_attention],
        "up_block_types": ["AttnUpBlock2D" if on else "UpBlock2D" for on in network.up_attention],
        **{name: getattr(network, name) for name in SAME},
    }
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        **words,
    }
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return {"config.json": model, SCHEDULER: scheduler, INDEX: index}
