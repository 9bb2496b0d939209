"""How Sphinx builds these pages: `sphinx-build -W --keep-going docs build/docs`."""

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # reference.py and docstrings.py; this checkout's jax_ddpm

project = "jax_ddpm"
version = release = importlib.metadata.version("jax-ddpm")
html_title = f"{project} {version}"
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["reference.css"]
smartquotes = False  # --flag is no dash

extensions = [
    "myst_nb",  # the guides are Markdown, read by myst_parser, and notebooks
    "sphinx.ext.autodoc",  # the reference comes from the docstrings
    "sphinx.ext.viewcode",  # each entry links to its source
    "sphinx_copybutton",
    "reference",  # reference.py: which modules are on which page
    "docstrings",  # docstrings.py: how they are read
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
nb_execution_mode = "off"  # the notebooks are shown with the outputs that they hold
nb_merge_streams = True
myst_heading_anchors = 3  # [text](page.md#a-heading), as on GitHub
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output are not copied

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True  # dtype=jnp.float32, not dtype=<class 'jax.numpy.float32'>
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# A link to a name of this package must lead somewhere; names of other packages are shown without a link.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!jax_ddpm\.).*"), ("py:obj", ".*")]
nitpick_ignore_regex += [("py:class", r"jax_ddpm\.report\.figures\.Figure")]  # matplotlib's, shown in notebooks
