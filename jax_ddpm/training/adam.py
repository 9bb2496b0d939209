"""Adam (Kingma & Ba 2015, Algorithm 1) in few passes over the parameters."""

import jax
import jax.numpy as jnp
import optax

from jax_ddpm import ops


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Like `optax.scale_by_adam`, with the same state.

    `update` also takes `finite`, a bool scalar; where it is False, the state does not change.
    """

    def update(gradients, state, params=None, *, finite):
        def if_finite(new, old):
            return jnp.where(finite, new, old)

        count = if_finite(optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda g, m: if_finite((1 - b1) * g + b1 * m, m), gradients, state.mu)
        nu = jax.tree.map(lambda g, v: if_finite((1 - b2) * g**2 + b2 * v, v), gradients, state.nu)
        mu, nu = ops.materialize((mu, nu))
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)
