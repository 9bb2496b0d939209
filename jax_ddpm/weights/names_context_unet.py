"""PyTorch names of `context_unet`, as in `torch_names`."""

CONTEXT_UNET = """
    init_conv.conv1.0          input.conv1
    init_conv.conv1.1          input.norm1
    init_conv.conv2.0          input.conv2
    init_conv.conv2.1          input.norm2
    down{}.model.0.conv1.0     down{}.conv1
    down{}.model.0.conv1.1     down{}.norm1
    down{}.model.0.conv2.0     down{}.conv2
    down{}.model.0.conv2.1     down{}.norm2
    timeembed{}.model.0        time_embedding{}.linear1
    timeembed{}.model.2        time_embedding{}.linear2
    contextembed{}.model.0     context_embedding{}.linear1
    contextembed{}.model.2     context_embedding{}.linear2
    up0.0                      up0
    up0.1                      up_norm
    up{}.model.0               up{}.conv
    up{}.model.1.conv1.0       up{}.block1.conv1
    up{}.model.1.conv1.1       up{}.block1.norm1
    up{}.model.1.conv2.0       up{}.block1.conv2
    up{}.model.1.conv2.1       up{}.block1.norm2
    up{}.model.2.conv1.0       up{}.block2.conv1
    up{}.model.2.conv1.1       up{}.block2.norm1
    up{}.model.2.conv2.0       up{}.block2.conv2
    up{}.model.2.conv2.1       up{}.block2.norm2
    out.0                      output1
    out.1                      output_norm
    out.3                      output2
"""
