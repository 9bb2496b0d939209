"""Train a DDPM in JAX: python scripts/train_jax.py --dataset fashion_mnist"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("train")
