"""The values that settings may have, and the type of a state dict."""

from typing import Literal

import numpy as np

Schedule = Literal["linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas", "trained"]
Objective = Literal["eps", "x0", "v", "edm", "flow"]
Variance = Literal["beta", "posterior", "learned_range"]
Clip = Literal["x0", "dynamic", "state", "none"]
TimeInput = Literal["index", "from_one", "fraction", "fraction_from_one"]
Sampler = Literal["ddpm", "ddim", "dpmpp", "heun", "euler", "midpoint"]
LossKind = Literal["l2", "l1", "huber"]
FlowTime = Literal["logit_normal", "uniform"]
Spacing = Literal["linspace", "leading", "trailing", "logsnr"]
Activation = Literal["silu", "gelu", "mish", "relu"]
TimeActivation = Literal["silu", "leaky_relu"]
TimeScaleShift = Literal["default", "scale_shift"]
ClassEmbedType = Literal["timestep", "identity"]
Weights = Literal["ema", "raw"]
Precision = Literal["float32", "tf32", "bfloat16", "float64"]
Tracker = Literal["tensorboard", "wandb", "trackio", "none"]

TF32_ON_CPUS = "Precision tf32: CPUs compute it as float32."

StateDict = dict[str, np.ndarray]
"""Parameters and buffers under their PyTorch names and in PyTorch's layouts."""
