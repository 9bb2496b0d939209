"""Layers that networks share: label embeddings, and dropout whose masks are drawn at addresses of `rng`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jax_ddpm.spec.errors import UserError
from torch_ref import rng


def label_embedding(num_classes: int, null_label: bool, features: int) -> nn.Embedding | None:
    """A row for each class and, last, one for the null label if `null_label`; None without classes."""
    return nn.Embedding(num_classes + null_label, features) if num_classes else None


def add_label(time: Tensor, labels: Tensor | int | None, embedding: Callable | None, null_index: int | None) -> Tensor:
    """The time vectors (B, D) plus the embeddings of the labels (Dhariwal & Nichol 2021, section 3.1).

    labels: integers (B,), one integer for all, floats (B, rows) for mixtures of labels, or None: the null label for
    all. embedding: labels -> (B, D); None for a network without classes. null_index: the null label, or None if there
    is none. Raises UserError for labels without classes, and for no labels where there is no null label.
    """
    if embedding is None:
        if labels is not None:
            raise UserError("This network has no classes, and takes no labels: leave labels out.")
        return time
    if labels is None:
        if null_index is None:
            raise UserError("This network needs a label for each image, because it has no null label: give labels.")
        labels = null_index
    labels = torch.as_tensor(labels, device=time.device)
    if isinstance(embedding, nn.Embedding) and labels.is_floating_point():
        return time + (labels.to(embedding.weight.dtype) @ embedding.weight).to(time.dtype)
    return time + embedding(labels if labels.ndim else labels.expand(time.shape[0])).to(time.dtype)


def identity(h):
    """No dropout."""
    return h


FIRST_PASS = 1 << 16  # n of the first dropout call in the pass that predicts x_0 for self-conditioning


class Dropout:
    """Dropout of one forward pass (Srivastava et al. 2014).

    Call n draws the mask (H, W, C) of image i from the address (DROPOUT, step, n, i).
    """

    def __init__(self, rate: float, seed: int, step: int, images, first_call: int = 0):
        """images: integers (B,), the indices of the images in the whole batch. first_call: n of the first call."""
        self.rate, self.images = rate, images
        self.key = rng.key(seed, rng.DROPOUT, step)
        self.calls = first_call

    def __call__(self, h):
        keys = rng.fold_in(rng.fold_in(self.key, self.calls), self.images)
        self.calls += 1
        _, c, height, width = h.shape
        u = rng.uniform(keys, (height, width, c)).permute(0, 3, 1, 2).to(h.device)
        return torch.where(u >= self.rate, h / (1 - self.rate), 0)
