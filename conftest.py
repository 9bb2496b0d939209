"""Shape and dtype annotations of jax_ddpm are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("jax_ddpm", "beartype.beartype")
