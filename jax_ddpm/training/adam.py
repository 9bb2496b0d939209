"""Adam's direction (Kingma & Ba 2015, Algorithm 1) in few passes over the parameters."""

import jax
import jax.numpy as jnp
import optax

from jax_ddpm import ops


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_adam, its state too, whose `update` is told whether the step is `finite`: else its state stays."""

    def update(gradients, state, params=None, *, finite):
        def keep(new, old):
            return jnp.where(finite, new, old)

        count = keep(optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda g, m: keep((1 - b1) * g + b1 * m, m), gradients, state.mu)
        nu = jax.tree.map(lambda g, v: keep((1 - b2) * g**2 + b2 * v, v), gradients, state.nu)
        mu, nu = ops.materialize((mu, nu))
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        directions = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)
