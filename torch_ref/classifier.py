"""The classifier whose features compare sets of images: `jax_ddpm.evaluation.classifier` in PyTorch."""

import os
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jax_ddpm.spec.classifier import ClassifierConfig, read_classifier
from torch_ref.layouts import device_of
from torch_ref.step import prepare_images
from torch_ref.weights import load_state_dict


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> features (B, D), which are not negative, and logits (B, num_classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        channels = (config.image_shape[2], *config.widths)
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(channels)])
        height, width = config.map_size
        self.features = nn.Linear(height * width * channels[-1], config.num_features)
        self.output = nn.Linear(config.num_features, config.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = average_pool(x, self.config.reduction)
        for conv in self.convs:
            h = max_pool(torch.relu(conv(h)))
        features = torch.relu(self.features(flatten(h)))
        return features, self.output(features)


def average_pool(x: Tensor, size: int) -> Tensor:
    """Mean of each block of size x size pixels. Rows and columns that fill no block are left out."""
    return F.avg_pool2d(x, size)


def max_pool(x: Tensor) -> Tensor:
    """2x2 max pooling. A last row or column without a partner is left out."""
    return F.max_pool2d(x, 2)


def flatten(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W C): in the order of images that are channels last."""
    return x.permute(0, 2, 3, 1).flatten(1)


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of images uint8 (B, H, W, C) with classes (B,), a scalar."""
    x = prepare_images(images, next(network.parameters()).dtype, None)
    return F.cross_entropy(network(x)[1], labels.long())


@torch.no_grad()
def features(network: nn.Module, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Features of images uint8 (N, H, W, C): float64 (N, D)."""
    dtype, device, parts = next(network.parameters()).dtype, device_of(network), []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        parts.append(network(prepare_images(batch, dtype, None))[0].double().cpu().numpy())
    return np.concatenate(parts)


def load_classifier(path: str | os.PathLike, log: Callable[[str], None] = print) -> Classifier:
    """The classifier in a file that `--features classifier` of jax_ddpm wrote, in eval mode. UserError for others."""
    values, info = read_classifier(path)
    network = Classifier(info.config)
    load_state_dict(network, values)
    log(f"{path}: classifier of {info.dataset}, {info.config.num_classes} classes")
    return network.eval()
