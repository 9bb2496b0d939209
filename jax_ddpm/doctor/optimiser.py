"""Somebody's PyTorch optimiser beside an optax transformation: three steps in float64, and why they differ."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_ddpm.doctor.call_step import framework_of, to_numpy
from jax_ddpm.doctor.diffusion import Comparison
from jax_ddpm.doctor.optimiser_rules import FOUND, Rule, difference, explain, explain_ema, simulate
from jax_ddpm.spec.errors import UserError

STEPS = 3
TOLERANCE = 1e-8
"""Of each step, relative: float64 leaves 1e-12, and torch's 1e-6 in the norm of clipped gradients 1e-7."""


def compare_optimizer(
    theirs: Callable[[list], Any], ours: Any, *, clip: Callable[[list], Any] | None = None, steps: int = STEPS
) -> Comparison:
    """Compare `steps` steps of two optimisers from the same parameters and gradients, in float64.

    The gradients reach from 1e-8, where epsilon shows, to 10, where clipping does.

    Args:
        theirs: a function of a list of `torch.nn.Parameter` that makes a `torch.optim.Optimizer`.
        ours: an optax transformation whose updates are added to the parameters, a function of nothing that makes one,
            or a function (parameters, gradients, state or None) -> (new parameters, state).
        clip: what theirs does to the gradients before a step: a function of the list of parameters, such as
            `lambda p: torch.nn.utils.clip_grad_norm_(p, 1.0)`.
        steps: number of steps, at least 2 to see decay rates.

    Raises:
        UserError: one of them cannot be called so, or fails.
    """
    parameters, gradients = probes(steps)
    their_path, rule = torch_path(theirs, clip, parameters, gradients)
    our_path = optax_path(ours, parameters, gradients)
    start = np.concatenate([p.ravel() for p in parameters])
    error = float(np.abs(difference(our_path, their_path, start)).max())
    if error <= TOLERANCE:
        return Comparison("optimizer", True, f"The optimisers agree after {steps} steps: {error:.1e}.", error)
    if rule is None:
        return unknown(f"Their optimiser is a {type_name(theirs, parameters)}, whose rule is not known.", error)
    remade = simulate(rule, parameters, gradients)
    if np.abs(difference(remade, their_path, start)).max() > FOUND:
        return unknown("Their optimiser does not follow the usual rule of its class.", error)
    causes = explain(rule, our_path, parameters, gradients)
    if not causes:
        return unknown("No known cause explains it.", error)
    return Comparison("optimizer", False, " ".join(cause.sentence for cause in causes), error, causes)


def unknown(sentence: str, error: float) -> Comparison:
    return Comparison("optimizer", False, f"The optimisers differ by {error:.1e}. {sentence}", error)


def probes(steps: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters, and gradients for each step: two arrays of 12 numbers each."""
    g = np.random.default_rng(0)
    parameters = [g.standard_normal((3, 4)), g.standard_normal(12)]
    scales = [np.logspace(-8, 1, 12).reshape(3, 4), np.logspace(1, -7, 12)]
    gradients = [[g.standard_normal(s.shape) * s for s in scales] for _ in range(steps)]
    return parameters, gradients


def torch_path(theirs, clip, parameters, gradients) -> tuple[np.ndarray, Rule | None]:
    """The parameters after each step, (steps, N), and the rule that their settings say."""
    import torch

    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in parameters]
    try:
        optimizer = theirs(tensors)
    except Exception as error:
        raise UserError(
            f"Their optimiser cannot be made: {type(error).__name__}: {error}\n"
            "Expected a function of a list of parameters that returns a torch.optim.Optimizer."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"Their function returned a {type(optimizer).__name__}.\nExpected a torch.optim.Optimizer of its argument."
        )
    rule, path = rule_of(optimizer, clip, tensors), []
    for gradient in gradients:
        for tensor, value in zip(tensors, gradient, strict=True):
            tensor.grad = torch.from_numpy(value.copy())
        clipped(clip, tensors)
        optimizer.step()
        path.append(np.concatenate([t.detach().numpy().ravel() for t in tensors]))
    return np.stack(path), rule


def clipped(clip, tensors) -> None:
    """Call their function on the gradients, if there is one."""
    if clip is None:
        return
    try:
        clip(tensors)
    except Exception as error:
        raise UserError(
            f"What theirs does to the gradients failed: {type(error).__name__}: {error}\n"
            "Expected a function of the list of parameters, which changes their .grad."
        ) from error


def rule_of(optimizer, clip, tensors) -> Rule | None:
    """Their rule from the optimiser's class and settings, or None for a class that is not known."""
    settings, kind = optimizer.param_groups[0], type(optimizer).__name__
    clip_kind, limit = clipping_of(clip, tensors)
    common = {"rate": float(settings["lr"]), "decay": settings.get("weight_decay", 0.0)}
    common |= {"clip": clip_kind, "limit": limit}
    if kind in ("Adam", "AdamW"):
        b1, b2 = settings["betas"]
        decoupled = kind == "AdamW" or settings.get("decoupled_weight_decay", False)
        amsgrad = "raw" if settings.get("amsgrad") else "none"
        return Rule(b1=b1, b2=b2, epsilon=settings["eps"], decoupled=decoupled, amsgrad=amsgrad, **common)
    if kind == "SGD":
        damped = 1 - settings["dampening"]
        return Rule(kind="sgd", b1=settings["momentum"], nesterov=settings["nesterov"], damped=damped, **common)
    return None


def clipping_of(clip, tensors) -> tuple[str, float]:
    """How a function changes gradients: ("none" | "value" | "norm_torch" | "norm", limit)."""
    if clip is None:
        return "none", 0.0
    import torch

    made = []
    for size in (1e6, 2e6):
        for tensor in tensors:
            tensor.grad = torch.full_like(tensor, size)
        clipped(clip, tensors)
        made.append(np.concatenate([t.grad.numpy().ravel() for t in tensors]))
    if not np.allclose(made[0], made[1], rtol=1e-6):
        return "none", 0.0
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 0.0)
    tensors[0].grad.view(-1)[0] = 1e6
    clipped(clip, tensors)
    single = float(tensors[0].grad.view(-1)[0])
    if np.isclose(single, made[0][0], rtol=1e-6):
        return "value", single
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    norm = 2 * single
    tensors[0].grad.view(-1)[0] = norm
    clipped(clip, tensors)
    got, rounded = float(tensors[0].grad.view(-1)[0]), round(single, 9)
    adds = abs(got - norm * rounded / (norm + 1e-6)) < abs(got - rounded)
    return ("norm_torch" if adds else "norm"), rounded


