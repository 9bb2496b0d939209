"""Compare the speed of jax_ddpm with PyTorch: python scripts/benchmark.py --network conv_block --out bench"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("benchmark")
