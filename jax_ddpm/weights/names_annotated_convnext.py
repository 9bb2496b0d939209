"""PyTorch names of `annotated_convnext`, as in `torch_names`."""

from jax_ddpm.weights.names_annotated import ATTENTION
from jax_ddpm.weights.names_lucidrains import ATTENTIONS, BLOCKS

BLOCK = """
    {torch}.mlp.1       {ours}.time_linear
    {torch}.ds_conv     {ours}.depthwise
    {torch}.net.0       {ours}.norm1
    {torch}.net.1       {ours}.conv1
    {torch}.net.3       {ours}.norm2
    {torch}.net.4       {ours}.conv2
    {torch}.res_conv    {ours}.shortcut
"""
RENAMED = {"final_res_block": "final_conv.0"}
OTHERS = """
    init_conv       input
    time_mlp.1      time_embedding.linear1
    time_mlp.3      time_embedding.linear2
    downs.{}.3      down.{}.downsample
    ups.{}.3        up.{}.upsample
    final_conv.1    output
"""
PARTS = [
    *(BLOCK.format(torch=RENAMED.get(torch, torch), ours=ours) for torch, ours in BLOCKS.items()),
    *(ATTENTION.format(torch=torch, ours=ours) for torch, ours in ATTENTIONS.items()),
    OTHERS,
]
ANNOTATED_CONVNEXT = "\n".join(part.strip() for part in PARTS)
