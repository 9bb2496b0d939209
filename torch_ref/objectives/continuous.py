"""What edm and flow share: an objective whose noise level is a number, one for each image."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from torch_ref import diffusion
from torch_ref.dtypes import float_time


def per_image(values: Tensor) -> Tensor:
    """Values (B,), ready to multiply images."""
    return torch.reshape(values, (-1, 1, 1, 1))


class Continuous(ABC):
    """x = signal x_0 + sigma noise at a noise level, float (B,). A subclass says what the level is.

    dtype: of the levels.
    """

    def __init__(self, config: DiffusionConfig, dtype=torch.float32):
        self.config, self.dtype = config, dtype

    @abstractmethod
    def draw_level(self, k: np.ndarray, batch_size: int) -> Tensor:
        """Noise levels of a training batch from the key of an address."""

    @abstractmethod
    def signal_and_sigma(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of x_0 and of the noise in x."""

    @abstractmethod
    def input_scale_and_time(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of x in the network's input, and the network's time."""

    @abstractmethod
    def target(self, x_0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict."""

    @abstractmethod
    def predicted_x_0(self, x: Tensor, level: Tensor, prediction: Tensor) -> Tensor:
        """x_0 computed from the network's prediction."""

    @abstractmethod
    def output_scale(self, level: Tensor) -> Tensor:
        """The error of the predicted x_0 for an error of 1 of the prediction."""

    @abstractmethod
    def slope(self, x: Tensor, level: Tensor, x_0: Tensor) -> Tensor:
        """dx / dlevel of the probability-flow ODE for the predicted x_0. level: more than 0."""

    @abstractmethod
    def levels(self, num_steps: int) -> np.ndarray:
        """The noise levels that a sampler visits: float64 (num_steps + 1,), ascending from 0."""

    def noised(self, x_0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """x for the given standard normal noise."""
        signal, sigma = self.signal_and_sigma(level)
        return per_image(signal) * x_0 + per_image(sigma) * noise

    def network_input(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The arguments of the network: the scaled x, and a time that need not be an integer."""
        scale, time = self.input_scale_and_time(level)
        return per_image(scale) * x, float_time(time)

    def loss_per_image(
        self,
        predict,
        x_0: Tensor,
        level: Tensor,
        noise: Tensor,
        min_snr_gamma: float | None = None,
        loss_kind: str = "l2",
        huber_delta: float = 1.0,
        p2_gamma: float | None = None,
        p2_k: float = 1.0,
    ) -> Tensor:
        """The loss of each image: of the network's errors, mean over pixels. predict: the network.

        loss_kind, huber_delta: as in `diffusion.pixel_loss`. min_snr_gamma: if given, multiply so that the error of x_0
        counts min(SNR, gamma), as Hang et al. 2023 do for eps, x_0 and v. p2_gamma, p2_k: if p2_gamma is given,
        multiply by `diffusion.p2_weights`.
        """
        prediction = predict(*self.network_input(self.noised(x_0, level, noise), level))
        error = prediction - self.target(x_0, level, noise)
        errors = torch.mean(diffusion.pixel_loss(error, loss_kind, huber_delta), dim=(1, 2, 3))
        signal, sigma = self.signal_and_sigma(level)
        snr = torch.square(signal / sigma)
        if min_snr_gamma is not None:
            errors = torch.clamp(snr, max=min_snr_gamma) * torch.square(self.output_scale(level)) * errors
        if p2_gamma is not None:
            errors = diffusion.p2_weights(snr, p2_gamma, p2_k) * errors
        return errors

    def loss(self, predict, x_0: Tensor, level: Tensor, noise: Tensor, **settings) -> Tensor:
        """The mean of `loss_per_image` over the batch."""
        return torch.mean(self.loss_per_image(predict, x_0, level, noise, **settings))
