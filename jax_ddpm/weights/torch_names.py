"""PyTorch names of each network's layers and buffers: one table per network.

The left column is the PyTorch name, the right column the path in the Flax network. {} stands for a number, the same on
both sides. If several lines match a path, the first one is used. The parameters inside a layer are in `layouts`.

The table of a network of the user's own is the attribute TORCH_NAMES of its class, or the one given to `register`. It
has only the names that differ: a line for a module holds for all that is in it, and what no line names is called as in
Flax.
"""

import re
from collections.abc import Mapping

from flax import nnx

from jax_ddpm.unets import REGISTERED_TORCH_NAMES
from jax_ddpm.unets.tf32 import class_of
from jax_ddpm.weights.names_adm import ADM
from jax_ddpm.weights.names_adm_classifier import ADM_CLASSIFIER
from jax_ddpm.weights.names_annotated import ANNOTATED
from jax_ddpm.weights.names_annotated_convnext import ANNOTATED_CONVNEXT
from jax_ddpm.weights.names_context_unet import CONTEXT_UNET
from jax_ddpm.weights.names_ddpm_conditional import DDPM_CONDITIONAL
from jax_ddpm.weights.names_lucidrains import LUCIDRAINS
from jax_ddpm.weights.names_simple_unet import SIMPLE_UNET
from jax_ddpm.weights.names_superminddpm import SUPERMINDDPM


def parse(text: str) -> dict[str, str]:
    return dict(line.split() for line in text.strip().splitlines())


CONV_BLOCK = parse("""
    time_emb.0.J                    time_embedding.frequencies
    time_emb.1                      time_embedding.linear
    class_embedding                 class_embedding
    enc_convs.{}.seq1.0             encoder.{}.conv1
    enc_convs.{}.seq1.1             encoder.{}.norm1
    enc_convs.{}.time_emb_linear    encoder.{}.time_linear
    enc_convs.{}.seq2.0             encoder.{}.conv2
    enc_convs.{}.seq2.1             encoder.{}.norm2
    enc_convs.{}.residual           encoder.{}.residual
    deconvs.{}                      upsamplers.{}
    dec_convs.{}.seq1.0             decoder.{}.conv1
    dec_convs.{}.seq1.1             decoder.{}.norm1
    dec_convs.{}.time_emb_linear    decoder.{}.time_linear
    dec_convs.{}.seq2.0             decoder.{}.conv2
    dec_convs.{}.seq2.1             decoder.{}.norm2
    dec_convs.{}.residual           decoder.{}.residual
    output                          output
""")

STRIDED = parse("""
    time_embed.embed.0    time_embedding.linear1
    time_embed.embed.2    time_embedding.linear2
    class_embedding       class_embedding
    down{}.conv.0         down{}.conv.conv1
    down{}.conv.1         down{}.conv.norm1
    down{}.conv.3         down{}.conv.conv2
    down{}.conv.4         down{}.conv.norm2
    down{}.time_mlp       down{}.time_linear
    down{}.down           down{}.down
    mid_conv.0            middle.conv1
    mid_conv.1            middle.norm1
    mid_conv.3            middle.conv2
    mid_conv.4            middle.norm2
    up{}.up               up{}.up
    up{}.conv.0           up{}.conv.conv1
    up{}.conv.1           up{}.conv.norm1
    up{}.conv.3           up{}.conv.conv2
    up{}.conv.4           up{}.conv.norm2
    up{}.time_mlp         up{}.time_linear
    final                 output
""")

ATTENTION = parse("""
    image_proj                     image_projection
    time_emb.freqs                 time_embedding.frequencies
    time_emb.linear_seq.0          time_embedding.linear1
    time_emb.linear_seq.2          time_embedding.linear2
    class_embedding                class_embedding
    down.{}.res.norm1              down.{}.residual.norm1
    down.{}.res.conv1              down.{}.residual.conv1
    down.{}.res.time_emb           down.{}.residual.time_linear
    down.{}.res.norm2              down.{}.residual.norm2
    down.{}.res.conv2              down.{}.residual.conv2
    down.{}.res.shortcut           down.{}.residual.shortcut
    down.{}.attn                   down.{}.attention.projection
    down.{}.attn.out_proj          down.{}.attention.output
    down.{}.conv                   down.{}.conv
    middle.conv{}.res.norm1        middle.block{}.residual.norm1
    middle.conv{}.res.conv1        middle.block{}.residual.conv1
    middle.conv{}.res.time_emb     middle.block{}.residual.time_linear
    middle.conv{}.res.norm2        middle.block{}.residual.norm2
    middle.conv{}.res.conv2        middle.block{}.residual.conv2
    middle.conv{}.attn             middle.block{}.attention.projection
    middle.conv{}.attn.out_proj    middle.block{}.attention.output
    up.{}.res.norm1                up.{}.residual.norm1
    up.{}.res.conv1                up.{}.residual.conv1
    up.{}.res.time_emb             up.{}.residual.time_linear
    up.{}.res.norm2                up.{}.residual.norm2
    up.{}.res.conv2                up.{}.residual.conv2
    up.{}.res.shortcut             up.{}.residual.shortcut
    up.{}.attn                     up.{}.attention.projection
    up.{}.attn.out_proj            up.{}.attention.output
    up.{}.conv                     up.{}.conv
    norm                           norm
    final                          output
""")

