"""PyTorch names of `ddpm_conditional`, as in `torch_names`."""

DDPM_CONDITIONAL = """
    label_emb                             class_embedding
    inc.double_conv.0                     input.conv1
    inc.double_conv.1                     input.norm1
    inc.double_conv.3                     input.conv2
    inc.double_conv.4                     input.norm2
    down{}.maxpool_conv.1.double_conv.0   down{}.block1.conv1
    down{}.maxpool_conv.1.double_conv.1   down{}.block1.norm1
    down{}.maxpool_conv.1.double_conv.3   down{}.block1.conv2
    down{}.maxpool_conv.1.double_conv.4   down{}.block1.norm2
    down{}.maxpool_conv.2.double_conv.0   down{}.block2.conv1
    down{}.maxpool_conv.2.double_conv.1   down{}.block2.norm1
    down{}.maxpool_conv.2.double_conv.3   down{}.block2.conv2
    down{}.maxpool_conv.2.double_conv.4   down{}.block2.norm2
    down{}.emb_layer.1                    down{}.time_linear
    sa{}.ln                               attention{}.norm1
    sa{}.mha                              attention{}.attention.projection
    sa{}.mha.out_proj                     attention{}.attention.output
    sa{}.ff_self.0                        attention{}.norm2
    sa{}.ff_self.1                        attention{}.linear1
    sa{}.ff_self.3                        attention{}.linear2
    bot{}.double_conv.0                   middle{}.conv1
    bot{}.double_conv.1                   middle{}.norm1
    bot{}.double_conv.3                   middle{}.conv2
    bot{}.double_conv.4                   middle{}.norm2
    up{}.conv.0.double_conv.0             up{}.block1.conv1
    up{}.conv.0.double_conv.1             up{}.block1.norm1
    up{}.conv.0.double_conv.3             up{}.block1.conv2
    up{}.conv.0.double_conv.4             up{}.block1.norm2
    up{}.conv.1.double_conv.0             up{}.block2.conv1
    up{}.conv.1.double_conv.1             up{}.block2.norm1
    up{}.conv.1.double_conv.3             up{}.block2.conv2
    up{}.conv.1.double_conv.4             up{}.block2.norm2
    up{}.emb_layer.1                      up{}.time_linear
    outc                                  output
"""
