"""PyTorch names of `simple_unet`, as in `torch_names`."""

SIMPLE_UNET = """
    time_mlp.1            time_embedding.linear
    class_embedding       class_embedding
    conv0                 input
    downs.{}.time_mlp     down.{}.time_linear
    downs.{}.conv1        down.{}.conv1
    downs.{}.transform    down.{}.resample
    downs.{}.conv2        down.{}.conv2
    downs.{}.bnorm1       down.{}.norm1
    downs.{}.bnorm2       down.{}.norm2
    ups.{}.time_mlp       up.{}.time_linear
    ups.{}.conv1          up.{}.conv1
    ups.{}.transform      up.{}.resample
    ups.{}.conv2          up.{}.conv2
    ups.{}.bnorm1         up.{}.norm1
    ups.{}.bnorm2         up.{}.norm2
    output                output
"""