def optax_path(ours, parameters, gradients) -> np.ndarray:
    """The parameters after each step, (steps, N)."""
    import jax
    import jax.numpy as jnp
    import optax

    with jax.enable_x64(True):
        values = [jnp.asarray(p) for p in parameters]
        state, path = None, []
        try:
            ours = made(ours)
            state = ours.init(values) if hasattr(ours, "init") else None
            for gradient in gradients:
                gradient = [jnp.asarray(g) for g in gradient]
                if hasattr(ours, "update"):
                    updates, state = ours.update(gradient, state, values, **extra_arguments(ours.update))
                    values = optax.apply_updates(values, updates)
                else:
                    values, state = ours(values, gradient, state)
                path.append(np.concatenate([np.asarray(v, np.float64).ravel() for v in values]))
        except Exception as error:
            raise UserError(
                f"Our optimiser failed: {type(error).__name__}: {error}\n"
                "Expected an optax transformation, a function of nothing that makes one, or a function "
                "(parameters, gradients, state) -> (parameters, state)."
            ) from error
    return np.stack(path)


def made(ours):
    """An optax transformation or a function of three arguments as it is; what a function of nothing returns."""
    if hasattr(ours, "init") or required_parameters(ours):
        return ours
    return ours()


def required_parameters(function: Callable) -> list[str]:
    """The names of the parameters without a default."""
    kinds = inspect.Parameter
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]


def extra_arguments(update: Callable) -> dict[str, Any]:
    """What jax_ddpm's own transformations need besides."""
    try:
        return {"finite": True} if "finite" in inspect.signature(update).parameters else {}
    except (TypeError, ValueError):
        return {}


def type_name(theirs, parameters) -> str:
    import torch

    return type(theirs([torch.nn.Parameter(torch.from_numpy(p.copy())) for p in parameters])).__name__


def compare_ema(
    theirs: Callable,
    ours: Callable,
    *,
    decay: float | None = None,
    at: tuple[int, ...] = (0, 1, 2, 10, 100, 5000, 10**6),
) -> Comparison:
    """Compare two rules of an exponential moving average of parameters.

    Args:
        theirs, ours: functions (average, parameters, step) -> new average of NumPy arrays; a function that changes
            tensors in place may return None. step 0 is the first.
        decay: given to functions that have a parameter of this name.
        at: the steps at which they are compared.

    Raises:
        UserError: one of them cannot be called so, or fails.
    """
    rates = [
        np.array([ema_rate(function, step, decay, whose) for step in at])
        for function, whose in ((theirs, "Their"), (ours, "Our"))
    ]
    their_rates, our_rates = rates
    error = float(np.abs(their_rates - our_rates).max())
    if error <= 1e-9:
        return Comparison("EMA", True, f"The averages agree at steps {', '.join(map(str, at))}: {error:.1e}.", error)
    causes = explain_ema(their_rates, our_rates, np.array(at), lambda step: ema_rate(theirs, step, decay, "Their"))
    rows = [f"step {s}: theirs keeps {a:.6g}, ours {b:.6g}" for s, a, b in zip(at, *rates, strict=True)]
    sentence = (
        " ".join(c.sentence for c in causes) or f"The averages differ by {error:.1e}. No known cause explains it."
    )
    return Comparison("EMA", False, sentence, error, causes, () if causes else rows)


def ema_rate(function: Callable, step: int, decay: float | None, whose: str) -> float:
    """The factor of the old average in the new one."""
    average, parameters = np.array([1.0, 1.0]), np.array([0.0, 0.0])
    try:
        extra = {"decay": decay} if "decay" in inspect.signature(function).parameters and decay is not None else {}
        if framework_of(function) == "torch":
            import torch

            average, parameters = torch.from_numpy(average), torch.from_numpy(parameters)
            result = function(average, parameters, step, **extra)
        else:
            import jax

            with jax.enable_x64(True):
                result = function(average, parameters, step, **extra)
        return float(to_numpy(average if result is None else result)[0])
    except Exception as error:
        raise UserError(
            f"{whose} average failed at step {step}: {type(error).__name__}: {error}\n"
            "Expected a function (average, parameters, step) -> new average."
        ) from error
