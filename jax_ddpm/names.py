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
# By the network's class.
TORCH_NAMES = {"ConvBlockUNet": CONV_BLOCK}
