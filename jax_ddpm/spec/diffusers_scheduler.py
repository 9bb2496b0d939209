"""Schedulers of the diffusers package as diffusion settings: their scheduler_config.json, read and written.

From every supported class the training settings are read: T, betas and objective. How to sample is read from the fields
of DDPMScheduler, as `DDPMScheduler.from_config` would; those of other classes only choose among their own methods.
"""

import json
from pathlib import Path

from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.json_text import from_json, read_object, require_supported

# Supported classes, and the nearest sampler here.
SCHEDULERS = {
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "PNDMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp",
    "DPMSolverSinglestepScheduler": "dpmpp",
    "DPMSolverSDEScheduler": "dpmpp",
    "UniPCMultistepScheduler": "dpmpp",
    "DEISMultistepScheduler": "dpmpp",
    "SASolverScheduler": "dpmpp",
    "LMSDiscreteScheduler": "dpmpp",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "ddpm",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "heun",
}
# Defaults of DDPMScheduler. The other classes have the same, except OTHER_BETAS.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
}
OTHER_BETAS = (
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"),
)
OTHER_BETAS_DEFAULTS = {"beta_start": 0.00085, "beta_end": 0.012}
# Fields with a name for each value: the value in diffusers, and ours.
VALUES = {
    "beta_schedule": {
        "linear": "linear",
        "scaled_linear": "scaled_linear",
        "squaredcos_cap_v2": "cosine",
        "sigmoid": "sigmoid_betas",
    },
    "prediction_type": {"epsilon": "eps", "sample": "x0", "v_prediction": "v"},
    "variance_type": {
        "fixed_large": "beta",
        "fixed_large_log": "beta",
        "fixed_small": "posterior",
        "fixed_small_log": "posterior",
        "learned_range": "learned_range",
        None: "posterior",
    },
}
# Fields that may change what a network is trained for, and the values that do not.
REQUIRED_VALUES = {
    "clip_sample": (True, False),
    "thresholding": (True, False),
    "rescale_betas_zero_snr": (True, False),
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete", None),
}
# Fields that only say how diffusers samples.
SAMPLING_FIELDS = (
    *("set_alpha_to_one", "steps_offset", "timestep_spacing", "timestep_values", "tensor_format", "skip_prk_steps"),
    *("solver_order", "solver_type", "solver_p", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type"),
    *("lambda_min_clipped", "interpolation_type", "disable_corrector", "noise_sampler_seed", "sigma_min", "sigma_max"),
    *("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),
    *("predictor_order", "corrector_order", "tau_func"),
)


def read_diffusion(path: Path) -> tuple[DiffusionConfig, list[str]]:
    """The diffusion settings of a scheduler_config.json, and lines that say how they were taken.

    Raises UserError that names the scheduler or the settings that are not supported.
    """
    given = read_object(path)
    name = given.get("_class_name")
    require_supported(path, {"_class_name": tuple(SCHEDULERS)}, {"_class_name": name})
    if given.get("predict_epsilon") is False:  # the old way to write prediction_type
        given = {"prediction_type": "sample", **given}
    config = {**DEFAULTS, **(OTHER_BETAS_DEFAULTS if name in OTHER_BETAS else {}), **given}
    known = {*DEFAULTS, *REQUIRED_VALUES, *SAMPLING_FIELDS, "predict_epsilon"}
    unknown = {key: (None, False) for key in given if key not in known and not key.startswith("_")}
    required = {key: values for key, values in REQUIRED_VALUES.items() if key in config}
    require_supported(path, {**required, **{key: tuple(value) for key, value in VALUES.items()}, **unknown}, config)
    betas = config["trained_betas"]
    converted = {
        "timesteps": config["num_train_timesteps"],
        "beta_start": config["beta_start"],
        "beta_end": config["beta_end"],
        "schedule": "trained" if betas is not None else VALUES["beta_schedule"][config["beta_schedule"]],
        "trained_betas": betas,
        "zero_terminal_snr": config["rescale_betas_zero_snr"],
        "objective": VALUES["prediction_type"][config["prediction_type"]],
        "variance": VALUES["variance_type"][config["variance_type"]],
        "clip": "dynamic" if config["thresholding"] else "x0" if config["clip_sample"] else "none",
    }
    if converted["clip"] == "dynamic":
        converted["clip_percentile"] = config["dynamic_thresholding_ratio"]
        converted["clip_max"] = config["sample_max_value"]
    elif converted["clip"] == "x0":
        converted["clip_range"] = config["clip_sample_range"]
    diffusion = from_json(DiffusionConfig, json.dumps(converted), str(path))
    return diffusion, how_it_samples(name)


def how_it_samples(name: str) -> list[str]:
    """A line that says how a model with the scheduler class `name` is sampled here. No line for DDPMScheduler."""
    if SCHEDULERS[name] == "ddpm" and name.startswith("DDPM"):
        return []
    return [
        f"T, betas and objective are those of the folder's {name}; pictures are drawn with the samplers of jax_ddpm "
        f"(nearest: --sampler {SCHEDULERS[name]})."
    ]


def write_diffusion(diffusion: DiffusionConfig) -> dict:
    """The scheduler_config.json of a DDPMScheduler. Raises UserError for settings that diffusers does not have."""
    for name, usual in (("data_range", USUAL), ("t_input", "index")):
        expected = (
            f"the pipelines of diffusers have {usual} only, so this model cannot be written as a diffusers folder"
        )
        require(getattr(diffusion, name) == usual, name, getattr(diffusion, name), expected)
    written = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "trained_betas": diffusion.trained_betas,
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
    }
    schedule = "linear" if diffusion.schedule == "trained" else diffusion.schedule
    for name, value in (
        ("beta_schedule", schedule),
        ("prediction_type", diffusion.objective),
        ("variance_type", diffusion.variance),
    ):
        values = [key for key, our_value in VALUES[name].items() if our_value == value]
        if not values:
            expected = ", ".join(dict.fromkeys(VALUES[name].values()))
            raise UserError(f"The {name} of diffusers cannot express {value}: expected {expected}.")
        written[name] = values[0]
    if diffusion.clip == "state":
        raise UserError("The clip_sample of diffusers cannot express state: expected x0, dynamic, none.")
    written |= {"clip_sample": diffusion.clip == "x0", "thresholding": diffusion.clip == "dynamic"}
    if diffusion.clip == "x0":
        written["clip_sample_range"] = diffusion.clip_range
    elif diffusion.clip == "dynamic":
        written["dynamic_thresholding_ratio"] = diffusion.clip_percentile
        written["sample_max_value"] = diffusion.clip_max
    return written
