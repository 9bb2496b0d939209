"""The layer that torch.nn lacks: dropout whose masks are drawn at addresses of `rng`."""

import torch

from torch_ref import rng


def identity(h):
    """No dropout."""
    return h


class Dropout:
    """Dropout of one forward pass (Srivastava et al. 2014): a value is 0 with probability `rate`, else over 1 - rate.

    Call number n (the n-th dropout layer on the way) draws image i's mask, (H, W, C), at (DROPOUT, step, n, i), i being
    the image's place in the whole batch: masks do not depend on how a batch is split.
    """

    def __init__(self, rate: float, seed: int, step: int, images):
        """images: integers (B,), the places of the images in the batch."""
        self.rate, self.images = rate, images
        self.key = rng.key(seed, rng.DROPOUT, step)
        self.calls = 0

    def __call__(self, h):
        keys = rng.fold_in(rng.fold_in(self.key, self.calls), self.images)
        self.calls += 1
        _, c, height, width = h.shape
        u = rng.uniform(keys, (height, width, c)).permute(0, 3, 1, 2).to(h.device)
        return torch.where(u >= self.rate, h / (1 - self.rate), 0)
