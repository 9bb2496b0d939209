"""How good a trained model is: python scripts/evaluate.py runs/digits-digits"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("evaluate")
