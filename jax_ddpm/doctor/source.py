"""Where our code stands: the file and the line of the place of a finding."""

import ast
import inspect
import linecache
import os
from collections.abc import Sequence

from jax_ddpm.doctor.records import Call, Finding, arrays_in

LIBRARIES = ("flax", "jax")


def scope(finding: Finding) -> Call | None:
    """Our call whose code makes what differs: the one around the layer, or the module itself for its output."""
    ours = finding.pair.ours
    if finding.target == "output" and finding.place == "glue":
        return ours
    by_number = {call.number: call for call in finding.our_calls}
    return by_number.get(ours.parent)


def source_line(finding: Finding) -> str:
    """ "port.py, line 20" or "the notebook's cell, line 3": where our code calls the layer, or makes it.

    Empty where that is not known.
    """
    around, ours = scope(finding), finding.pair.ours
    if finding.place not in ("glue", "layer") or around is None or type(around.module).__module__.startswith(LIBRARIES):
        return ""
    name = ours.path.removeprefix(around.path).lstrip(".").split(".")[0] if around is not ours else ""
    of_layer = [line_in(around.module, method, made(name)) for method in ("__init__", "setup")]
    of_call = line_in(around.module, "__call__", called(name) if name else returned)
    found = [*of_layer, of_call] if finding.place == "layer" else [of_call]
    return next(filter(None, found), "")


def called(name: str):
    """Whether a node calls self.NAME, or self.NAME[...]."""

    def is_call(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and attribute(node.func) == name

    return is_call


def made(name: str):
    """Whether a node is an assignment to self.NAME."""

    def is_assignment(node: ast.AST) -> bool:
        return isinstance(node, ast.Assign) and name != "" and name in [attribute(target) for target in node.targets]

    return is_assignment


def returned(node: ast.AST) -> bool:
    return isinstance(node, ast.Return)


def attribute(node: ast.AST) -> str:
    """NAME of self.NAME and of self.NAME[...], else empty."""
    while isinstance(node, ast.Subscript):
        node = node.value
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if is_own else ""


def line_in(module, method: str, is_wanted) -> str:
    """The first line of a method of the module's class that holds such a node."""
    code = getattr(inspect.unwrap(getattr(type(module), method, None) or line_in), "__code__", None)
    if code is None or code is line_in.__code__:
        return ""
    linecache.checkcache(code.co_filename)
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))  # notebooks keep the text of their cells there
    except (ValueError, SyntaxError):
        return ""
    file = os.path.basename(code.co_filename) if os.path.exists(code.co_filename) else "the notebook's cell"
    for node in ast.walk(tree):
        starts = [node.lineno, *(line.lineno for line in node.decorator_list)] if is_function(node) else []
        if code.co_firstlineno in starts:
            lines = [part.lineno for part in ast.walk(node) if is_wanted(part)]
            return f"{file}, line {min(lines)}" if lines else ""
    return ""


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


def argument_names(call: Call) -> Sequence[str]:
    """The name of the parameter of __call__ for each of `call.arrays`; empty for arrays inside of tuples and dicts."""
    function = inspect.unwrap(type(call.module).__call__)
    try:
        bound = inspect.signature(function).bind(call.module, *call.inputs, **call.keywords)
    except (TypeError, ValueError):
        return [""] * len(call.arrays)
    names = {id(value): name for name, value in list(bound.arguments.items())[1:]}
    return [names.get(id(array), "") for array in arrays_in([call.inputs, call.keywords])]
