"""A check that needs no data: given pure noise at t = T - 1, a network that predicts the noise returns it.

At that timestep nothing is left of the image, so the noise is all that x_t consists of. The mean of (eps(x, t) - x)^2
falls with t up to the T of the training. At larger t, which the network never saw, it rises again. Networks that
predict the image or v return something else: for them it is about 1 or more.

The check sees T, and whether the network predicts the noise. It does not see the range of the images, the betas between
t = 0 and T - 1, whether t counts from 0 or 1, or a layer that is computed slightly differently, such as another
activation: such a network still returns pure noise, but its samples may be wrong.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jax_ddpm.spec.model_info import ModelInfo

SECONDS = 10.0  # for the whole check
NUM_VALUES = 8192  # of the noise, in all images; the mean square error is then known to about 2%
MAX_IMAGES = 32
# T that networks are trained with; the first ones are measured first, if the time does not suffice for all.
CANDIDATES = (1000, 500, 200, 300, 100, 400, 2000, 600, 800, 4000, 50, 250, 1500, 700, 900, 150, 1200, 3000)
OTHER = 0.1  # a network whose smallest error is larger does not predict the noise; measured below 0.01, for v from 0.4
BETTER = 0.5  # another T is proposed if its error is at most this share of the error at the assumed T

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The network itself: (x float32 (N, H, W, C), its time (N,)) -> prediction (N, H, W, C or more)."""


@dataclass(frozen=True)
class NoiseCheck:
    """Mean square errors of the predicted noise, by the T at whose last timestep they were measured."""

    errors: dict[int, float]
    num_images: int

    @property
    def best(self) -> int:
        """The T with the smallest error."""
        return min(self.errors, key=self.errors.get)


def can_be_checked(info: ModelInfo) -> bool:
    """Whether the check applies to this model: its objective is eps, x0 or v, and its labels, if any, are classes."""
    labels_fit = not info.network.takes_labels or info.network.label_count is not None
    return info.diffusion.objective in ("eps", "x0", "v") and labels_fit


def noise_images(info: ModelInfo) -> np.ndarray:
    """Standard normal noise, float32 (N, H, W, C): fewer images if they are large."""
    count = -(-NUM_VALUES // int(np.prod(info.image_shape)))
    return np.random.default_rng(0).standard_normal((min(count, MAX_IMAGES), *info.image_shape), np.float32)


def candidates(info: ModelInfo) -> list[int]:
    """The T to measure, from the model's own. It is the only one if the network gets a fraction of T, or ignores t."""
    own, t_input = info.diffusion.timesteps, info.diffusion.t_input
    if t_input not in ("index", "from_one") or not info.network.uses_time:
        return [own]
    rows = getattr(info.network, "table_rows", max(CANDIDATES) + 1)
    largest = rows - (t_input == "from_one")
    return [own, *(T for T in CANDIDATES if own != T and largest >= T)]


def last_time(info: ModelInfo, T: int) -> float | int:
    """What the network receives for the last of T timesteps."""
    return {"index": T - 1, "from_one": T, "fraction": (T - 1) / T, "fraction_from_one": 1.0}[info.diffusion.t_input]


def measure(predict: Predict, info: ModelInfo, seconds: float = SECONDS) -> NoiseCheck:
    """Measure the errors at as many T as the time allows, the model's own first."""
    x, start = noise_images(info), time.perf_counter()

    def error(T: int) -> float:
        time_of_network = last_time(info, T)
        dtype = np.float32 if isinstance(time_of_network, float) else np.int32
        y = predict(x, np.full(len(x), time_of_network, dtype))[..., : x.shape[-1]]
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(np.mean(np.square(y.astype(np.float64) - x)))
        return value if np.isfinite(value) else np.inf

    errors, longest = {}, 0.0
    for T in candidates(info):
        before = time.perf_counter()
        if errors and before + longest - start > seconds:
            break
        errors[T] = error(T)
        longest = time.perf_counter() - before
    return NoiseCheck(errors, len(x))


def describe(check: NoiseCheck, info: ModelInfo) -> str:
    """A sentence: what the network returned, and what follows for T or the objective."""
    objective, own = info.diffusion.objective, info.diffusion.timesteps
    best, own_error, least = check.best, check.errors[own], check.errors[check.best]
    if objective != "eps":
        if least > OTHER:
            return (
                f"Check: given pure noise, the network returns something else, as one does that predicts {objective}."
            )
        return (
            f"Check: given pure noise at t = {best - 1}, the network returns it (mean square error {least:.2g}): "
            f"it looks as if it predicts the noise; assumed {objective}: --objective eps."
        )
    if least > OTHER:
        return (
            f"Check: given pure noise, the network returns something else (mean square error {least:.2g}; one that "
            f"predicts the noise has less than {OTHER:g}): it may predict the image or v (--objective x0, "
            "--objective v), have other settings, or not be trained."
        )
    if best != own and least <= BETTER * own_error:
        return (
            f"Check: the network returns pure noise best at t = {best - 1} (mean square error {least:.2g}; "
            f"{own_error:.2g} at t = {own - 1}): it looks trained with T = {best}; assumed {own}: --timesteps {best}."
        )
    if not info.network.uses_time:
        return (
            f"Check: given pure noise, the network returns it (mean square error {own_error:.2g}), as one does that "
            "predicts the noise. It does not use t, so the check does not see T."
        )
    return (
        f"Check: given pure noise at t = {own - 1}, the network returns it (mean square error {own_error:.2g}), as one "
        f"does that predicts the noise and was trained with T = {own}."
    )
