"""Operations over axes that are no modules: softmax, and normalisation without parameters.

The one that gives theirs and the one that gives ours, from the same array, are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jax_ddpm.doctor.causes.expression import Node
from jax_ddpm.doctor.causes.hypothesis import Hypothesis, number
from jax_ddpm.doctor.records import relative_error

NEWEST = 8
"""How many of the newest arrays are tried."""
EPSILONS = {
    "softmax": (0.0,),
    "division by the norm": (1e-12, 1e-8, 1e-6, 1e-5),
    "layer norm": (1e-5, 1e-6, 1e-8, 1e-12, 1e-3),
    "RMS norm": (1e-6, 1e-5, 1e-8, 1e-12),
}
AXES = {  # of arrays in their layout: by the number of axes
    4: {"channels": (1,), "height": (2,), "width": (3,), "pixels": (2, 3), "channels and pixels": (1, 2, 3)},
    3: {"channels": (2,), "tokens": (1,), "channels and tokens": (1, 2)},
    2: {"channels": (1,), "images": (0,)},
}
OURS = {  # the same axes in our layout
    4: {"channels": "-1", "height": "1", "width": "2", "pixels": "(1, 2)", "channels and pixels": "(1, 2, 3)"},
    3: {"channels": "-1", "tokens": "1", "channels and tokens": "(1, 2)"},
    2: {"channels": "-1", "images": "0"},
}
CODE = {
    "softmax": "jax.nn.softmax(x, axis={axes})",
    "division by the norm": "x / jnp.maximum(jnp.linalg.norm(x, axis={axes}, keepdims=True), {epsilon})",
    "layer norm": "(x - mean) / jnp.sqrt(var + {epsilon}) with mean and var over axis={axes}",
    "RMS norm": "x / jnp.sqrt(jnp.mean(x**2, axis={axes}, keepdims=True) + {epsilon})",
}


@dataclass(frozen=True)
class Operation:
    kind: str
    over: str
    epsilon: float = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        axes = AXES[x.ndim][self.over]
        if self.kind == "softmax":
            powers = np.exp(x - x.max(axes, keepdims=True))
            return powers / powers.sum(axes, keepdims=True)
        if self.kind == "division by the norm":
            return x / np.maximum(np.sqrt(np.square(x).sum(axes, keepdims=True)), self.epsilon)
        centred = x - x.mean(axes, keepdims=True) if self.kind == "layer norm" else x
        return centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + self.epsilon)

    def said(self) -> str:
        epsilon = f" with epsilon {number(self.epsilon)}" if self.kind in ("layer norm", "RMS norm") else ""
        return f"{self.kind} over the {self.over}{epsilon}"

    def written(self, ndim: int) -> str:
        return CODE[self.kind].format(axes=OURS[ndim][self.over], epsilon=number(self.epsilon))


def read_off(x: np.ndarray, y: np.ndarray) -> Operation | None:
    """The operation that gives y from x, or None."""
    for kind, epsilons in EPSILONS.items():
        for over in AXES.get(x.ndim, ()):
            for epsilon in epsilons:
                operation = Operation(kind, over, epsilon)
                if relative_error(operation(x), y) < 1e-9:
                    return operation
    return None


def hypotheses(theirs: np.ndarray, ours: np.ndarray, materials: Sequence[Node]) -> Iterator[Hypothesis]:
    """One of the newest arrays goes through another operation in ours, or through none."""
    for node in [node for node in materials if node.value.shape == theirs.shape][:NEWEST]:
        x = node.value
        wanted = read_off(x, theirs)
        if wanted is None or ours.shape != theirs.shape:
            continue
        mend = f"Write {wanted.written(x.ndim)} for x = {node.written()}."
        if relative_error(x, ours) < 1e-9:
            says = f"ours leaves out the {wanted.said()} of {node.said()}"
            yield Hypothesis("operation_missing", says, mend, lambda *_, x=x: x)
        got = read_off(x, ours)
        if got is not None and got != wanted:
            name = "operation" if got.kind != wanted.kind else "axes" if got.over != wanted.over else "epsilon"
            name = "softmax_axis" if name == "axes" and wanted.kind == "softmax" else name
            says = f"ours is the {got.said()} of {node.said()}, theirs the {wanted.said()}"
            yield Hypothesis(name, says, mend, lambda *_, x=x, got=got: got(x))
