"""Their weights in a copy of ours: when it gets them, and random values for what is constant."""

import math
from collections.abc import Mapping

import numpy as np

from jax_ddpm.doctor.flax_side import FlaxNetwork
from jax_ddpm.doctor.parameters import ParameterPairing
from jax_ddpm.doctor.torch_side import TorchNetwork
from jax_ddpm.doctor.unnamed_arrays import is_constant


def transfer(pairing: ParameterPairing, theirs: Mapping[str, np.ndarray], network: FlaxNetwork) -> None:
    """Fill the paired parameters of our network with theirs, in place."""
    ours = network.parameters()
    values = {}
    for pair in pairing.pairs:
        shapes = [ours[path].shape for path in pair.ours]
        values |= dict(zip(pair.ours, pair.layout.from_torch(theirs[pair.theirs], shapes), strict=True))
        pair.error, pair.remark = 0.0, ""
    network.fill(values)


def unfilled(pairing: ParameterPairing) -> bool:
    return any(pair.remark == "not filled: NaN" for pair in pairing.pairs)


def needs_transfer(pairing: ParameterPairing) -> bool:
    """Whether our weights are not filled, or none is theirs."""
    if unfilled(pairing):
        return True
    telling = [pair for pair in pairing.pairs if not pair.constant]
    return bool(telling) and not any(pair.error <= 1e-3 or pair.remark for pair in telling)


def vary_constants(pairing: ParameterPairing, their: TorchNetwork, our: FlaxNetwork) -> int:
    """Give constant parameters, equal on both sides, random values on both. How many arrays were changed."""
    rng = np.random.default_rng(0)
    theirs = their.parameters()
    trained = {name for name, _ in their.module.named_parameters()}
    changed = set()
    equal = {pair.theirs for pair in pairing.pairs if pair.error <= 1e-6 and not pair.ambiguous}
    for name, array in theirs.items():
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
        if array.dtype != np.float64 or not array.size or not is_constant(array) or not (name in trained or statistic):
            continue
        if name in equal or name in pairing.unpaired_theirs:
            spread = 0.2 if array.ndim < 2 else 1 / math.sqrt(math.prod(array.shape[1:]))
            noise = rng.standard_normal(array.shape) * spread
            array[...] = array * np.exp(noise) if name.endswith("running_var") else array + noise
            changed.add(name)
    some = [pair for pair in pairing.pairs if pair.theirs in changed]
    if some:
        transfer(ParameterPairing(some), theirs, our)
    return len(changed)
