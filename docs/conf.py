"""Sphinx configuration: MyST pages, API from docstrings, formulas without the network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from pyro_nfvi._version import __version__

project = "pyro_nfvi"
author = "The pyro_nfvi developers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",  # docs/_ext: no script is fetched, so that pages can be read offline
    "laws",  # docs/_ext: the table of laws
    "recipes",  # docs/_ext: the numbers of the method
    "notebooks",  # docs/_ext: a notebook of each page whose blocks run
]
# There is no intersphinx on purpose: a build needs no network.

exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings: list[str] = []
nitpicky = False

autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False  # what is on a page is imported from the folder that the page names
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's and Pyro's own docstrings stay in their own houses
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Shape", "notes_style"),
    ("Units", "notes_style"),
    ("Cost", "notes_style"),
    ("Init", "notes_style"),
    ("Source", "notes_style"),
]

html_theme = "furo"
html_title = f"pyro_nfvi {version}"
html_math_renderer = "mathml"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb6e0", "color-brand-content": "#6cb6e0"},
}
