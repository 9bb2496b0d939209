"""Findings made by hand: a torch module beside a function that stands for our layer, or expressions between modules."""

from types import SimpleNamespace

import numpy as np
import torch

from jax_ddpm.doctor.records import Call, Finding, Pair, relative_error
from jax_ddpm.doctor.settings import plain_settings


def numpy(value):
    return value.detach().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def call_of(module, path, inputs, output, number=0):
    named = [*module.named_parameters(), *module.named_buffers()]
    parameters = {name: numpy(value) for name, value in named}
    settings = plain_settings(module)
    return Call(path, type(module).__name__, module, inputs, {}, output, parameters, settings, number=number)


def perturbed(module, seed=0):
    """The module in float64 with parameters that are all different."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for p in [*module.parameters(), *module.buffers()]:
            if p.is_floating_point():
                p.copy_(torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5)
                p.mul_(torch.where(torch.rand(p.shape, generator=generator) < 0.5, -1, 1) if p.ndim > 1 else 1)
    return module


def run(function, inputs):
    with torch.no_grad():
        return numpy(function(*(torch.from_numpy(np.array(x)) for x in inputs)))


def layer(module, ours, *inputs, kind="Layer"):
    """A finding about a torch module. ours: tensors in their layout -> a tensor."""
    theirs, mine = run(module, inputs), run(ours, inputs)
    their_call = call_of(module, "mid.layer", inputs, theirs)
    our_call = Call("mid.layer", kind, SimpleNamespace(), inputs, {}, mine)
    pair = Pair(their_call, our_call)
    error = relative_error(mine, theirs)
    return Finding(
        "layer", pair, error, inputs, inputs, theirs, mine, lambda *a: run(module, a), lambda *a: run(ours, a)
    )


def glue(before, theirs, ours, outer=()):
    """A finding about the input of a module. before: (path, input, output) of modules; outer: the network's inputs."""
    module = torch.nn.Identity()
    pairs = []
    for number, (path, x, y) in enumerate(before, start=1):
        calls = [Call(path, "Layer", module, (x,), {}, y, number=number, parent=0) for _ in range(2)]
        pairs.append(Pair(*calls))
    root = Call("", "Network", module, tuple(outer), {}, None, is_leaf=False)
    number = len(before) + 1
    call = Call("last", "Conv2d", module, (theirs,), {}, theirs, number=number, parent=0)
    pair = Pair(call, Call("last", "Conv", module, (ours,), {}, ours, number=number, parent=0))
    calls = [root, *(p.theirs for p in pairs), call]
    error = relative_error(ours, theirs)
    parent = Pair(root, root)
    arguments = (theirs,), (ours,), theirs, ours, lambda a: a, lambda a: a
    return Finding("glue", pair, error, *arguments, before=pairs, parent=parent, their_calls=calls, our_calls=calls)
