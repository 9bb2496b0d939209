"""Train the PyTorch reference with the flags of train_jax.py: python scripts/train_torch.py"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("train-torch")
