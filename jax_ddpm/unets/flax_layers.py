"""Flax's own layers in a network of the user's own: the network is made a pure function of x and t.

Statistics of BatchNorm become buffers, and dropout draws its masks at the addresses of `layers.Dropout`.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flax import nnx

from jax_ddpm.layers import Buffer, Dropout
from jax_ddpm.spec.errors import UserError

dropout_of_the_pass: ContextVar[Dropout | None] = ContextVar("dropout_of_the_pass", default=None)


class AddressedDropout(nnx.Dropout):
    """nnx.Dropout whose masks are those of the `layers.Dropout` of the forward pass; without one, no dropout."""

    def __call__(self, inputs, **_):
        dropout = dropout_of_the_pass.get()
        if dropout is None or self.rate == 0:
            return inputs
        if inputs.shape[0] != len(dropout.images):
            raise UserError(
                f"nnx.Dropout got an array of the shape {inputs.shape}: expected that its first axis has the "
                f"{len(dropout.images)} images of the batch."
            )
        own = copy.copy(dropout)
        own.rate = self.rate
        dropout.calls += 1
        return own(inputs)


@contextmanager
def dropout_in_layers(dropout: Dropout) -> Iterator[None]:
    """Context manager: layers of nnx.Dropout drop values as `dropout` says, each call with a mask of its own."""
    token = dropout_of_the_pass.set(dropout)
    try:
        yield
    finally:
        dropout_of_the_pass.reset(token)


def layers_of(network: nnx.Module, kind: type) -> Iterator[tuple[str, nnx.Module]]:
    """The layers of a kind in a network, with their paths."""
    for path, node in nnx.iter_graph(network):
        if isinstance(node, kind):
            yield ".".join(map(str, path)), node


def adapt(network: nnx.Module) -> None:
    """Make a new network of the user's own a pure function of x and t, in place, in evaluation mode."""
    if isinstance(network, nnx.Module):
        network.eval()
    for _, layer in list(layers_of(network, nnx.Dropout)):
        if type(layer) is nnx.Dropout:
            layer.rngs = nnx.data(None)
            layer.__class__ = AddressedDropout
    for _, layer in list(layers_of(network, nnx.MultiHeadAttention)):
        layer.rngs = nnx.data(None)
    for _, layer in list(layers_of(network, nnx.BatchNorm)):
        layer.mean, layer.var = Buffer(layer.mean[...]), Buffer(layer.var[...])


def check_training(network: nnx.Module) -> None:
    """Raise UserError for layers that cannot be trained: BatchNorm, dropout of attention weights or of whole axes."""
    refusals: tuple[tuple[type, Callable, str], ...] = (
        (
            nnx.BatchNorm,
            lambda layer: True,
            "an nnx.BatchNorm. It can be converted and sampled, but training does not update its statistics.\n"
            "Use a GroupNorm to train.",
        ),
        (
            nnx.MultiHeadAttention,
            lambda layer: layer.dropout_rate > 0,
            "an nnx.MultiHeadAttention with dropout_rate, which training does not apply.\n"
            "Set dropout_rate=0, and put an nnx.Dropout behind it.",
        ),
        (
            nnx.Dropout,
            lambda layer: tuple(layer.broadcast_dims) != () or layer.rate >= 1,
            "an nnx.Dropout with broadcast_dims or a rate of 1, which training does not apply.",
        ),
    )
    for kind, is_refused, text in refusals:
        for path, layer in layers_of(network, kind):
            if is_refused(layer):
                raise UserError(f"{type(network).__name__}: {path} is {text}")
