"""PyTorch names of the layers of `adm_classifier`: those of EncoderUNetModel in guided-diffusion.

The way down and the middle are those of `adm`.
"""

from jax_ddpm.weights.names_adm import ADM

POOLING = """
    out.2.positional_embedding    pool.positions
    out.2.qkv_proj                pool.projection
    out.2.c_proj                  pool.output
    out.3                         output
"""
OF_ADM = [line for line in ADM.splitlines() if not line.split()[1].startswith(("up", "output", "class_embedding"))]
ADM_CLASSIFIER = "\n".join([*OF_ADM, POOLING.strip()])
