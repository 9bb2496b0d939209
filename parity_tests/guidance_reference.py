"""Numbers of denoising-diffusion-pytorch for guidance, which `parity_tests/test_guidance.py` compares ours with.

`python -m parity_tests.guidance_reference` prints them. It needs the package denoising-diffusion-pytorch (2.3.4), which
the tests do not install. Its guidance is the method `Unet.forward_with_cond_scale`, which is called here with two
arrays in place of the network's outputs. The package's own variant, without the parallel component, is off.
"""

import importlib
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

SETTINGS = {"plain": (2.5, 0.0), "rescaled": (6.0, 0.7), "towards no label": (0.3, 0.0)}  # weight, rescale
SHOWN = [(0, 0, 0, 0), (0, 1, 2, 3), (1, 2, 3, 0), (1, 0, 1, 1)]  # places in (B, C, H, W)


def outputs() -> tuple[np.ndarray, np.ndarray]:
    """The outputs for a label and for no label, float64 (B, C, H, W)."""
    conditional, unconditional = np.random.default_rng(12).standard_normal((2, 2, 3, 4, 5))
    return conditional * np.array([0.5, 2]).reshape(2, 1, 1, 1) + 0.2, unconditional


def main():
    stub = mock.MagicMock()  # torchvision reads and writes pictures there, which are not used
    with mock.patch.dict(sys.modules, {name: stub for name in ("torchvision", "torchvision.transforms")}):
        package = importlib.import_module("denoising_diffusion_pytorch.classifier_free_guidance")
    conditional, unconditional = map(torch.from_numpy, outputs())
    network = SimpleNamespace(forward=lambda cond_drop_prob: unconditional if cond_drop_prob else conditional)
    for name, (weight, rescale) in SETTINGS.items():
        guided, _ = package.Unet.forward_with_cond_scale(
            network, cond_scale=weight, rescaled_phi=rescale, remove_parallel_component=False
        )
        print(f'    "{name}": {[guided[place].item() for place in SHOWN]},')


if __name__ == "__main__":
    main()
