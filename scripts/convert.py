"""Convert a model: python scripts/convert.py somebodys.pt model.safetensors"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("convert")
