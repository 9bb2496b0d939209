"""Compare a port with its original: python scripts/doctor.py unet.py:UNet port.py:UNet --input 2,3,32,32 2"""

from jax_ddpm.commands.main import run_script

if __name__ == "__main__":
    run_script("doctor")
