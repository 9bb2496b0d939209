"""Write an HTML report of a training run: python scripts/report.py runs/digits-digits"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("report")
