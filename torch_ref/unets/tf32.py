"""Networks whose products and convolutions are computed in TF32 on GPUs, by PyTorch's flags of the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def set_tf32(of_matmul: bool, of_cudnn: bool) -> None:
    """Whether GPUs compute matrix products and convolutions of float32 in TF32, in the whole process. CPUs never do."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = of_matmul, of_cudnn


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Context manager: if `on`, GPUs compute products of float32 in TF32, else in float32.

    The flags are those of the whole process. A backward pass obeys them, too, when it runs.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_tf32(on, on)
    try:
        yield
    finally:
        set_tf32(*before)


def in_tf32(network: nn.Module) -> nn.Module:
    """Make every call of the network compute its products in TF32, in place. Copies of it do so, too.

    A backward pass needs `tf32(True)` around it. So do the calls of torch.compile's and torch.export's programs, which
    cannot change the flags.
    """
    network.register_forward_pre_hook(begin_tf32)
    network.register_forward_hook(end_tf32, always_call=True)
    return network


def begin_tf32(network: nn.Module, arguments: tuple) -> None:
    if not torch.compiler.is_compiling():
        network.tf32_of_the_call = tf32(True)
        network.tf32_of_the_call.__enter__()


def end_tf32(network: nn.Module, arguments: tuple, prediction) -> None:
    if not torch.compiler.is_compiling():
        network.tf32_of_the_call.__exit__(None, None, None)
        del network.tf32_of_the_call
