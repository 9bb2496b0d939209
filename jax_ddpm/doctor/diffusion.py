"""Somebody's noise schedule and sampler step beside ours, and why they differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_ddpm.doctor.call_step import Step, to_numpy
from jax_ddpm.doctor.records import Cause
from jax_ddpm.doctor.schedule_causes import schedule_causes
from jax_ddpm.doctor.step_causes import explain_difference
from jax_ddpm.doctor.step_variants import (
    Probe,
    betas_of,
    distance,
    identify,
    make_probe,
    simulate,
    variant_of,
)
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError


@dataclass
class Comparison:
    """What was found about a noise schedule, a sampler step or an optimiser."""

    subject: str
    """What was compared: "schedule", "step", "optimizer" or "EMA"."""
    agrees: bool
    """Whether both compute the same up to rounding."""
    sentence: str
    error: float
    """The largest relative difference."""
    causes: Sequence[Cause] = ()
    """The differences that explain it, in the order of the computation. Empty if nothing explains it."""
    details: Sequence[str] = field(default_factory=tuple)
    """Lines with numbers, where no cause is known."""

    @property
    def cause(self) -> Cause | None:
        return self.causes[0] if self.causes else None

    def __str__(self) -> str:
        mends = [f"  Change: {cause.mend}" for cause in self.causes if cause.mend]
        return "\n".join([self.sentence, *mends, *(f"  {line}" for line in self.details)])


def compare_betas(theirs, config: DiffusionConfig | None = None, ours=None) -> Comparison:
    """Compare a noise schedule with ours.

    Args:
        theirs: T betas (array, tensor, list), or a function that makes them from T or from nothing.
        config: our settings. Default: `DiffusionConfig()`, or T betas of the same number if `ours` is given.
        ours: a schedule of the same kinds as `theirs`, compared instead of that of `config`.

    Raises:
        UserError: what is given is no list of numbers.
    """
    config = config or DiffusionConfig()
    their_values = schedule_values(theirs, config.timesteps, "their schedule")
    our_values = betas_of(config) if ours is None else schedule_values(ours, config.timesteps, "our schedule")
    given = None if ours is None else our_values.astype(np.float64)
    causes, error = schedule_causes(their_values, our_values.astype(np.float64), config, given)
    T = len(our_values)
    if not causes and error <= 1e-10:
        return Comparison(
            "schedule", True, f"The noise schedules agree: T = {T}, largest difference {error:.1e}.", error
        )
    if causes:
        only_rounding = all(cause.name == "dtype" for cause in causes)
        return Comparison("schedule", only_rounding, " ".join(c.sentence for c in causes), error, causes)
    n = min(len(their_values), T)
    difference = np.abs(their_values[:n] - our_values[:n])
    rows = [f"t = {t}: theirs {their_values[t]:.6g}, ours {our_values[t]:.6g}" for t in (0, n // 2, n - 1)]
    sentence = (
        f"The noise schedules differ by {error:.1e}, most at t = {difference.argmax()}. No known cause explains it."
    )
    return Comparison("schedule", False, sentence, error, (), rows)


def compare_step(
    theirs: Callable,
    config: DiffusionConfig | None = None,
    sampler: SamplerConfig | None = None,
    *,
    betas=None,
    ours: Callable | None = None,
) -> Comparison:
    """Compare one step of a sampler, x_t to x_{t-1}, with ours: the same x_t, network output and noise at several t.

    Args:
        theirs: a function in PyTorch, NumPy or JAX. Its parameters' names say what they are: the network (`model`) or
            its output (`model_output`, `eps`), `x`, `t`, and the `noise` if it is not drawn inside. The network is a
            stand-in that returns a fixed output. t is in [0, T): an integer, or a tensor (B,).
        config: our settings of the diffusion. Default: `DiffusionConfig()`.
        sampler: our sampler: ddpm, ddim, heun or euler, with eta and number of steps. Default: ddpm with T steps.
        betas: the schedule that both use, where it is not that of `config`: T betas, or a function that makes them.
        ours: a function like `theirs`, compared instead of the step of jax_ddpm.

    Raises:
        UserError: the function cannot be called so, or it fails.
    """
    config, sampler = config or DiffusionConfig(), sampler or SamplerConfig()
    if sampler.sampler == "dpmpp":
        raise UserError("A step of dpmpp needs the step before.\nExpected ddpm, ddim, heun or euler.")
    values = betas_of(config) if betas is None else schedule_values(betas, config.timesteps, "their schedule")
    if not ((values > 0) & (values <= 1)).all() or values.mean() > 0.5:
        raise UserError("Their betas are no variances of a diffusion.\nExpected T numbers in (0, 1], mostly small.")
    probe = make_probe(config, sampler, values.astype(np.float64))
    reference = variant_of(config, sampler)
    our_step = None if ours is None else Step(ours, "our step")
    expected = simulate(reference, probe) if our_step is None else run_step(our_step, probe)
    their_step = Step(theirs, "their step")
    got = run_step(their_step, probe)
    excess, error = distance(expected, got, probe)
    asked = asked_causes(their_step, our_step)
    if excess <= 1 and not asked:
        at = ", ".join(map(str, probe.t))
        return Comparison("step", True, f"The sampler steps agree at t = {at}: largest difference {error:.1e}.", error)
    if excess <= 1:
        return Comparison("step", False, " ".join(c.sentence for c in asked), error, asked)
    mine, _ = (reference, 0.0) if our_step is None else identify(expected, probe, reference)
    variant, residual = identify(got, probe, mine or reference)
    if variant is not None and mine is not None:
        causes = asked + explain_difference(variant, mine, residual, "ours" if ours is None else "our step")
        return Comparison("step", False, " ".join(c.sentence for c in causes), error, causes)
    rows = [coefficients(probe, number, got, expected) for number in range(len(probe.t))]
    sentence = f"The sampler steps differ by {error:.1e}. No known cause explains it."
    return Comparison("step", False, " ".join([*(c.sentence for c in asked), sentence]), error, asked, rows)


def run_step(step: Step, probe: Probe) -> np.ndarray:
    """States after the step at all t of the probe: (N, B, C, H, W)."""
    return np.stack(
        [
            step(int(t), x, output, noise)
            for t, x, output, noise in zip(probe.t, probe.x, probe.output, probe.noise, strict=True)
        ]
    )


def asked_causes(theirs: Step, ours: Step | None) -> list[Cause]:
    """The timestep that the network was given, where it is not t (or not what our step gives)."""
    said = describe_asked(theirs.asked)
    expected = "t" if ours is None else describe_asked(ours.asked)
    if said == expected or not theirs.asked or (ours is not None and not ours.asked):
        return []
    sentence = f"Their step calls the network at {said}; ours calls it at {expected}."
    return [Cause("network_t", sentence, f"Call the network at {expected}.", 0.0)]


def describe_asked(asked: Sequence[tuple[float, float]]) -> str:
    """The rule by which t became the network's argument, from its first call at each t."""
    first: dict[float, float] = {}
    for t, value in asked:
        first.setdefault(t, value)
    t, value = np.array(list(first)), np.array(list(first.values()))
    if not len(t) or np.array_equal(t, value):
        return "t"
    slope, offset = np.polyfit(t, value, 1) if len(t) > 1 else (1.0, value[0] - t[0])
    if not np.allclose(slope * t + offset, value, rtol=1e-5, atol=1e-6):
        return "other timesteps"
    times = "t" if np.isclose(slope, 1, rtol=1e-6) else f"{slope:.6g} t"
    return times if abs(offset) < 1e-5 else f"{times} {'+' if offset > 0 else '-'} {abs(offset):.6g}"


