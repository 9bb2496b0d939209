"""Schedules, objectives and samplers of the user's own, by name.

Their functions use arithmetic alone (+ - * / **), so that one function works on arrays of NumPy, JAX and PyTorch. Each
is tried on small arrays when it is registered.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args

import numpy as np

from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import Objective, Sampler, Schedule


class NoiseLevel(NamedTuple):
    """The factors in x_t = signal x_0 + sigma noise: sqrt(alpha_bar) and sqrt(1 - alpha_bar), as (B, 1, 1, 1)."""

    signal: Any
    sigma: Any


class OwnObjective(NamedTuple):
    """What the network should predict, and the x_0 that a prediction means, as in `register_objective`."""

    target: Callable
    predicted_x_0: Callable


class OwnSampler(NamedTuple):
    """A step of a sampler, as in `register_sampler`."""

    step: Callable
    takes_noise: bool


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {}
OBJECTIVES: dict[str, OwnObjective] = {}
SAMPLERS: dict[str, OwnSampler] = {}


class OneOf:
    """For pydantic: a text that is one of the choices of a `typing.Literal`, or a key of the table `own`."""

    def __init__(self, built_in, own: dict):
        self.built_in, self.own = built_in, own

    def __get_pydantic_core_schema__(self, source, handler):
        from pydantic_core import PydanticCustomError, core_schema

        def known(value: str) -> str:
            names = (*get_args(self.built_in), *self.own)
            if value not in names:
                expected = f"{', '.join(map(repr, names))}, or a name that is registered (--import FILE.py)"
                raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
            return value

        return core_schema.no_info_after_validator_function(known, core_schema.str_schema(strict=True))


ScheduleName = Annotated[Schedule | str, OneOf(Schedule, SCHEDULES)]
ObjectiveName = Annotated[Objective | str, OneOf(Objective, OBJECTIVES)]
SamplerName = Annotated[Sampler | str, OneOf(Sampler, SAMPLERS)]

REPLACED: list[Callable[[], None]] = []
"""Called when a name gets another function, since programs that were compiled with the old one are then wrong."""


def register_schedule(name: str, betas: Callable[[int], np.ndarray]) -> None:
    """Register a noise schedule of your own: from then on it is a value of `schedule`.

    Args:
        name: not that of a schedule of this package. Again, it replaces the function.
        betas: T -> the T betas, between 0 and 1; the last may be 1. `schedules.betas_from_alpha_bars` makes them from
            alpha_bars.

    Raises:
        UserError: a name that is taken, or a function that returns something else for T = 10.
    """
    check_name("schedule", name, Schedule)
    tried("schedule", name, lambda: own_betas(betas, name, 10))
    add(SCHEDULES, name, betas)


def register_objective(name: str, target: Callable, predicted_x_0: Callable) -> None:
    """Register an objective of your own at the T timesteps: from then on it is a value of `objective`.

    Args:
        name: not that of an objective of this package. Again, it replaces the functions.
        target: (x_0, noise, level) -> what the network should predict. Images (B, ...), and a `NoiseLevel`.
        predicted_x_0: (x_t, prediction, level) -> x_0, affine in the prediction. It must find x_0 again from x_t and
            the target.

    Raises:
        UserError: a name that is taken, or functions that do not belong together.
    """
    check_name("objective", name, Objective)
    level = NoiseLevel(*np.array([[0.8, 0.28], [0.6, 0.96]]).reshape(2, 2, 1, 1, 1))  # of two images
    x_0, noise, other = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 1))
    x_t = level.signal * x_0 + level.sigma * noise

    def of(prediction):
        return tried("objective", name, lambda: np.asarray(predicted_x_0(x_t, prediction, level)))

    wanted = tried("objective", name, lambda: np.asarray(target(x_0, noise, level)))
    found = of(wanted)
    error = np.abs(found - x_0).max() if found.shape == x_0.shape else f"shape {found.shape}"
    fits = found.shape == x_0.shape and error < 1e-6
    require(fits, f"error of predicted_x_0 in the objective {name}", error, "expected x_0 from x_t and the target")
    bend = np.abs(of((wanted + other) / 2) - (found + of(other)) / 2).max()
    expected = "expected 0, since it must be affine in the prediction"
    require(bend < 1e-6, f"curvature of predicted_x_0 in the objective {name}", bend, expected)
    add(OBJECTIVES, name, OwnObjective(target, predicted_x_0))


def register_sampler(name: str, step: Callable) -> None:
    """Register a sampler of your own for the objectives with T timesteps: from then on it is a value of `sampler`.

    Args:
        name: not that of a sampler of this package. Again, it replaces the function.
        step: (x_t, x_0, eps, now, below), and noise if it takes that -> the state at the next lower timestep of the
            sampler. x_0 is the predicted one, limited as `clip` says, and eps the noise that fits x_t and it.
            now and below are the `NoiseLevel` of each timestep; below the last one, signal = 1 and sigma = 0. noise
            is standard normal, drawn at the address of (seed, image, t).

    Raises:
        UserError: a name that is taken, or a function that returns something else than images.
    """
    check_name("sampler", name, Sampler)
    takes_noise = tried("sampler", name, lambda: "noise" in inspect.signature(step).parameters)
    images, one = np.ones((2, 4, 4, 1)), np.ones((2, 1, 1, 1))
    arguments = images, images, images, NoiseLevel(0.6 * one, 0.8 * one), NoiseLevel(one, 0 * one)
    x = tried("sampler", name, lambda: np.asarray(step(*arguments, **({"noise": images} if takes_noise else {}))))
    fits = x.shape == images.shape and np.isfinite(x).all()
    require(fits, f"result of the sampler {name} in its last step", x.shape, f"expected finite images {images.shape}")
    add(SAMPLERS, name, OwnSampler(step, takes_noise))


def own_betas(make: Callable[[int], np.ndarray], name: str, timesteps: int) -> np.ndarray:
    """The betas of a registered schedule: float64 (T,). Raises UserError if they are not betas."""
    betas = np.asarray(make(timesteps), np.float64)
    require(betas.shape == (timesteps,), f"shape of the schedule {name}", betas.shape, f"expected ({timesteps},)")
    inside = ((betas > 0) & (betas <= 1)).all() and (betas[:-1] < 1).all()
    expected = "expected numbers between 0 and 1, of which only the last may be 1"
    require(bool(inside), f"betas of the schedule {name}", f"{betas.min():g} to {betas.max():g}", expected)
    return betas


def code_of(schedule: str, objective: str, sampler: str) -> list[str]:
    """The source code of the registered functions among these; nothing for parts of this package."""
    parts = SCHEDULES.get(schedule), *OBJECTIVES.get(objective, ()), *SAMPLERS.get(sampler, ())[:1]
    found = []
    for function in filter(None, parts):
        try:
            found.append(inspect.getsource(function))
        except (OSError, TypeError):  # typed at a prompt, or not written in Python
            found.append(repr(function))
    return found


def check_name(kind: str, name: str, built_in) -> None:
    """Raise UserError unless `name` is a name for a new part."""
    fits = isinstance(name, str) and name.isidentifier()
    require(fits, f"name of the {kind}", repr(name), "expected letters, digits and underscores")
    if name in get_args(built_in):
        raise UserError(f"A {kind} '{name}' exists already: choose another name.")


def tried(kind: str, name: str, call: Callable) -> Any:
    """call(). An error in the user's function becomes a UserError."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The {kind} {name} failed on arrays of NumPy ({type(error).__name__}: {one_line(error, 200)}).\n"
            "Use arithmetic alone (+ - * / **) and the arguments that the documentation of register names."
        ) from None


def add(table: dict, name: str, value: Any) -> None:
    replaces = name in table and table[name] != value
    table[name] = value
    if replaces:
        for act in REPLACED:
            act()


def require_known(kind: str, value: str, built_in, own: dict) -> None:
    """Raise UserError unless `value` is a name of this package or a registered one."""
    known = (*get_args(built_in), *own)
    if value not in known:
        raise UserError(
            f"{kind} = {value}: expected one of {', '.join(known)}.\n"
            f"A {kind} of your own has a name once it is registered: --import FILE.py (in Python: import FILE)."
        )
