"""Compare runs side by side: python scripts/compare.py runs/digits-digits runs/digits-cosine --out compare.html"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("compare")
