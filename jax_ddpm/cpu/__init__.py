"""Make JAX fast on CPUs. Used by `jax_ddpm.ops` and `jax_ddpm.process` only; the package also works without it.

XLA compiles some operations to slow code on CPUs. The files here rewrite them; results are equal up to rounding.

- `routes`: the fast operations, under their names in `jax_ddpm.ops`. This is all that `ops` imports.
- `convolution`: chooses the fastest method for each convolution and its gradients.
- `winograd`: 3x3 convolutions with fewer multiplications.
- `onednn`, `onednn_convolution`: calls of the oneDNN library inside jaxlib.
- `products`: matrix products.
- `norm`: GroupNorm and LayerNorm.
- `xla`: element-wise operations, sums, pooling and gradient checkpointing, written so that XLA compiles them well.
- `threefry`: the random generator of `jax.random`, without its loop over rounds.
- `flags`, `memory`: settings of the process (XLA_FLAGS, malloc). They do not import JAX, and `process` calls them.
"""
