# SPDX-License-Identifier: Apache-2.0
"""What the pages hold that is written down elsewhere.

Tables of every configuration key, from the source of ``configs.py``. The source and not the
imported module: there the fields' docstrings still exist, and a default reads as it was written
(``math.pi / 3``). And the citation, from ``CITATION.cff``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "python" / "ris_pytorch_pipeline" / "configs.py"
CITATION = Path(__file__).parents[1] / "CITATION.cff"
ROOT_CLASS = "ExperimentConfig"


@dataclass(frozen=True)
class Field:
    """One field of a configuration class."""

    name: str
    type: str
    default: str
    description: str


def _docstring(statement: ast.stmt | None) -> str:
    """The text of a statement that is nothing but a string, on one line."""
    if (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ):
        return " ".join(statement.value.value.split())
    return ""


def _fields(cls: ast.ClassDef) -> Iterator[Field]:
    for statement, following in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield Field(
                statement.target.id,
                ast.unparse(statement.annotation),
                ast.unparse(statement.value) if statement.value else "required",
                _docstring(following),
            )


def _classes(source: Path) -> dict[str, ast.ClassDef]:
    body = ast.parse(source.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _cell(text: str) -> str:
    """Text of a table's cell; the docstrings' double backquotes are Markdown's single ones."""
    return text.replace("``", "`").replace("|", r"\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def configuration_tables(source: Path) -> str:
    """Markdown: a section and a table for each part of the experiment's configuration."""
    classes = _classes(source)
    lines = []
    for part in _fields(classes[ROOT_CLASS]):
        cls = classes[part.type]
        lines += [f"## {part.name}", "", ast.get_docstring(cls) or "", ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for field in _fields(cls):
            cells = [_code(f"{part.name}.{field.name}"), _code(field.type), _code(field.default)]
            lines.append(f"| {' | '.join([*cells, _cell(field.description)])} |")
        lines.append("")
    return "\n".join(lines)


def bibtex(source: Path) -> str:
    """The software of a citation file as a BibTeX entry."""
    text = source.read_text()
    fields = dict(re.findall(r'^([\w-]+): "?(.+?)"?$', text, re.MULTILINE))
    authors = re.findall(r'^  - name: "?(.+?)"?$', text, re.MULTILINE)
    lines = [
        f"@software{{{fields['title'].partition(':')[0]},",
        f"  title = {{{fields['title']}}},",
        # Names of groups stay whole in braces of their own.
        f"  author = {{{' and '.join(f'{{{author}}}' for author in authors)}}},",
        f"  version = {{{fields['version']}}},",
        f"  year = {{{fields['date-released'][:4]}}},",
        f"  license = {{{fields['license']}}},",
        "}",
    ]
    return "\n".join(lines) + "\n"