LAYER_NORM = parse("""
    time_embed.weight    time_table
    class_embedding      class_embedding
    te_out.0             stage6.time.linear1
    te_out.2             stage6.time.linear2
    b_out.0.ln           stage6.block1.norm
    b_out.0.conv1        stage6.block1.conv1
    b_out.0.conv2        stage6.block1.conv2
    b_out.1.ln           stage6.block2.norm
    b_out.1.conv1        stage6.block2.conv1
    b_out.1.conv2        stage6.block2.conv2
    b_out.2.ln           stage6.block3.norm
    b_out.2.conv1        stage6.block3.conv1
    b_out.2.conv2        stage6.block3.conv2
    te{}.0               stage{}.time.linear1
    te{}.2               stage{}.time.linear2
    b{}.0.ln             stage{}.block1.norm
    b{}.0.conv1          stage{}.block1.conv1
    b{}.0.conv2          stage{}.block1.conv2
    b{}.1.ln             stage{}.block2.norm
    b{}.1.conv1          stage{}.block2.conv1
    b{}.1.conv2          stage{}.block2.conv2
    b{}.2.ln             stage{}.block3.norm
    b{}.2.conv1          stage{}.block3.conv1
    b{}.2.conv2          stage{}.block3.conv2
    te_mid.0             middle.time.linear1
    te_mid.2             middle.time.linear2
    b_mid.0.ln           middle.block1.norm
    b_mid.0.conv1        middle.block1.conv1
    b_mid.0.conv2        middle.block1.conv2
    b_mid.1.ln           middle.block2.norm
    b_mid.1.conv1        middle.block2.conv1
    b_mid.1.conv2        middle.block2.conv2
    b_mid.2.ln           middle.block3.norm
    b_mid.2.conv1        middle.block3.conv1
    b_mid.2.conv2        middle.block3.conv2
    down1                down1
    down2                down2
    down3.0              down3a
    down3.2              down3b
    up1.0                up1a
    up1.2                up1b
    up2                  up2
    up3                  up3
    conv_out             output
""")

