"""JAX made fast on CPUs. Nothing here knows of diffusion, and nothing outside needs it: `ops` works without.

`routes` holds the faster operations under the names they have in `jax_ddpm.ops`; `flags` and `memory`, which do not
import JAX, set up the process.
"""
