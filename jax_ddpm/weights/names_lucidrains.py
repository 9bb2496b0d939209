"""PyTorch names of the layers of `lucidrains`, in the format of `torch_names`.

Attention of versions before 1.8 is at down.{}.attention.attention, within PreNorm.
"""

RESIDUAL_BLOCK = """
    {torch}.mlp.1           {ours}.time_linear
    {torch}.block{{}}.proj    {ours}.block{{}}.conv
    {torch}.block{{}}.norm    {ours}.block{{}}.norm
    {torch}.res_conv        {ours}.shortcut
"""
ATTENTION = """
    {torch}.norm                 {ours}.norm
    {torch}.mem_kv               {ours}.memory
    {torch}.to_qkv               {ours}.qkv
    {torch}.to_out               {ours}.output
    {torch}.to_out.0             {ours}.output.conv
    {torch}.to_out.1             {ours}.output.norm
    {torch}.fn.norm              {ours}.pre_norm
    {torch}.fn.fn.to_qkv         {ours}.attention.qkv
    {torch}.fn.fn.to_out         {ours}.attention.output
    {torch}.fn.fn.to_out.0       {ours}.attention.output.conv
    {torch}.fn.fn.to_out.1       {ours}.attention.output.norm
"""
BLOCKS = {
    "downs.{}.0": "down.{}.block1",
    "downs.{}.1": "down.{}.block2",
    "mid_block1": "middle1",
    "mid_block2": "middle2",
    "ups.{}.0": "up.{}.block1",
    "ups.{}.1": "up.{}.block2",
    "final_res_block": "last",
}
ATTENTIONS = {"downs.{}.2": "down.{}.attention", "mid_attn": "middle_attention", "ups.{}.2": "up.{}.attention"}
OTHERS = """
    init_conv             input
    time_mlp.0.weights    time_embedding.sinusoids.weights
    time_mlp.1            time_embedding.linear1
    time_mlp.3            time_embedding.linear2
    downs.{}.3            down.{}.downsample
    downs.{}.3.1          down.{}.downsample.conv
    ups.{}.3              up.{}.upsample
    ups.{}.3.1            up.{}.upsample.conv
    final_conv            output
"""
PARTS = [
    *(RESIDUAL_BLOCK.format(torch=torch, ours=ours) for torch, ours in BLOCKS.items()),
    *(ATTENTION.format(torch=torch, ours=ours) for torch, ours in ATTENTIONS.items()),
    OTHERS,
]
LUCIDRAINS = "\n".join(part.strip() for part in PARTS)
