"""PyTorch names of `superminddpm`, as in `torch_names`."""

SUPERMINDDPM = """
    conv.{}.0    layers.{}.conv
    conv.{}.1    layers.{}.norm
    conv.{}      layers.{}
"""
