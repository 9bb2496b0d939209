"""Measure jax_ddpm beside PyTorch: python scripts/benchmark.py --network conv_block --preset paper --out bench"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("benchmark")
