"""Sample from a trained model: python scripts/sample.py --model runs/digits-digits --num-images 64 --out grid.png"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("sample")
