"""Diffusion settings that a file without metadata tells by its arrays: T by a table of timesteps, betas by buffers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_ddpm.spec.errors import settings_text
from jax_ddpm.spec.file_content import FileContent
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.stored_array import Array, numbers

BETAS = ("betas", "beta")
ALPHA_BARS = ("alphas_cumprod", "alpha_cumprod", "alphas_bar", "alpha_bars", "alpha_bar", "alpha_hat")
OF_SCHEDULE = {"timesteps", "schedule", "beta_start", "beta_end", "trained_betas", "zero_terminal_snr"}
MAX_TIMESTEPS = 100_000
MAX_ROWS = MAX_TIMESTEPS + 1
TOLERANCE = 2e-6
"""Absolute, for betas that were stored in float32 or computed from cumulative products of float32."""


def told_by_arrays(
    network: NetworkConfig, content: FileContent, given: Mapping[str, Any], usual: int
) -> tuple[str, dict[str, Any]]:
    """A sentence, and the fields of `DiffusionConfig` that it explains; nothing in both if the arrays tell nothing.

    Betas in the file are believed first, then the rows of the network's table.

    Args:
        network: of the file.
        content: of the file.
        given: fields that the user gave. If they concern the schedule, they override the betas of the file.
        usual: T of the network's preset. A table with as many rows tells nothing: T may be smaller.
    """
    stored = stored_betas(content)
    if stored and all(np.array_equal(stored[0][1], betas) for _, betas in stored):
        name, betas = stored[0]
        told, own = schedule_of(betas), OF_SCHEDULE & set(given)
        shown = {key: value for key, value in told.items() if key != "trained_betas"}
        sentence = f'The array "{name}" in the file says: {settings_text(shown)}.'
        if not own:
            return sentence, told
        if any(given[key] != told.get(key, given[key]) for key in own):
            return f"{sentence} What you gave overrides it.", {}
        return "", {}
    rows = getattr(network, "table_rows", usual)
    if rows == usual or "timesteps" in given:
        return "", {}
    timesteps = rows - (given.get("t_input") == "from_one")
    return f"T = {timesteps}, as the network's table of timesteps has {rows} rows (--timesteps).", {
        "timesteps": timesteps
    }


def stored_betas(content: FileContent) -> list[tuple[str, np.ndarray]]:
    """Names of the arrays in a file that hold betas, or else their cumulative products; and the betas, float64 (T,)."""
    tables = [
        (name, array)
        for group in content.dictionaries
        for name, array in group.arrays.items()
        if array.ndim == 1 and 1 < array.shape[0] <= MAX_TIMESTEPS
    ]
    for names, to_betas in ((BETAS, lambda betas: betas), (ALPHA_BARS, betas_of_products)):
        values = [(name, numbers(array)) for name, array in tables if name.rpartition(".")[2] in names]
        found = [(name, to_betas(array)) for name, array in values if np.all((array > 0) & (array < 1))]
        found = [(name, betas) for name, betas in found if np.all((betas > 0) & (betas < 1))]
        if found:
            return found
    return [(name, betas) for group in content.dictionaries for name, betas in betas_from_t_0(group.arrays)]


def betas_from_t_0(arrays: Mapping[str, Array]) -> list[tuple[str, np.ndarray]]:
    """The betas of t = 1 to T from minDiffusion's tables, which start at t = 0: sqrt_beta_t (T + 1,) and others."""
    prefixes = [name.removesuffix("mab_over_sqrtmab") for name in arrays if name.endswith("mab_over_sqrtmab")]
    names = [f"{prefix}sqrt_beta_t" for prefix in prefixes]
    tables = [(name, arrays[name]) for name in names if name in arrays]
    roots = [(name, numbers(table)) for name, table in tables if table.ndim == 1 and 2 < table.shape[0] <= MAX_ROWS]
    return [(name, table[1:] ** 2) for name, table in roots if np.all((table > 0) & (table < 1))]


def betas_of_products(alpha_bars: np.ndarray) -> np.ndarray:
    """The betas whose cumulative products of 1 - beta these are."""
    return 1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]])


def schedule_of(betas: np.ndarray) -> dict[str, Any]:
    """The schedule with these betas: linear, scaled_linear, cosine or sigmoid if it is one of them, else trained."""
    count, settings = len(betas), {"timesteps": len(betas)}
    start, end = rounded(betas[0]), rounded(betas[-1])
    roots = np.linspace(np.sqrt(start), np.sqrt(end), count) ** 2
    for name, expected in (("linear", np.linspace(start, end, count)), ("scaled_linear", roots)):
        if start <= end and np.allclose(betas, expected, rtol=0, atol=TOLERANCE):
            return {**settings, "schedule": name, "beta_start": start, "beta_end": end}
    if np.allclose(betas, cosine_betas(count), rtol=1e-4, atol=TOLERANCE):
        return {**settings, "schedule": "cosine"}
    if np.allclose(betas, sigmoid_betas(count), rtol=1e-3, atol=TOLERANCE):
        return {**settings, "schedule": "sigmoid"}
    return {**settings, "schedule": "trained", "trained_betas": tuple(betas.tolist())}


def rounded(number: float) -> float:
    """The number with five significant digits, which a stored float32 has for certain."""
    return float(f"{number:.5g}")


def cosine_betas(timesteps: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, with s = 0.008 and betas of at most 0.999."""
    u = np.arange(timesteps + 1) / timesteps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def sigmoid_betas(timesteps: int) -> np.ndarray:
    """Jabri et al. 2022, section 2, with start -3, end 3, tau 1 and betas of at most 0.999."""
    u = np.arange(timesteps + 1) / timesteps
    gamma = 1 / (1 + np.exp(-3)) - 1 / (1 + np.exp(3 - 6 * u))
    return np.minimum(1 - np.maximum(gamma[1:], 0) / gamma[:-1], 0.999)
