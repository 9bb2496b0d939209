"""Jaxprs, the programs that JAX traces: those inside an equation, such as the body of a scan."""

from collections.abc import Iterator


def inner_jaxprs(equation) -> Iterator:
    """The jaxprs among an equation's parameters: bodies of loops, branches, and called functions."""
    for value in equation.params.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(each, "jaxpr", each)  # of a ClosedJaxpr
            if hasattr(inner, "eqns"):
                yield inner
