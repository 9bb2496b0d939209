"""A Sphinx extension: docstrings as this package writes them, prose with `code`, or with Google's Args: and Raises:."""

import dataclasses
import re
import sys

from docutils import nodes
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import inspect

import jax_ddpm

CODE = re.compile(r"(`[^`]+`)")
MARKUP = re.compile(r"\\|\||\*(?=\S)|_(?!\w)")  # what reStructuredText would take for more than the character it is
UNION = re.compile(r"~?jaxtyping\.(\w+)\[jaxlib\._jax\.Array, (.*?)\] \| ~?jaxtyping\.\1\[ndarray, \2\]")
LONGEST_VALUE = 60


def setup(app):
    app.connect("autodoc-process-docstring", to_rst)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", keep_fields)
    app.connect("doctree-read", tidy)
    return {"parallel_read_safe": True}


def to_rst(app, what, name, obj, options, lines):
    module = getattr(obj, "__module__", None) or getattr(obj, "__name__", "")
    lines[:] = markup("\n".join(lines), module).split("\n")
    if what not in ("attribute", "property"):  # of which GoogleDocstring takes "Default: T" for type and description
        lines[:] = GoogleDocstring(lines, Config(napoleon_use_rtype=False), app, what, name, obj, options).lines()


def markup(text: str, module: str) -> str:
    """The text in reStructuredText: `code` as code, and as a link where it is a name; all else as it stands there."""
    parts = CODE.split(text)
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [code(part[1:-1], module) for part in parts[1::2]]
    return "".join(parts)


def code(text: str, module: str) -> str:
    """A public name, one of the same module, or `module.name` becomes a link if the reference has it."""
    if text in jax_ddpm.PUBLIC or re.fullmatch(r"[a-z]\w*(\.[A-Za-z]\w*)+", text):
        return f":py:obj:`{text} <jax_ddpm.{text.removeprefix('jax_ddpm.')}>`"
    if text.isidentifier() and callable(getattr(sys.modules.get(module), text, None)):
        return f":py:obj:`{text} <{module}.{text}>`"
    return f"``{text}``"


def signature(app, what, name, obj, options, arguments, returns):
    if what == "class" and dataclasses.is_dataclass(obj):
        return "", None  # its fields follow
    if what == "class" and arguments and arguments.startswith("(*args"):  # those of nnx.Module's metaclass
        own = inspect.signature(obj.__init__, bound_method=True)
        arguments = inspect.stringify_signature(own, unqualified_typehints=True)
    return arguments and as_written(arguments), returns and as_written(returns)


def as_written(types: str) -> str:
    """`Float[Array, "b c"]` as the code has it, not the union that jaxtyping makes of it for both kinds of array."""
    types = UNION.sub(r"\1[Array, \2]", types)
    return re.sub(r"<class '(.*?)'>", r"\1", types).replace("jax.jaxlib._jax.Array", "jax.Array")


def keep_fields(app, what, name, obj, skip, options):
    """A class's fields are shown also where they have no docstring."""
    return False if what == "class" and skip and not name.startswith("_") and not callable(obj) else None


def tidy(app, doctree):
    """Long values, such as a run's settings, are shortened; the -- that Sphinx puts after a parameter is a dash."""
    for node in doctree.findall(addnodes.desc_annotation):
        if node.astext().startswith(" = ") and len(node.astext()) > LONGEST_VALUE:
            node.children = [nodes.Text(re.sub(r"\(.*\)", "(...)", node.astext())[:LONGEST_VALUE])]
    for node in list(doctree.findall(nodes.Text)):
        if node == " -- ":
            node.parent.replace(node, nodes.Text(" \N{EN DASH} "))
