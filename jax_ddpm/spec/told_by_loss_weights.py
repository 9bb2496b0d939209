"""The objective that a file of denoising_diffusion_pytorch tells by its table of loss weights."""

import numpy as np

from jax_ddpm.spec.file_content import FileContent
from jax_ddpm.spec.stored_array import numbers

NAME = "loss_weight"
WEIGHTS = {  # by objective: the weight that amounts to SNR for the error of x_0, from alpha_bar (Hang et al. 2023)
    "eps": np.ones_like,
    "x0": lambda alpha_bars: alpha_bars / (1 - alpha_bars),
    "v": lambda alpha_bars: alpha_bars,
}


def told_by_loss_weights(content: FileContent) -> tuple[str, str] | None:
    """The name of the table in the file, and the objective; None without such a table, or where it fits no objective.

    Only timesteps with an SNR of at most 1 are compared: at larger ones, min-SNR limits the weights.
    """
    for group in content.dictionaries:
        for name, array in group.arrays.items():
            beside = group.arrays.get(f"{name.removesuffix(NAME)}alphas_cumprod")
            if name.rpartition(".")[2] != NAME or beside is None or array.ndim != 1 or array.shape != beside.shape:
                continue
            weights, alpha_bars = numbers(array), numbers(beside)
            noisy = (alpha_bars > 0) & (alpha_bars <= 0.5)
            fits = [
                objective
                for objective, weight in WEIGHTS.items()
                if noisy.any() and np.allclose(weights[noisy], weight(alpha_bars[noisy]), rtol=1e-3, atol=0)
            ]
            if len(fits) == 1:
                return name, fits[0]
    return None
