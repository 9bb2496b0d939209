"""The layer that torch.nn lacks: dropout whose masks are drawn at addresses of `rng`."""

import torch

from torch_ref import rng


def identity(h):
    """No dropout."""
    return h


class Dropout:
    """Dropout of one forward pass (Srivastava et al. 2014).

    Call n, counted from 0, draws the mask (H, W, C) of image i from the address (DROPOUT, step, n, i).
    """

    def __init__(self, rate: float, seed: int, step: int, images):
        """images: integers (B,), the indices of the images in the whole batch."""
        self.rate, self.images = rate, images
        self.key = rng.key(seed, rng.DROPOUT, step)
        self.calls = 0

    def __call__(self, h):
        keys = rng.fold_in(rng.fold_in(self.key, self.calls), self.images)
        self.calls += 1
        _, c, height, width = h.shape
        u = rng.uniform(keys, (height, width, c)).permute(0, 3, 1, 2).to(h.device)
        return torch.where(u >= self.rate, h / (1 - self.rate), 0)
