# SPDX-License-Identifier: Apache-2.0
"""Code blocks of the Markdown pages: what they are, and how Python ones run.

Conventions of the pages:

- ``python`` blocks of a page share one namespace, in order, and run in an empty folder.
- A ``text`` block right after a ``python`` block is what that block prints; ``...`` stands for
  anything, and runs of white space count as one space.
- ``sh`` and ``console`` blocks are commands (in ``console`` those after ``$``); see
  ``doc_commands.py`` for what is checked.
- A comment ``<!-- not run: REASON -->`` above a block says why it cannot run here; it is still
  parsed.

``python tests/doc_blocks.py PAGE`` runs a page's Python in ``docs/figures``, which rewrites the
figures that it makes.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
COMMANDS = ("sh", "console")
NOT_CLOSED = "(no closing fence)"
CODE_DIRECTIVES = ("{code-block}", "{code}", "{sourcecode}")
LANGUAGES: dict[str, Callable[[str], object]] = {
    "python": ast.parse,
    "sh": str,
    "console": str,
    "text": str,
    "json": json.loads,
    "bibtex": str,
    "cpp": str,
}
"""What a fence may be, and what every one of its kind must pass."""

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>[^`]*?)[ \t]*")
_NOT_RUN = re.compile(r"\s*<!-- not run: (?P<reason>.*\S) -->\s*")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    """Line of the page with the block's first line."""
    language: str
    text: str
    not_run: str | None = None
    """Why it cannot run here."""
    output: str | None = None
    """What it prints, where the page says so."""

    @property
    def where(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """The page as it is called from the root of the repository."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def pages() -> list[Path]:
    """Every page whose blocks count."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _fences(page: Path, lines: list[str], first: int) -> Iterator[tuple[Block, int, int]]:
    """Blocks with their first and last line (counted from 0), directives replaced by their body."""
    at = 0
    while at < len(lines):
        start, fence = at, _FENCE.fullmatch(lines[at])
        at += 1
        if fence is None:
            continue
        ticks, info, indent = fence["ticks"], fence["info"].split(), len(fence["indent"])
        closing = re.compile(rf"[ \t]*{ticks[0]}{{{len(ticks)},}}[ \t]*")
        while at < len(lines) and not closing.fullmatch(lines[at]):
            at += 1
        # A block in a list is indented as a whole.
        body = [
            line[indent:] if not line[:indent].strip() else line for line in lines[start + 1 : at]
        ]
        language, line = info[0] if info else "", first + start + 1
        if at == len(lines):
            language = NOT_CLOSED
        elif language in CODE_DIRECTIVES:
            language = info[1] if len(info) > 1 else ""
            while body and re.fullmatch(r":[\w-]+:.*", body[0]):
                body, line = body[1:], line + 1
        elif language.startswith("{"):
            if "code-block::" in "\n".join(body):
                language = f"{language} with a code block in it"
            else:
                yield from _fences(page, body, line)
                at += 1
                continue
        marker = next((text for text in reversed(lines[:start]) if text.strip()), "")
        reason = _NOT_RUN.fullmatch(marker)
        text = "".join(f"{text}\n" for text in body)
        block = Block(page, line + 1, language, text, reason["reason"] if reason else None)
        yield block, first + start, first + at
        at += 1


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order, those of its directives and lists too."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    end = None
    for block, first, last in _fences(page, lines, 0):
        follows = end is not None and not "".join(lines[end + 1 : first]).strip()
        if follows and block.language == "text" and found[-1].language == "python":
            found[-1] = replace(found[-1], output=block.text)
        found.append(block)
        end = last
    return found


def check_language(block: Block) -> None:
    """The block is of a known language and well formed."""
    parse = LANGUAGES.get(block.language)
    if parse is None:
        known = ", ".join(LANGUAGES)
        raise AssertionError(f"{block.where}: fence in {block.language!r}, expected {known}")
    try:
        parse(block.text)
    except ValueError as error:
        raise AssertionError(f"{block.where}: not {block.language}: {error}") from None
    except SyntaxError as error:
        raise AssertionError(f"{block.where}: line {error.lineno}: {error.msg}") from None


def check_output(block: Block, printed: str) -> None:
    """What a block has printed is what the page says it prints."""
    assert block.output is not None
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not doctest.OutputChecker().check_output(block.output, printed, flags):
        raise AssertionError(f"{block.where} printed\n{printed}\nand the page says\n{block.output}")


def run(page: Path) -> list[Block]:
    """Run a page's Python blocks in the current folder; returns those that ran."""
    module = types.ModuleType("documentation")
    # Dataclasses look up the module that they are defined in.
    sys.modules[module.__name__] = module
    ran = [b for b in blocks(page) if b.language == "python" and b.not_run is None]
    try:
        for block in ran:
            # Empty lines before it, so that a traceback shows the page's own line.
            source = "\n" * (block.line - 1) + block.text
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(source, str(page), "exec"), module.__dict__)
            if block.output is not None:
                check_output(block, printed.getvalue())
    finally:
        del sys.modules[module.__name__]
    return ran


if __name__ == "__main__":
    asked = Path(sys.argv[1]).resolve()
    os.chdir(FIGURES)
    run(asked)
