"""Their network: a float64 copy of a torch module, whose calls are recorded with forward hooks."""

import copy
import types
import weakref
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from jax_ddpm.doctor.recording import Recording
from jax_ddpm.doctor.records import Call, arrays_in, map_arrays


class TorchNetwork:
    """A copy of a torch module in float64 on the CPU. The mode (training or not) is that of the original."""

    def __init__(self, module):
        self.module = deep_copy(module).cpu().double()
        self.frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.modules = dict(self.module.named_modules())

    def parameters(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, also those that no file contains. Arrays share memory with the module."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: to_numpy(value, share=True) for name, value in named}

    def record(self, arguments: tuple, keywords: Mapping[str, Any]) -> list[Call]:
        """All calls of one forward pass, the whole network's first. Arguments are NumPy arrays or other values."""
        recorder = Recorder(self.modules)
        with recorder.hooks():
            self.call(self.module, arguments, keywords)
        return recorder.finished()

    def run(self, call: Call, *arrays: np.ndarray) -> np.ndarray:
        """Call one module alone, as in `call` but with these arrays as its array arguments. Its first output array."""
        arguments, keywords = with_arrays(call, arrays)
        output = to_numpy_tree(self.call(call.module, arguments, keywords))
        return first_array(output)

    def observe(self, call: Call) -> dict[str, float]:
        """The largest absolute value of all that a call computes, by name of the float dtype."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        seen: dict[str, float] = {}

        class Observer(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
                output = function(*arguments, **(keywords or {}))
                for value in tree_leaves(output):
                    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                        name = str(value.dtype).removeprefix("torch.")
                        finite = value[torch.isfinite(value)] if not torch.isfinite(value).all() else value
                        seen[name] = max(seen.get(name, 0.0), float(finite.abs().max()) if finite.numel() else 0.0)
                return output

        with Observer():
            self.call(call.module, call.inputs, call.keywords)
        return seen

    def call(self, module, arguments, keywords):
        import torch

        with in_float64(), torch.no_grad(), kept_buffers(module):
            return module(*to_torch_tree(arguments), **to_torch_tree(keywords))


def deep_copy(module):
    """A copy of a module, in which functions that somebody put in place of methods refer to the copy, too."""
    memo: dict = {}
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, types.FunctionType) and value.__closure__:
                cells = tuple(types.CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in value.__closure__)
                function = types.FunctionType(value.__code__, value.__globals__, name, value.__defaults__, cells)
                function.__kwdefaults__ = value.__kwdefaults__
                setattr(part, name, function)
    return copied


@contextmanager
def kept_buffers(module):
    """Buffers that a call in training mode changes, such as BatchNorm's running statistics, get their values back."""
    saved = {name: buffer.clone() for name, buffer in module.named_buffers()} if module.training else {}
    try:
        yield
    finally:
        buffers = dict(module.named_buffers())
        for name, value in saved.items():
            buffers[name].copy_(value)


@contextmanager
def in_float64():
    """Arrays that the code between modules makes, such as frequencies, are float64; random numbers have a fixed seed.

    torch's attention calls the modules inside, which its fast path would skip.
    """
    import torch

    fast_path, default = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_default_dtype(default)


class Recorder:
    """Forward hooks on every module that write a list of calls."""

    def __init__(self, modules: Mapping[str, Any]):
        self.modules, self.recording = modules, Recording()
        self.copies: dict[int, tuple] = {}

    @contextmanager
    def hooks(self):
        handles = []
        for path, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(self.before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self.after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def before(self, path: str) -> Callable:
        def hook(module, arguments, keywords):
            self.recording.begin(path, module, self.numpy_tree(arguments), self.numpy_tree(keywords))

        return hook

    def after(self, module, arguments, keywords, output):
        self.recording.end().output = self.numpy_tree(output)

    def numpy_tree(self, tree):
        return to_numpy_tree(tree, self.copy)

    def copy(self, tensor) -> np.ndarray:
        """A copy as NumPy array, shared while the tensor lives and is not written to."""
        known = self.copies.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            return known[2]
        array = to_numpy(tensor)
        self.copies[id(tensor)] = weakref.ref(tensor), tensor._version, array
        return array

    def finished(self) -> list[Call]:
        """The calls with their parameters. Those of modules that are never called belong to the module around."""
        calls = self.recording.calls
        called = {call.path for call in calls}
        for call in calls:
            call.parameters = own_parameters(call.module, call.path, called)
        return calls


def own_parameters(module, path: str, called: set[str]) -> dict[str, np.ndarray]:
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    own = {name: to_numpy(value, share=True) for name, value in named}
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if inner not in called:
            own |= {f"{name}.{key}": value for key, value in own_parameters(child, inner, called).items()}
    return own


def to_numpy(tensor, share: bool = False) -> np.ndarray:
    """A tensor as NumPy array, floats as float64."""
    import torch

    tensor = tensor.detach().cpu()
    array = (tensor.double() if tensor.is_floating_point() else tensor.resolve_conj().resolve_neg()).numpy()
    return array if share or (array.dtype == np.float64 and tensor.dtype != torch.float64) else array.copy()


def to_numpy_tree(tree, convert=to_numpy):
    import torch

    return map_arrays(tree, convert, lambda value: isinstance(value, torch.Tensor))


def to_torch_tree(tree):
    import torch

    return map_arrays(tree, lambda a: torch.from_numpy(np.array(a)), lambda value: isinstance(value, np.ndarray))


def with_arrays(call: Call, arrays) -> tuple[tuple, dict]:
    """Arguments and keywords of a call with its arrays, in order, replaced. Missing ones stay."""
    rest = iter(arrays)
    return map_arrays((call.inputs, call.keywords), lambda a: next(rest, a), lambda a: isinstance(a, np.ndarray))


def first_array(output) -> np.ndarray | None:
    return next(iter(arrays_in(output)), None)
