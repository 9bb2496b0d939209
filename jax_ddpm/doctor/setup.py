"""What can make two right networks differ: mode, dropout, dtypes, precision, device."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

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
    """Whether it changes what the networks compute here. The others change rounding, or speed, elsewhere."""


def setup_differences(
    torch_module, our_dtypes: set[str], their_calls: Sequence[Call], our_calls: Sequence[Call]
) -> list[SetupDifference]:
    """Each difference between how the two networks are set up."""
    return [
        *mode(their_calls, our_calls),
        *dtypes(torch_module, our_dtypes, their_calls, our_calls),
        *precision(torch_module),
    ]


def mode(their_calls: Sequence[Call], our_calls: Sequence[Call]) -> list[SetupDifference]:
    found = []
    dropout = [[call for call in calls if drops(call)] for calls in (their_calls, our_calls)]
    if any(dropout):
        texts = ["on in " + dropout_names(calls) if calls else "off" for calls in dropout]
        both = (
            "on in both networks, and draws other masks"
            if all(dropout)
            else f"{texts[0]} of theirs, {texts[1]} in ours"
        )
        if not dropout[0]:
            both = f"off in theirs, {texts[1]} of ours"
        sentence = f"Dropout is {both}. Compare in evaluation mode: theirs.eval(), ours.eval() or deterministic=True."
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
    names = list(dict.fromkeys(call.path for call in calls))
    return names[0] if len(names) == 1 else f"{len(names)} layers ({names[0]}, ...)"


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


def dtypes(torch_module, our_dtypes: set[str], their_calls, our_calls) -> list[SetupDifference]:
    import torch

    theirs = {str(p.dtype).removeprefix("torch.") for p in torch_module.parameters() if p.is_floating_point()}
    found = []
    if theirs and our_dtypes and theirs != our_dtypes:
        texts = ", ".join(sorted(theirs)), ", ".join(sorted(our_dtypes))
        sentence = f"The parameters are {texts[0]} in theirs and {texts[1]} in ours. The doctor compares in float64."
        found.append(SetupDifference("dtype", *texts, sentence, False))
    pinned = {call.settings.get("dtype") for call in our_calls} & {"bfloat16", "float16"}
    low = "bfloat16 or float16" if torch.is_autocast_enabled("cpu") else "the parameters' dtype"
    if pinned and low.startswith("the"):
        first = next(call for call in our_calls if call.settings.get("dtype") in pinned)
        text = ", ".join(sorted(pinned))
        sentence = f"Layers of ours compute in {text} (dtype of {first.path or 'the network'}), theirs in {low}."
        found.append(SetupDifference("dtype", low, text, sentence, True))
    return found


def precision(torch_module) -> list[SetupDifference]:
    """TF32 and the like, which matter on accelerators, float64 and the device."""
    import torch

    found = []
    device = next((parameter.device.type for parameter in torch_module.parameters()), "cpu")
    backend = jax.default_backend()
    texts = device.replace("cuda", "gpu"), backend
    if texts[0] != texts[1]:
        sentence = (
            f"Theirs is on the {texts[0].upper()}, JAX uses the {backend.upper()}. The doctor compares in float64."
        )
        found.append(SetupDifference("device", *texts, sentence, False))
    tf32 = device == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    highest = jax.config.jax_default_matmul_precision in ("highest", "float32")
    theirs, ours = "TF32" if tf32 else "float32", "float32" if highest or backend == "cpu" else "lower than float32"
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


def hidden_differences(pairs: Sequence[Pair]) -> list[SetupDifference]:
    """Settings of paired modules that no output shows, such as BatchNorm's momentum."""
    found = []
    for pair in pairs:
        for cause in hidden_causes(pair):
            found.append(SetupDifference(cause.name, pair.theirs.name, pair.ours.name, cause.sentence, True))
    return found
