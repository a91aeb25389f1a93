# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration: `make docs`, or `sphinx-build -W -b html docs build/docs`.

Signatures and their descriptions come from the docstrings of the installed packages, the
configuration's tables from ``configs.py``, the citation from ``CITATION.cff``, all as they are when
the pages are built.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import riskernels

sys.path.insert(0, str(Path(__file__).parent))
from _generate import CITATION, CONFIGS, bibtex, configuration_tables

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

nitpicky = True
# Types of other projects, modules of the pipeline that have no page, and names in their docstrings.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|numpy|pathlib|torch)\..+|Tensor"),
    ("py:.*", r"(ris_pytorch_pipeline\.)?(codebooks|configs|optim|peaks|progress)(\..+)?"),
    ("py:.*", r"(ris_pytorch_pipeline\.)?(evaluation_\w+|fisher|tuple\[\w+)(\..+)?"),
    ("py:.*", r"(ris_pytorch_pipeline\.)?source_digest(\..+)?"),
    ("py:.*", r"Checkpoint|Path|Progress|Symbols|Task|ris_pytorch_pipeline\.estimators\._T"),
    ("py:.*", r"\w+(Config|Error)|FREE_TO_CHANGE|FolderWriter|Simulator|_stream_seeds"),
]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _append_generated(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "configuration":
        app.env.note_dependency(str(CONFIGS))
        source[0] += "\n" + configuration_tables(CONFIGS)
    if docname == "operators/index":
        app.env.note_dependency(str(CITATION))
        source[0] += f"\n```bibtex\n{bibtex(CITATION)}```\n"


def setup(app: Sphinx) -> None:
    """Complete the pages that are generated in part while they are read."""
    app.connect("source-read", _append_generated)
