"""How far the frameworks are apart in BatchNorm during training: its output, and the running statistics after it."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import torch_ref.unets
from jax_ddpm import layers
from parity_tests.measures import channels_first, channels_last, relative
from parity_tests.networks import CASES


def training_passes() -> float:
    """Of two passes of the first BatchNorm of simple_unet, float64."""
    theirs = torch_ref.unets.build(CASES["simple_unet"].config, 3).downs[0].bnorm1.double().train()
    g, n = np.random.default_rng(4), theirs.num_features
    scale, bias = g.standard_normal(n), g.standard_normal(n)
    with jax.enable_x64(True), torch.no_grad():
        ours = layers.BatchNorm(n)
        for ours_array, value in ((ours.mean, np.zeros(n)), (ours.variance, np.ones(n))):
            ours_array.set_value(jnp.asarray(value))
        ours.scale.set_value(jnp.asarray(scale))
        ours.bias.set_value(jnp.asarray(bias))
        theirs.weight.copy_(torch.from_numpy(scale))
        theirs.bias.copy_(torch.from_numpy(bias))
        found = []
        for _ in range(2):
            x = 1 + g.standard_normal((3, 2, 3, n))
            with layers.batch_statistics() as statistics:
                y = ours(jnp.asarray(x))
            layers.store_statistics(statistics)
            found.append(relative(y, channels_last(theirs(channels_first(x)))))
        found += [relative(ours.mean[...], theirs.running_mean), relative(ours.variance[...], theirs.running_var)]
    return max(found)
