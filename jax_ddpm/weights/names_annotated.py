"""PyTorch names of `annotated`, as in `torch_names`. Residual blocks and the rest are called as in `lucidrains`."""

from jax_ddpm.weights.names_lucidrains import ATTENTIONS, BLOCKS, OTHERS, RESIDUAL_BLOCK

ATTENTION = """
    {torch}.fn.norm           {ours}.norm
    {torch}.fn.fn.to_qkv      {ours}.attention.qkv
    {torch}.fn.fn.to_out      {ours}.attention.output
    {torch}.fn.fn.to_out.0    {ours}.attention.output.conv
    {torch}.fn.fn.to_out.1    {ours}.attention.output.norm
"""
PARTS = [
    *(RESIDUAL_BLOCK.format(torch=torch, ours=ours) for torch, ours in BLOCKS.items()),
    *(ATTENTION.format(torch=torch, ours=ours) for torch, ours in ATTENTIONS.items()),
    OTHERS,
]
ANNOTATED = "\n".join(part.strip() for part in PARTS)
