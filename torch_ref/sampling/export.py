"""One step of a sampler with its network as a file: .onnx for ONNX Runtime, .pt2 for `torch.export.load`."""

import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, check_sampler
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.exporting import (
    STEP_SUFFIXES,
    check_export,
    check_export_path,
    null_label,
    takes_weight,
    uses_own_code,
)
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import EXPECTED_GUIDE, EXPECTED_MODEL
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.text import one_line
from torch_ref.layouts import numpy_dtype
from torch_ref.objectives import make_objective
from torch_ref.objectives.discrete import by_timestep
from torch_ref.sampling.guidance import accepting_x_0, always_guided, guided_predict, self_conditioned
from torch_ref.sampling.reverse import make_step, sampling_timesteps
from torch_ref.sampling.samplers import opened
from torch_ref.sampling.solvers import make_solver
from torch_ref.sampling.steps import initial_history
from torch_ref.schedules import Tables, schedule_tables

OUTPUTS = ("x_next", "prediction", "x_0", "lambda_t")
INPUTS_OF_OUTPUTS = {"x_0": "x_0_before", "lambda_t": "lambda_before"}  # outputs that the next step takes
BATCH = 2  # of the example inputs: torch.export takes sizes of 0 and 1 for constants


def export_step(
    model,
    path: str | os.PathLike,
    *,
    sampler: SamplerConfig | str | None = None,
    guide=None,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    **settings: Unpack[SamplingSettings],
) -> Path:
    """Write one step of a sampler, with the network and its weights, as a .onnx or .pt2 file.

    The step takes the inputs of `Step.forward`, for batches of any size, and returns its outputs. The file's metadata
    (`settings` of .onnx, the extra file settings.json of .pt2) hold what the loop around it needs: `file_settings`.

    Args:
        model: what `load_model` returns or takes, such as the path of a run.
        path: a file name that ends in .onnx (needs onnx and onnxscript) or in .pt2.
        sampler, guide, config, dtype, settings: as in `sample`. The setting guidance is an input of the step instead.

    Returns:
        The path.

    Raises:
        UserError: settings or a guide that do not fit, or operations that PyTorch cannot export.
    """
    path, model, guide = check_export_path(path, STEP_SUFFIXES), opened(model), opened(guide)
    require(hasattr(model, "info"), "model", type(model).__name__, EXPECTED_MODEL)
    require(guide is None or hasattr(guide, "info"), "guide", type(guide).__name__, EXPECTED_GUIDE)
    sampler, config = sampling_settings(sampler, config or model.info.diffusion, settings)
    config.check()
    check_sampler(sampler, config)
    guide_info = None if guide is None else guide.info
    check_export(model.info, sampler, guide_info)
    step = Step(model, config, sampler, dtype, guide).eval()
    inputs = example_inputs(model.info, config, sampler, dtype, guide_info)
    sizes = {0: torch.export.Dim("batch")}
    shapes = {name: sizes if value.ndim else None for name, value in inputs.items()}
    about = json.dumps(file_settings(model.info, config, sampler, guide_info))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about PyTorch's own code
            program = torch.export.export(step, (), kwargs=inputs, dynamic_shapes=shapes)
            content = as_onnx(program, about) if path.suffix == ".onnx" else as_pt2(program, about)
    except ModuleNotFoundError as error:
        raise UserError(f"A .onnx needs the package {error.name}: pip install 'jax-ddpm[onnx]'.") from None
    except Exception as error:
        is_unsupported = type(error).__module__.startswith("torch.onnx")
        if not (is_unsupported or uses_own_code(model.info, config, sampler, guide_info)):
            raise
        raise UserError(
            f"This step cannot be exported to {path.suffix} ({one_line(error)}).\n"
            "Export the sampler as .stablehlo, or choose settings without this operation."
        ) from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