DDPM = parse("""
    conv_in                                        input
    time_embedding.linear_1                        time_embedding.linear1
    time_embedding.linear_2                        time_embedding.linear2
    class_embedding                                class_embedding
    class_embedding.linear_1                       class_embedding.linear1
    class_embedding.linear_2                       class_embedding.linear2
    down_blocks.{}.resnets.{}.norm1                down.{}.residuals.{}.norm1
    down_blocks.{}.resnets.{}.conv1                down.{}.residuals.{}.conv1
    down_blocks.{}.resnets.{}.time_emb_proj        down.{}.residuals.{}.time_linear
    down_blocks.{}.resnets.{}.norm2                down.{}.residuals.{}.norm2
    down_blocks.{}.resnets.{}.conv2                down.{}.residuals.{}.conv2
    down_blocks.{}.resnets.{}.conv_shortcut        down.{}.residuals.{}.shortcut
    down_blocks.{}.attentions.{}.group_norm        down.{}.attentions.{}.norm
    down_blocks.{}.attentions.{}.to_q              down.{}.attentions.{}.query
    down_blocks.{}.attentions.{}.to_k              down.{}.attentions.{}.key
    down_blocks.{}.attentions.{}.to_v              down.{}.attentions.{}.value
    down_blocks.{}.attentions.{}.to_out.0          down.{}.attentions.{}.output
    down_blocks.{}.downsamplers.0.conv             down.{}.downsample.conv
    down_blocks.{}.downsamplers.0.norm1            down.{}.downsample.norm1
    down_blocks.{}.downsamplers.0.conv1            down.{}.downsample.conv1
    down_blocks.{}.downsamplers.0.time_emb_proj    down.{}.downsample.time_linear
    down_blocks.{}.downsamplers.0.norm2            down.{}.downsample.norm2
    down_blocks.{}.downsamplers.0.conv2            down.{}.downsample.conv2
    mid_block.resnets.{}.norm1                     middle.residuals.{}.norm1
    mid_block.resnets.{}.conv1                     middle.residuals.{}.conv1
    mid_block.resnets.{}.time_emb_proj             middle.residuals.{}.time_linear
    mid_block.resnets.{}.norm2                     middle.residuals.{}.norm2
    mid_block.resnets.{}.conv2                     middle.residuals.{}.conv2
    mid_block.attentions.{}.group_norm             middle.attentions.{}.norm
    mid_block.attentions.{}.to_q                   middle.attentions.{}.query
    mid_block.attentions.{}.to_k                   middle.attentions.{}.key
    mid_block.attentions.{}.to_v                   middle.attentions.{}.value
    mid_block.attentions.{}.to_out.0               middle.attentions.{}.output
    up_blocks.{}.resnets.{}.norm1                  up.{}.residuals.{}.norm1
    up_blocks.{}.resnets.{}.conv1                  up.{}.residuals.{}.conv1
    up_blocks.{}.resnets.{}.time_emb_proj          up.{}.residuals.{}.time_linear
    up_blocks.{}.resnets.{}.norm2                  up.{}.residuals.{}.norm2
    up_blocks.{}.resnets.{}.conv2                  up.{}.residuals.{}.conv2
    up_blocks.{}.resnets.{}.conv_shortcut          up.{}.residuals.{}.shortcut
    up_blocks.{}.attentions.{}.group_norm          up.{}.attentions.{}.norm
    up_blocks.{}.attentions.{}.to_q                up.{}.attentions.{}.query
    up_blocks.{}.attentions.{}.to_k                up.{}.attentions.{}.key
    up_blocks.{}.attentions.{}.to_v                up.{}.attentions.{}.value
    up_blocks.{}.attentions.{}.to_out.0            up.{}.attentions.{}.output
    up_blocks.{}.upsamplers.0.conv                 up.{}.upsample.conv
    up_blocks.{}.upsamplers.0.norm1                up.{}.upsample.norm1
    up_blocks.{}.upsamplers.0.conv1                up.{}.upsample.conv1
    up_blocks.{}.upsamplers.0.time_emb_proj        up.{}.upsample.time_linear
    up_blocks.{}.upsamplers.0.norm2                up.{}.upsample.norm2
    up_blocks.{}.upsamplers.0.conv2                up.{}.upsample.conv2
    conv_norm_out                                  norm
    conv_out                                       output
""")

TORCH_NAMES = {  # by the class of the network
    "ConvBlockUNet": CONV_BLOCK,
    "StridedUNet": STRIDED,
    "AttentionUNet": ATTENTION,
    "LayerNormUNet": LAYER_NORM,
    "DDPMUNet": DDPM,
    "ADMUNet": parse(ADM),
    "ADMClassifier": parse(ADM_CLASSIFIER),
    "LucidrainsUNet": parse(LUCIDRAINS),
    "SimpleUNet": parse(SIMPLE_UNET),
    "ContextUNet": parse(CONTEXT_UNET),
    "SuperMinDDPM": parse(SUPERMINDDPM),
    "AnnotatedUNet": parse(ANNOTATED),
    "AnnotatedConvNextUNet": parse(ANNOTATED_CONVNEXT),
    "DDPMConditionalUNet": parse(DDPM_CONDITIONAL),
}


def has_complete_table(network: nnx.Module) -> bool:
    """Whether the network is one of this package, whose table names all its arrays."""
    kind = type(network)
    return kind.__name__ in TORCH_NAMES and kind.__module__.startswith("jax_ddpm.")


def own_table(network: nnx.Module) -> Mapping[str, str]:
    """The table of the names that differ in a network of the user's own."""
    if has_complete_table(network):
        return {}
    kind = class_of(network)
    return REGISTERED_TORCH_NAMES.get(kind) or getattr(kind, "TORCH_NAMES", {})


def name_of(network: nnx.Module, path: str) -> str | None:
    """The PyTorch name of the module or array at a path of the network; None if a complete table does not have it."""
    if has_complete_table(network):
        return torch_name(TORCH_NAMES[type(network).__name__], path)
    table, parts = own_table(network), path.split(".")
    for length in range(len(parts), 0, -1):
        name = torch_name(table, ".".join(parts[:length]))
        if name is not None:
            return ".".join(part for part in (name, *parts[length:]) if part)
    return path


def torch_name(table: Mapping[str, str], path: str) -> str | None:
    """The PyTorch name for a path in our network, or None if the table does not have it."""
    for torch_pattern, pattern in table.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), path)
        if match:
            return torch_pattern.format(*match.groups())
    return None
