# SPDX-License-Identifier: Apache-2.0
"""A digest of the source that an answer depends on, to tell when it was made by other code."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path


def source_digest(*modules: str) -> str | None:
    """SHA-256 of the source of ``modules`` and of what they import, in functions too.

    Imports are followed into the packages of ``modules``, into this one, and to modules in the
    same folder. What is outside, such as PyTorch and the native library, a report names by its
    version. None where a module has no source, as one that is typed in.

    >>> source_digest(__name__) == source_digest(__name__)
    True
    """
    own = [_file(name) for name in modules]
    folders = {file.parent for file in own if file is not None}
    packages = {name.partition(".")[0] for name in (*modules, __name__)}
    waiting, found = list(modules), dict[str, bytes]()
    while waiting:
        name = waiting.pop()
        top, _, inner = name.partition(".")
        # A submodule is looked for by importing its package: not where that is another's.
        if name in found or (inner and top not in packages):
            continue
        file = _file(name)
        if file is None or (top not in packages and file.parent not in folders):
            continue
        found[name] = file.read_bytes()
        waiting += _imports(name, found[name])
    if any(file is None for file in own):
        return None
    digest = hashlib.sha256()
    for name, text in sorted(found.items()):
        digest.update(f"{name}\n{len(text)}\n".encode() + text)
    return digest.hexdigest()


def _file(name: str) -> Path | None:
    """Where a module's source is, without importing the module."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None else None
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


@functools.lru_cache(maxsize=256)
def _imports(name: str, text: bytes) -> tuple[str, ...]:
    """Names of modules, and of what may be modules, that a module's source imports."""
    return tuple(_imported(ast.parse(text), name))


def _imported(tree: ast.AST, name: str) -> Iterator[str]:
    module = sys.modules.get(name)
    is_package = hasattr(module, "__path__")
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
