"""Gradients of a torch module, as it is and with the gradient stopped at one of the modules inside."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from jax_ddpm.doctor.gradient_rows import INPUT, output_name
from jax_ddpm.doctor.records import Call, map_arrays
from jax_ddpm.doctor.torch_side import TorchNetwork, in_float64, to_torch_tree

MOST = 60
"""Modules inside at which the gradient is stopped, at most."""


def their_gradients(
    their: TorchNetwork, call: Call, weights: np.ndarray, outputs: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Gradients of sum(first output * weights). What the loss does not depend on has gradients of 0.

    Args:
        outputs: {`output_name`: path} of modules inside, the gradients of whose outputs are wanted.

    Returns:
        Gradients by "input 0" (of the array arguments, not of integers), by the name of a parameter in the whole
        network, and by `output_name`.
    """
    import torch

    module = call.module
    named = dict(module.named_parameters())
    prefix = f"{call.path}." if call.path else ""
    leaves: dict[str, torch.Tensor] = {}
    counts = itertools.count()

    def leaf(tensor):
        number = next(counts)
        if not tensor.is_floating_point():
            return tensor
        leaves[f"{INPUT}{number}"] = tensor.requires_grad_()
        return tensor * 1  # a leaf must not be changed in place

    arguments, keywords = (to_torch_tree(tree) for tree in (call.inputs, call.keywords))
    try:
        for parameter in named.values():
            parameter.requires_grad_()
        with in_float64(), torch.enable_grad():
            arguments, keywords = map_arrays((arguments, keywords), leaf, lambda v: isinstance(v, torch.Tensor))
            with recorded_outputs(their, outputs or {}) as recorded:
                output = first_tensor(module(*arguments, **keywords))
            loss = (output * torch.from_numpy(weights)).sum()
            wanted = leaves | {prefix + name: parameter for name, parameter in named.items()} | recorded
            tensors = list(wanted.values())
            found = (
                torch.autograd.grad(loss, tensors, allow_unused=True) if loss.requires_grad else [None] * len(wanted)
            )
    finally:
        for parameter in named.values():
            parameter.requires_grad_(False)
    return {
        name: (torch.zeros_like(tensor) if gradient is None else gradient).detach().numpy()
        for (name, tensor), gradient in zip(wanted.items(), found, strict=True)
    }


@contextmanager
def recorded_outputs(their: TorchNetwork, outputs: Mapping[str, str]) -> Iterator[dict]:
    """The output tensors of modules in a forward pass, by `output_name`."""
    import torch

    found: dict = {}
    counts: dict[str, int] = {}

    def hook(path: str) -> Callable:
        def record(module, arguments, output):
            count = counts.get(path, 0)
            counts[path] = count + 1
            name = output_name(path, count)
            if name not in outputs or not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return output
            found[name] = output if output.requires_grad else output.detach().requires_grad_()
            return found[name] * 1  # the network may change it in place

        return record

    handles = [their.modules[path].register_forward_hook(hook(path), prepend=True) for path in set(outputs.values())]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(output):
    import torch

    found: list = []
    map_arrays(output, found.append, lambda value: isinstance(value, torch.Tensor))
    return found[0]


class TorchGradients:
    """Gradients of one module under changes that stop the gradient inside."""

    def __init__(self, their: TorchNetwork, call: Call, weights: np.ndarray, outputs: Mapping[str, str]):
        self.their, self.call, self.weights, self.outputs = their, call, weights, outputs

    def usual(self) -> dict[str, np.ndarray]:
        return their_gradients(self.their, self.call, self.weights, self.outputs)

    def stopped(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
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

    def with_hook(self, register: Callable, hook: Callable) -> dict[str, np.ndarray]:
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