def coefficients(probe: Probe, number: int, *states: np.ndarray) -> str:
    """The least-squares factors of x_t, the output and the noise in x_{t-1}, theirs and ours, as a line."""
    channels = probe.x.shape[2]
    parts = [probe.x[number], probe.output[number][:, :channels], probe.noise[number]]
    columns = np.stack([part.ravel() for part in parts], axis=1)
    fits = [np.linalg.lstsq(columns, state[number].ravel(), rcond=None)[0] for state in states]
    text = [
        " + ".join(f"{c:.5g} {name}" for c, name in zip(fit, ("x", "output", "noise"), strict=True)) for fit in fits
    ]
    return f"t = {probe.t[number]}: theirs {text[0]}, ours {text[1]}"


def schedule_values(given, timesteps: int, what: str) -> np.ndarray:
    """The betas in an array, a tensor, a list, or what a function returns: (T,), in their own dtype."""
    if callable(given):
        import inspect

        required = [p for p in inspect.signature(given).parameters.values() if p.default is p.empty]
        required = [p for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(required) > 1:
            names = ", ".join(p.name for p in required)
            raise UserError(f"{what}: the function needs {names}.\nExpected a function of T, or of nothing.")
        given = given(timesteps) if required else given()
    try:
        values = to_numpy(given)
        values = values if values.dtype.kind == "f" else values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what} is a {type(given).__name__}.\nExpected T numbers: an array, tensor or list."
        ) from error
    if values.ndim != 1 or not len(values):
        raise UserError(f"{what} has the shape {values.shape}.\nExpected (T,): one beta per timestep.")
    return values
