"""Power-function averages of weights, and any other width from them (Karras et al. 2024, section 3 and appendix C).

Such an average of the weights theta(1), ..., theta(t) has the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)
over the training time tau in [0, t]. Its width is the standard deviation of this profile, divided by t.
"""

import numpy as np

from jax_ddpm.spec.errors import require

MAX_WIDTH = 12**-0.5  # of the plain mean over the whole training, gamma = 0
MAX_PROFILE_ERROR = 0.1  # of a combination that is accepted


def check_width(name: str, width: float) -> None:
    """Raise UserError unless the width is that of an average whose newest weights count most."""
    is_number = isinstance(width, int | float | np.floating) and not isinstance(width, bool)
    expected = "expected a number above 0 and below 0.288, such as 0.05"
    require(is_number and 0 < width < MAX_WIDTH, name, width, expected)


def gamma_of(width: float) -> float:
    """The exponent of an average: width = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2), solved for gamma.

    This is the largest root of gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + 12 - width^-2. width: in (0, MAX_WIDTH).
    """
    inverse = float(width) ** -2
    return float(max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def inner_products(steps: np.ndarray, gammas: np.ndarray, other_steps: np.ndarray, other_gammas: np.ndarray):
    """The integrals of p_i(tau) p_j(tau) over tau, float64 (N, M), for N profiles and M others.

    steps, gammas: (N,); other_steps, other_gammas: (M,). Each profile ends at its step, and is 0 after it.
    """
    s, g = (np.asarray(values, np.float64)[:, None] for values in (steps, gammas))
    t, h = (np.asarray(values, np.float64)[None, :] for values in (other_steps, other_gammas))
    shorter, longer = np.minimum(s, t), np.maximum(s, t)
    exponent = np.where(s < t, h, g)  # of the profile that ends later
    return (g + 1) * (h + 1) / (g + h + 1) * (shorter / longer) ** exponent / longer


def coefficients(steps: np.ndarray, gammas: np.ndarray, step: int, gamma: float) -> np.ndarray:
    """The numbers c, float64 (N,), with sum 1, for which sum_i c_i p_i is nearest to the profile of `step` and `gamma`.

    Least squares over tau. The condition on the sum, by a Lagrange multiplier, is not in the paper. It makes the
    combination exact for weights that do not change.

    Args:
        steps: (N,), the steps at which the averages were stored.
        gammas: (N,), their exponents.
        step: the step of the average that is wanted, not after the last of `steps`.
        gamma: its exponent.
    """
    gram = inner_products(steps, gammas, steps, gammas)
    wanted = inner_products(steps, gammas, [step], [gamma])[:, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # profiles of norm 1
    system = np.block([[gram * np.outer(scale, scale), scale[:, None]], [scale[None, :], np.zeros((1, 1))]])
    return scale * np.linalg.solve(system, np.append(wanted * scale, 1.0))[:-1]


def profile_error(steps: np.ndarray, gammas: np.ndarray, step: int, gamma: float) -> float:
    """The norm of the difference between the best combination's profile and the wanted one, divided by its norm."""
    c = coefficients(steps, gammas, step, gamma)
    gram = inner_products(steps, gammas, steps, gammas)
    wanted = inner_products(steps, gammas, [step], [gamma])[:, 0]
    norm = inner_products([step], [gamma], [step], [gamma])[0, 0]
    return float(np.sqrt(max(0.0, 1 + (c @ gram @ c - 2 * c @ wanted) / norm)))


def reachable_widths(steps: np.ndarray, gammas: np.ndarray, step: int) -> tuple[float, float] | None:
    """The smallest and the largest width with a `profile_error` up to MAX_PROFILE_ERROR, or None. Searches 100 widths.

    Args: as in `coefficients`.
    """
    widths = np.geomspace(0.002, 0.999 * MAX_WIDTH, 100)
    reached = [w for w in widths if profile_error(steps, gammas, step, gamma_of(w)) <= MAX_PROFILE_ERROR]
    return (float(min(reached)), float(max(reached))) if reached else None
