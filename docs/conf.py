# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration: `make docs`, or `sphinx-build -W -b html docs build/docs`.

The operators' and the pipeline's pages come from the docstrings of the installed packages, the
configuration's tables from ``configs.py`` as it is when the pages are built.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import riskernels

sys.path.insert(0, str(Path(__file__).parent))
from _generate import CONFIGS, configuration_tables

project = "riskernels"
author = "The riskernels authors"
project_copyright = "The riskernels authors"
release = version = riskernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_*"]
html_theme = "furo"
html_title = f"riskernels {release}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _append_configuration(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "configuration":
        app.env.note_dependency(str(CONFIGS))
        source[0] += "\n" + configuration_tables(CONFIGS)


def setup(app: Sphinx) -> None:
    """Complete the configuration's page while it is read."""
    app.connect("source-read", _append_configuration)
