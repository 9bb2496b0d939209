"""Write a sampler as a file that runs without this package: python scripts/push.py runs/digits sampler.stablehlo"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("push")
