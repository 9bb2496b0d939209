"""Gradients of a torch module, as it is and with the gradient stopped at one of the modules inside."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jax_ddpm.doctor.records import Call, map_arrays
from jax_ddpm.doctor.torch_side import TorchNetwork, in_float64, to_torch_tree

MOST = 60
"""Modules inside at which the gradient is stopped, at most."""


@dataclass
class Gradients:
    inputs: list[np.ndarray | None]
    """Of the array arguments; None for integers."""
    parameters: dict[str, np.ndarray]
    """Of all parameters inside, by their names in the whole network."""

    def row(self, name: str) -> np.ndarray:
        """The gradient of a parameter, or of "input 0"."""
        return self.inputs[int(name.removeprefix("input "))] if name.startswith("input ") else self.parameters[name]


def their_gradients(their: TorchNetwork, call: Call, weights: np.ndarray) -> Gradients:
    """Gradients of sum(first output * weights). What the loss does not depend on has gradients of 0."""
    import torch

    module = call.module
    named = dict(module.named_parameters())
    leaves: list = []

    def leaf(tensor):
        if not tensor.is_floating_point():
            leaves.append(None)
            return tensor
        leaves.append(tensor.requires_grad_())
        return tensor * 1  # a leaf must not be changed in place

    arguments, keywords = (to_torch_tree(tree) for tree in (call.inputs, call.keywords))
    try:
        for parameter in named.values():
            parameter.requires_grad_()
        with in_float64(), torch.enable_grad():
            arguments, keywords = map_arrays((arguments, keywords), leaf, lambda v: isinstance(v, torch.Tensor))
            output = first_tensor(module(*arguments, **keywords))
            loss = (output * torch.from_numpy(weights)).sum()
            wanted = [tensor for tensor in leaves if tensor is not None] + list(named.values())
            found = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None] * len(wanted)
    finally:
        for parameter in named.values():
            parameter.requires_grad_(False)
    arrays = iter([(torch.zeros_like(w) if g is None else g).numpy() for g, w in zip(found, wanted, strict=True)])
    inputs = [None if tensor is None else next(arrays) for tensor in leaves]
    prefix = f"{call.path}." if call.path else ""
    return Gradients(inputs, {prefix + name: next(arrays) for name in named})


def first_tensor(output):
    import torch

    found: list = []
    map_arrays(output, found.append, lambda value: isinstance(value, torch.Tensor))
    return found[0]


class TorchGradients:
    """Gradients of one module under changes that stop the gradient inside."""

    def __init__(self, their: TorchNetwork, call: Call, weights: np.ndarray):
        self.their, self.call, self.weights = their, call, weights

    def usual(self) -> Gradients:
        return their_gradients(self.their, self.call, self.weights)

    def stopped(self) -> Iterator[tuple[str, Gradients]]:
        """(what is stopped, gradients) for every module inside."""
        inside = [(name, module) for name, module in self.call.module.named_modules() if name][:MOST]
        prefix = f"{self.call.path}." if self.call.path else ""
        for name, module in inside:
            yield f"behind {prefix}{name}", self.with_hook(module.register_forward_hook, detach_output)
            yield f"before {prefix}{name}", self.with_hook(module.register_forward_pre_hook, detach_input())
        widths = sorted(set(self.widths(inside)))
        for name, module in inside:
            for width in widths:
                for first in (True, False):
                    part = f"{'the first' if first else 'all but the first'} {width} channels of the input of"
                    hook = detach_input(width, first)
                    yield f"of {part} {prefix}{name}", self.with_hook(module.register_forward_pre_hook, hook)

    def widths(self, inside: Sequence) -> Iterator[int]:
        """Numbers of channels of outputs inside, where arrays may have been joined."""
        found = []
        hooks = [m.register_forward_hook(lambda _m, _i, o: found.append(first_tensor(o).shape)) for _, m in inside]
        try:
            self.usual()
        finally:
            for hook in hooks:
                hook.remove()
        yield from {shape[1] for shape in found if len(shape) == 4}

    def with_hook(self, register: Callable, hook: Callable) -> Gradients:
        with hooked(register, hook):
            return self.usual()


@contextmanager
def hooked(register: Callable, hook: Callable):
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def detach_output(module, arguments, output):
    import torch

    return map_arrays(output, lambda tensor: tensor.detach(), lambda value: isinstance(value, torch.Tensor))


def detach_input(width: int = 0, first: bool = True) -> Callable:
    """A hook that detaches a module's inputs, or only the first `width` channels of images or all others."""
    import torch

    def change(tensor):
        if not width:
            return tensor.detach()
        if tensor.ndim != 4 or tensor.shape[1] <= width:
            return tensor
        parts = [tensor[:, :width], tensor[:, width:]]
        parts[0 if first else 1] = parts[0 if first else 1].detach()
        return torch.cat(parts, 1)

    return lambda module, arguments: map_arrays(arguments, change, lambda value: isinstance(value, torch.Tensor))
