"""How far the frameworks are apart in two parts of ddpm_conditional: bilinear interpolation, and labels as rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm import layers
from jax_ddpm.unets import ddpm_conditional
from parity_tests.measures import channels_first, channels_last, compiled, relative
from torch_ref.unets import ddpm_conditional as twin


def interpolation() -> float:
    """Of maps of 5x2, and of a single row: outputs, and gradients of their weighted sum, float64."""

    @partial(compiled, quick=True)
    def output_and_gradient(x, weights):
        y, transpose = jax.vjp(ddpm_conditional.bilinear_2x2, x)
        return y, *transpose(weights)

    g, found = np.random.default_rng(5), []
    for height, width in ((1, 3), (5, 2)):
        x, weights = g.standard_normal((2, height, width, 3)), g.standard_normal((2, 2 * height, 2 * width, 3))
        theirs = channels_first(x).requires_grad_()
        y = twin.bilinear_2x2(theirs)
        (y * channels_first(weights)).sum().backward()
        with jax.enable_x64(True):
            ours, gradient = output_and_gradient(x, weights)
        found += [relative(ours, channels_last(y)), relative(gradient, channels_last(theirs.grad))]
    return max(found)


def labels() -> float:
    """Of time vectors with labels, of which one is the null label, with mixed labels, and without, float64."""
    g = np.random.default_rng(6)
    time, rows, mixed = g.standard_normal((3, 4)), g.standard_normal((5, 4)), g.uniform(size=(3, 6))
    table = torch.nn.Embedding(5, 4).double()
    table.weight.data = torch.from_numpy(rows)
    found = []
    with jax.enable_x64(True), torch.no_grad():
        embedding = layers.Embedding(5, 4)
        embedding.embedding.set_value(jnp.asarray(rows))

        @partial(compiled, quick=True)
        def ours(time, numbers, mixed):
            return [ddpm_conditional.add_class(time, given, embedding, 5) for given in (numbers, mixed, None)]

        given = np.array([1, 5, 0]), mixed
        for a, labels in zip(ours(time, *given), (*map(torch.from_numpy, given), None), strict=True):
            found.append(relative(a, twin.add_class(torch.from_numpy(time), labels, table, 5)))
    return max(found)