class Step(nn.Module):
    """One step of a sampler: from x_t to the state at the next lower timestep."""

    def __init__(
        self,
        network: nn.Module,
        config: DiffusionConfig,
        sampler: SamplerConfig,
        dtype,
        guide: nn.Module | None = None,
    ):
        super().__init__()
        self.guide = guide
        self.network, self.config, self.sampler, self.dtype = network, config, sampler, dtype
        self.null_index = network.info.network.null_index
        self.chain = sampling_timesteps(config, sampler)
        if not config.is_continuous:
            tables = vars(schedule_tables(config, numpy_dtype(dtype), self.chain))
            self.tables = Tables(**{name: torch.from_numpy(table) for name, table in tables.items()})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        x_0_before: Tensor | None = None,
        lambda_before: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The next state, and what it was computed from.

        Args:
            x: states (B, C, H, W), in the values of `data_range`.
            t: int64 (), a timestep of the file's settings.
            noise: standard normal, like x. Only of samplers that draw noise.
            labels: int64 (B,), or floats (B, D). Only of models with classes.
            guidance: the weight, float (). Only of models with a null label, which are then called for both, or with a
                guide.
            x_0_before: the output x_0 of the step before; for the first step zeros like x. Only of dpmpp, and of models
                with self-conditioning.
            lambda_before: the output lambda_t of the step before; for the first step -inf, (B, 1, 1, 1). Only of dpmpp.

        Returns:
            "x_next": the next state, "prediction": that of the network, both (B, C, H, W), and with x_0_before "x_0",
            with lambda_before "lambda_t". A network that predicts a variance gives 2 C channels.
        """
        predict, ts = self.predict_function(labels, guidance), t.expand(x.shape[0])
        self_condition = self_conditioned(self.network, self.guide)
        if self.config.is_continuous:
            objective = make_objective(self.config, self.dtype)
            step, predict = make_solver(objective, self.sampler, predict, self_condition)
            number = t
        else:
            step = make_step(self.tables, self.config, self.sampler, self.chain, predict, self_condition)
            number = ts
        prediction = predict(x, ts, x_self_cond=x_0_before) if self_condition else predict(x, ts)
        if x_0_before is None:
            return {"x_next": step(x, prediction, number, noise), "prediction": prediction}
        history = (x_0_before,) if lambda_before is None else (x_0_before, lambda_before)
        x, history = step(x, prediction, number, noise, history)
        return {"x_next": x, "prediction": prediction, **dict(zip(INPUTS_OF_OUTPUTS, history, strict=False))}

    def predict_function(self, labels: Tensor | None, guidance: Tensor | None) -> Callable:
        """`guided_predict` with a weight that is known when the step runs."""
        if guidance is None:
            return guided_predict(self.network, self.config, self.sampler, Labels(labels))
        network = by_timestep(accepting_x_0(self.network), self.config)
        sampler = replace(self.sampler, guidance=guidance)
        if self.guide is None:
            null = torch.full_like(labels, self.null_index)
            return always_guided(network, sampler, Labels(labels, null), None)
        of_guide = labels if self.guide.info.network.takes_labels else None
        guide = by_timestep(accepting_x_0(self.guide), self.config)
        return always_guided(network, sampler, Labels(labels, of_guide=of_guide), guide)


def example_inputs(
    info: ModelInfo, config: DiffusionConfig, sampler: SamplerConfig, dtype, guide: ModelInfo | None = None
) -> dict[str, Tensor]:
    """Inputs of `Step.forward`, for two images."""
    height, width, channels = info.image_shape
    x, network = torch.zeros(BATCH, channels, height, width, dtype=dtype), info.network
    inputs = {"x": x, "t": torch.tensor(int(sampling_timesteps(config, sampler)[0]))}
    if not (config.is_continuous or sampler.is_deterministic):
        inputs["noise"] = x.clone()
    if network.takes_labels:
        vectors = network.label_width is not None
        inputs["labels"] = torch.zeros(BATCH, network.label_width) if vectors else torch.zeros(BATCH).long()
    if takes_weight(info, guide):
        inputs["guidance"] = torch.tensor(1.0, dtype=dtype)
    takes_x_0 = any(getattr(each.network, "self_condition", False) for each in (info, guide) if each is not None)
    history = initial_history(x, sampler, takes_x_0) or ()
    inputs |= {name: value.clone() for name, value in zip(INPUTS_OF_OUTPUTS.values(), history, strict=False)}
    return inputs


def file_settings(
    info: ModelInfo, config: DiffusionConfig, sampler: SamplerConfig, guide: ModelInfo | None = None
) -> dict[str, Any]:
    """What a loop around the step needs, for JSON.

    inputs: names of what the step takes. image_shape: (H, W, C). timesteps: the inputs t, in their order. first_noise:
    T, the number at which the noise of x_T is drawn. sigma: its factor. data_range: the values of black and white.
    class_names, or null. no_label: the label that stands for none, or null.
    """
    return {
        "inputs": list(example_inputs(info, config, sampler, torch.float32, guide)),
        "image_shape": info.image_shape,
        "timesteps": sampling_timesteps(config, sampler).tolist(),
        "first_noise": config.timesteps,
        "sigma": float(config.initial_sigma) if config.is_continuous else 1.0,
        "data_range": config.data_range,
        "class_names": info.class_names,
        "no_label": null_label(info, guide),
    }


def as_onnx(program: torch.export.ExportedProgram, about: str) -> bytes:
    """The content of a .onnx file. Inputs and outputs have the names of `Step.forward`."""
    inputs = program.graph_signature.user_inputs
    names = [name for name in OUTPUTS if INPUTS_OF_OUTPUTS.get(name, "x") in inputs]
    exported = torch.onnx.export(program, output_names=names, dynamo=True, verbose=False)
    exported.model.metadata_props["settings"] = about
    return exported.model_proto.SerializeToString()


def as_pt2(program: torch.export.ExportedProgram, about: str) -> bytes:
    """The content of a .pt2 file."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"settings.json": about})
    return file.getvalue()
