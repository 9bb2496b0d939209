"""PyTorch names of the layers of `adm`, as in `torch_names`: those of UNetModel in OpenAI's packages."""

OUTSIDE_BLOCKS = """
    time_embed.0               time_embedding.linear1
    time_embed.2               time_embedding.linear2
    label_emb                  class_embedding
    input_blocks.{}.{}         down.{}.{}
    input_blocks.{}.{}.op      down.{}.{}.conv
    output_blocks.{}.{}.conv   up.{}.{}.conv
    out.0                      norm
    out.2                      output
"""
BLOCK = """
    THEIRS.in_layers.0         OURS.norm1
    THEIRS.in_layers.2         OURS.conv1
    THEIRS.emb_layers.1        OURS.time_linear
    THEIRS.out_layers.0        OURS.norm2
    THEIRS.out_layers.3        OURS.conv2
    THEIRS.skip_connection     OURS.shortcut
    THEIRS.norm                OURS.norm
    THEIRS.qkv                 OURS.projection
    THEIRS.proj_out            OURS.output
"""
PLACES = {"input_blocks.{}.{}": "down.{}.{}", "middle_block.{}": "middle.{}", "output_blocks.{}.{}": "up.{}.{}"}
BLOCKS = [BLOCK.replace("THEIRS", theirs).replace("OURS", ours) for theirs, ours in PLACES.items()]
ADM = "\n".join(part.strip() for part in (OUTSIDE_BLOCKS, *BLOCKS))
