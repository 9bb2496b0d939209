"""The command `jax-ddpm` and its sub-commands; the files in `scripts/` call the same functions."""
