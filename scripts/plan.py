"""Compile a run for chips that are not here: python scripts/plan.py conv_block --target h100:8"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("plan")
