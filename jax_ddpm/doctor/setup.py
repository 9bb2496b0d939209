"""What can make two right networks differ: mode, dropout, dtypes, precision, device."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jax_ddpm.doctor.causes import hidden_causes
from jax_ddpm.doctor.records import Call, Pair


@dataclass
class SetupDifference:
    name: str
    """A short identifier: "mode", "dropout", "dtype", "precision", "x64", "device"."""
    theirs: str
    ours: str
    sentence: str
    decisive: bool
    """Whether it changes what the networks compute here. Others matter elsewhere: in float32, on a GPU, in training."""


def setup_differences(
    torch_module, our_parameters: Sequence[jax.Array], their_calls: Sequence[Call], our_calls: Sequence[Call]
) -> list[SetupDifference]:
    """Each difference between how the two networks are set up. our_parameters: those that are floats."""
    return [
        *mode(their_calls, our_calls),
        *dtypes(torch_module, our_parameters, our_calls),
        *precision(torch_module, our_parameters),
    ]


def mode(their_calls: Sequence[Call], our_calls: Sequence[Call]) -> list[SetupDifference]:
    found = []
    theirs, ours = (dropout_names(calls) for calls in (their_calls, our_calls))
    if theirs or ours:
        said = f"on in {theirs} of theirs, off in ours" if theirs else f"off in theirs, on in {ours} of ours"
        said = "on in both networks, and draws other masks" if theirs and ours else said
        sentence = f"Dropout is {said}. Compare in evaluation mode: theirs.eval(), ours.eval() or deterministic=True."
        texts = (f"on in {names}" if names else "off" for names in (theirs, ours))
        found.append(SetupDifference("dropout", *texts, sentence, True))
    norms = [[call for call in calls if normalises_batch(call) is not None] for calls in (their_calls, our_calls)]
    states = [{normalises_batch(call) for call in calls} for calls in norms]
    if all(states) and states[0] != states[1]:
        texts = ["the batch's statistics" if True in state else "the stored statistics" for state in states]
        sentence = (
            f"BatchNorm uses {texts[0]} in theirs ({norms[0][0].path}) and {texts[1]} in ours ({norms[1][0].path}). "
            "Put both into one mode: module.eval() in both frameworks, or use_running_average."
        )
        found.append(SetupDifference("mode", *texts, sentence, True))
    return found


def dropout_names(calls: Sequence[Call]) -> str:
    """The layers whose dropout is on, in words; empty if there are none."""
    names = list(dict.fromkeys(call.path for call in calls if drops(call)))
    return f"{len(names)} layers ({names[0]}, ...)" if len(names) > 1 else "".join(names)


def drops(call: Call) -> bool:
    """Whether a call is a dropout that is on."""
    if "dropout" not in call.kind.lower():
        return False
    if "training" in call.settings:
        return bool(call.settings["training"]) and call.settings.get("p", 0) > 0
    deterministic = call.keywords.get("deterministic", call.settings.get("deterministic"))
    return call.settings.get("rate", 0) > 0 and deterministic is False


def normalises_batch(call: Call) -> bool | None:
    """For a BatchNorm, whether it uses the statistics of the batch."""
    if "batchnorm" not in call.kind.lower():
        return None
    if "training" in call.settings:
        return bool(call.settings["training"]) or call.settings.get("track_running_stats") is False
    average = call.keywords.get("use_running_average", call.settings.get("use_running_average"))
    return not average


def dtypes(torch_module, our_parameters, our_calls) -> list[SetupDifference]:
    import torch

    our_dtypes = {parameter.dtype.name for parameter in our_parameters}
    theirs = {str(p.dtype).removeprefix("torch.") for p in torch_module.parameters() if p.is_floating_point()}
    found = []
    if theirs and our_dtypes and theirs != our_dtypes:
        texts = ", ".join(sorted(theirs)), ", ".join(sorted(our_dtypes))
        sentence = f"The parameters are {texts[0]} in theirs and {texts[1]} in ours. The doctor compares in float64."
        found.append(SetupDifference("dtype", *texts, sentence, False))
    low = {call.settings.get("dtype") for call in our_calls} & {"bfloat16", "float16"}
    if low and not torch.is_autocast_enabled("cpu"):
        first = next(call for call in our_calls if call.settings.get("dtype") in low)
        text = ", ".join(sorted(low))
        sentence = (
            f"Layers of ours compute in {text} (dtype of {first.path or 'the network'}), theirs in the dtype of the "
            "parameters."
        )
        found.append(SetupDifference("dtype", "that of the parameters", text, sentence, True))
    return found


def precision(torch_module, our_parameters) -> list[SetupDifference]:
    """Device, precision of products and float64: what makes the networks differ outside of the doctor."""
    import torch

    found = []
    device = next((parameter.device.type for parameter in torch_module.parameters()), "cpu")
    devices = {"cuda": "gpu"}.get(device, device), platform(our_parameters)
    if devices[0] != devices[1]:
        texts = [name.upper() for name in devices]
        sentence = f"Theirs is on the {texts[0]}, ours on the {texts[1]}. The doctor compares in float64 on the CPU."
        found.append(SetupDifference("device", *devices, sentence, False))
    highest = devices[1] == "cpu" or jax.config.jax_default_matmul_precision in ("highest", "float32")
    theirs = "TF32" if device == "cuda" and allows_tf32() else "float32"
    ours = "float32" if highest else "lower than float32"
    if (theirs == "float32") != (ours == "float32"):
        sentence = (
            f"float32 products are computed in {theirs} by PyTorch and in {ours} by JAX. "
            "See torch.backends.cuda.matmul.allow_tf32 and jax_default_matmul_precision."
        )
        found.append(SetupDifference("precision", theirs, ours, sentence, False))
    x64 = bool(jax.config.jax_enable_x64)
    double = any(parameter.dtype == torch.float64 for parameter in torch_module.parameters())
    if double and not x64:
        sentence = "Theirs has float64 parameters, but JAX computes in float32 unless jax_enable_x64 is set."
        found.append(SetupDifference("x64", "float64", "float32", sentence, False))
    return found


def platform(arrays: Sequence[jax.Array]) -> str:
    """Where arrays are, or where JAX would put them: "cpu", "gpu" or "tpu"."""
    held = next((array for array in arrays if isinstance(array, jax.Array)), jnp.zeros(()))
    return next(iter(held.devices())).platform


def allows_tf32() -> bool:
    """Whether PyTorch multiplies or convolves float32 in TF32 on GPUs."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        return matmul.allow_tf32 or cudnn.allow_tf32
    except RuntimeError:  # PyTorch refuses these names where its newer ones were set
        return "tf32" in (matmul.fp32_precision, cudnn.conv.fp32_precision)


def hidden_differences(pairs: Sequence[Pair]) -> list[SetupDifference]:
    """Settings of paired modules that no output shows, such as BatchNorm's momentum. They matter for training only."""
    found = []
    for pair in pairs:
        in_training = bool(pair.theirs.settings.get("training"))
        for cause in hidden_causes(pair):
            sentence = cause.sentence if in_training else f"{cause.sentence} It matters for training only."
            found.append(SetupDifference(cause.name, pair.theirs.name, pair.ours.name, sentence, in_training))
    return found
