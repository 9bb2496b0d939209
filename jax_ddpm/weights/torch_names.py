"""Where each network's arrays are in PyTorch: the tables that `weights` goes by."""

# PyTorch's module or buffer, and ours. {} stands for a number.
CONV_BLOCK = {
    "time_emb.0.J": "time_embedding.frequencies",
    "time_emb.1": "time_embedding.linear",
    **{
        f"{theirs}.{{}}.{torch_layer}": f"{ours}.{{}}.{layer}"
        for theirs, ours in (("enc_convs", "encoder"), ("dec_convs", "decoder"))
        for torch_layer, layer in (
            ("seq1.0", "conv1"),
            ("seq1.1", "norm1"),
            ("time_emb_linear", "time_linear"),
            ("seq2.0", "conv2"),
            ("seq2.1", "norm2"),
            ("residual", "residual"),
        )
    },
    "deconvs.{}": "upsamplers.{}",
    "output": "output",
}

DOUBLE_CONV = (("0", "conv1"), ("1", "norm1"), ("3", "conv2"), ("4", "norm2"))
STRIDED = {
    "time_embed.embed.0": "time_embedding.linear1",
    "time_embed.embed.2": "time_embedding.linear2",
    "down{}.time_mlp": "down{}.time_linear",
    "down{}.down": "down{}.down",
    "up{}.time_mlp": "up{}.time_linear",
    "up{}.up": "up{}.up",
    **{f"down{{}}.conv.{theirs}": f"down{{}}.conv.{ours}" for theirs, ours in DOUBLE_CONV},
    **{f"up{{}}.conv.{theirs}": f"up{{}}.conv.{ours}" for theirs, ours in DOUBLE_CONV},
    **{f"mid_conv.{theirs}": f"middle.{ours}" for theirs, ours in DOUBLE_CONV},
    "final": "output",
}

ATTENTION = {
    "image_proj": "image_projection",
    "time_emb.freqs": "time_embedding.frequencies",
    "time_emb.linear_seq.0": "time_embedding.linear1",
    "time_emb.linear_seq.2": "time_embedding.linear2",
    **{
        f"{theirs}.{torch_layer}": f"{ours}.{layer}"
        for theirs, ours in (("down.{}", "down.{}"), ("middle.conv{}", "middle.block{}"), ("up.{}", "up.{}"))
        for torch_layer, layer in (
            ("res.norm1", "residual.norm1"),
            ("res.conv1", "residual.conv1"),
            ("res.time_emb", "residual.time_linear"),
            ("res.norm2", "residual.norm2"),
            ("res.conv2", "residual.conv2"),
            ("res.shortcut", "residual.shortcut"),
            ("attn", "attention.projection"),
            ("attn.out_proj", "attention.output"),
            ("conv", "conv"),
        )
    },
    "norm": "norm",
    "final": "output",
}

LAYER_NORM = {
    "time_embed.weight": "time_table",
    **{
        f"{theirs}.{torch_layer}": f"{stage}.{layer}"
        for number, stage in (
            *((str(n), f"stage{n}") for n in range(1, 6)),
            ("_mid", "middle"),
            ("_out", "stage6"),
        )
        for theirs, torch_layer, layer in (
            (f"te{number}", "0", "time.linear1"),
            (f"te{number}", "2", "time.linear2"),
            *(
                (f"b{number}", f"{block}.{torch_layer}", f"block{block + 1}.{layer}")
                for block in range(3)
                for torch_layer, layer in (("ln", "norm"), ("conv1", "conv1"), ("conv2", "conv2"))
            ),
        )
    },
    "down1": "down1",
    "down2": "down2",
    "down3.0": "down3a",
    "down3.2": "down3b",
    "up1.0": "up1a",
    "up1.2": "up1b",
    "up2": "up2",
    "up3": "up3",
    "conv_out": "output",
}

DDPM = {
    "conv_in": "input",
    "time_embedding.linear_1": "time_embedding.linear1",
    "time_embedding.linear_2": "time_embedding.linear2",
    **{
        f"{theirs}.{torch_layer}": f"{ours}.{layer}"
        for theirs, ours in (("down_blocks.{}", "down.{}"), ("mid_block", "middle"), ("up_blocks.{}", "up.{}"))
        for torch_layer, layer in (
            ("resnets.{}.norm1", "residuals.{}.norm1"),
            ("resnets.{}.conv1", "residuals.{}.conv1"),
            ("resnets.{}.time_emb_proj", "residuals.{}.time_linear"),
            ("resnets.{}.norm2", "residuals.{}.norm2"),
            ("resnets.{}.conv2", "residuals.{}.conv2"),
            ("resnets.{}.conv_shortcut", "residuals.{}.shortcut"),
            ("attentions.{}.group_norm", "attentions.{}.norm"),
            ("attentions.{}.to_q", "attentions.{}.query"),
            ("attentions.{}.to_k", "attentions.{}.key"),
            ("attentions.{}.to_v", "attentions.{}.value"),
            ("attentions.{}.to_out.0", "attentions.{}.output"),
            ("downsamplers.0.conv", "downsample.conv"),
            ("upsamplers.0.conv", "upsample.conv"),
        )
    },
    "conv_norm_out": "norm",
    "conv_out": "output",
}

# By the network's class.
TORCH_NAMES = {
    "ConvBlockUNet": CONV_BLOCK,
    "StridedUNet": STRIDED,
    "AttentionUNet": ATTENTION,
    "LayerNormUNet": LAYER_NORM,
    "DDPMUNet": DDPM,
}
