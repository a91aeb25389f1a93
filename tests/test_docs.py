# SPDX-License-Identifier: Apache-2.0
"""The documentation names every environment variable and every configuration key."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ris_pytorch_pipeline.configs import CovarianceConfig, ExperimentConfig, to_dict

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "_generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _environment_key(node: ast.AST) -> ast.expr | None:
    """What ``os.environ[key]``, ``os.environ.get(key)`` or ``os.getenv(key)`` asks for."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        return node.slice
    readers = ("os.environ.get", "os.environ.pop", "os.environ.setdefault", "os.getenv")
    if isinstance(node, ast.Call) and ast.unparse(node.func) in readers:
        return node.args[0]
    return None


def variables_read(path: Path) -> set[str]:
    """Environment variables that a Python file reads.

    Where a name is computed, every constant of the file that looks like a variable counts.
    """
    text = path.read_text()
    if "environ" not in text and "getenv" not in text:
        return set()
    nodes = list(ast.walk(ast.parse(text)))
    keys = [key for key in map(_environment_key, nodes) if key is not None]
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    names = {key.value for key in keys if isinstance(key, ast.Constant)}
    if any(not isinstance(key, ast.Constant) for key in keys):
        names |= {c.value for c in constants if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", str(c.value))}
    return names


def test_every_environment_variable_is_documented() -> None:
    sources = [ROOT / "setup.py", *(ROOT / "riskernels").rglob("*.py")]
    sources += (ROOT / "python").rglob("*.py")
    read = set().union(*map(variables_read, sources))
    for source in (ROOT / "csrc").rglob("*.cpp"):
        read |= set(re.findall(r'getenv\("(\w+)"\)', source.read_text()))
    assert {"RISKERNELS_CUDA", "RISKERNELS_REQUIRE", "RISKERNELS_SIMD", "RIS_TRACEBACK"} <= read
    page = (ROOT / "docs" / "environment.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == read


def test_every_configuration_key_is_in_the_tables(generate: ModuleType) -> None:
    text = generate.configuration_tables(generate.CONFIGS)
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `.+` \| `(.+?)` \|", text, re.MULTILINE)
    written = {(section, key): default for section, key, default in rows}
    defaults = to_dict(ExperimentConfig())
    expected = {(s, key): value for s, part in defaults.items() for key, value in part.items()}
    assert len(rows) == len(written) and written.keys() == expected.keys()
    for key, value in expected.items():
        shown = eval(written[key], {"math": math})
        assert shown == value, key
    assert not re.findall(r"^\| `([\w.]+)` .*\|\s*\|$", text, re.MULTILINE), "keys without meaning"
    sections = [spec.name for spec in dataclasses.fields(ExperimentConfig)]
    assert re.findall("^## (.+)", text, re.MULTILINE) == sections
    assert CovarianceConfig.__doc__ is not None and CovarianceConfig.__doc__ in text


def test_a_table_s_row_holds_type_default_and_docstring(
    generate: ModuleType, tmp_path: Path
) -> None:
    source = tmp_path / "configs.py"
    source.write_text(
        "class PartConfig:\n"
        '    """What it is."""\n'
        "    one: float | None = 2 / 3\n"
        '    """In ``dB``, |x|\n    squared."""\n'
        "    two: int = 4\n"
        "    def check(self): ...\n"
        "class ExperimentConfig:\n"
        "    part: PartConfig = field(default_factory=PartConfig)\n"
    )
    lines = generate.configuration_tables(source).splitlines()
    assert lines[:3] == ["## part", "", "What it is."]
    assert lines[-2:] == [
        r"| `part.one` | `float \| None` | `2 / 3` | In `dB`, \|x\| squared. |",
        "| `part.two` | `int` | `4` |  |",
    ]
