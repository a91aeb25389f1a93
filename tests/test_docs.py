# SPDX-License-Identifier: Apache-2.0
"""The documentation names every environment variable, configuration key and operator."""

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

import riskernels
from ris_pytorch_pipeline.configs import CovarianceConfig, ExperimentConfig, to_dict

ROOT = Path(__file__).parents[1]
OPERATORS = ROOT / "docs" / "operators"
SECTIONS = ["Equation", "Derivation", "Gradient", "Shapes and dtypes", "Complexity", "Determinism"]
SECTIONS += ["Which backend when", "Errors", "Numerical notes", "Example", "Citation", "Function"]
LIMITS = [
    # page, what it says, file of the number, the number there
    ("tikhonov_snapshots", "up to M = {}", "triton_kernels/_solve.py", r"^MAX_ANTENNAS = (\d+)"),
    ("tikhonov_covariance", "up to M = {}", "triton_kernels/_solve.py", r"^MAX_ANTENNAS = (\d+)"),
    (
        "tikhonov_covariance",
        "(complex128: M <= {})",
        "../csrc/cuda/fused_scene.cuh",
        r"kFusedAntennas = sizeof\(T\) == 8 \? (\d+)",
    ),
    (
        "tikhonov_snapshots",
        "where M <= {} ",
        "../csrc/cuda/fused_scene.cuh",
        r"kFusedAntennas = sizeof\(T\) == 8 \? \d+ : (\d+)",
    ),
    ("factored_nmse", "up to c = {};", "../csrc/cuda/gram_plan.cuh", r"kGramColumns = (\d+)"),
    ("factored_leakage", "up to c = {};", "../csrc/cuda/gram_plan.cuh", r"kGramColumns = (\d+)"),
    ("subspace_leakage", "up to K = {};", "triton_kernels/_projector.py", r"^MAX_SOURCES = (\d+)"),
    ("factored_leakage", "up to k = {};", "triton_kernels/_projector.py", r"^MAX_SOURCES = (\d+)"),
    (
        "subspace_leakage",
        "beyond {} KiB",
        "../csrc/cuda/subspace_leakage.cuh",
        r"kSharedAlgebra = (\d+) \* 1024",
    ),
    (
        "factored_spectrum",
        "up to r = {};",
        "triton_kernels/factored_spectrum.py",
        r"^MAX_COLUMNS = (\d+)",
    ),
    (
        "hermitian_nmse",
        "B >= {},",
        "triton_kernels/hermitian_nmse.py",
        r"^ENOUGH_SCENES = (\d+)",
    ),
]


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


def test_every_operator_has_its_page() -> None:
    public = [name for name in riskernels.__all__ if name != "__version__"]
    index = (OPERATORS / "index.md").read_text()
    listed = re.search(r"```\{toctree\}\n:maxdepth: 1\n\n(.*?)```", index, re.DOTALL)
    assert listed is not None and sorted(listed[1].split()) == sorted(public)
    for name in public:
        page = (OPERATORS / f"{name}.md").read_text()
        titles = re.findall("^## (.+)", page, re.MULTILINE)
        assert page.startswith(f"# {name}\n") and f"autofunction:: riskernels.{name}\n" in page
        assert name == "use_backend" or titles == SECTIONS, name


@pytest.mark.parametrize(("page", "words", "source", "pattern"), LIMITS)
def test_limits_of_the_backends_are_those_of_the_code(
    page: str, words: str, source: str, pattern: str
) -> None:
    number = re.search(pattern, (ROOT / "riskernels" / source).read_text(), re.MULTILINE)
    assert number is not None
    assert words.format(number[1]) in (OPERATORS / f"{page}.md").read_text()


def test_formulas_are_balanced() -> None:
    """MathJax shows a formula's source where a brace, an environment or a \\right is missing."""
    found = 0
    for page in (*OPERATORS.glob("*.md"), ROOT / "docs" / "numerical_accuracy.md"):
        text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`]*`", "", text)
        assert text.count("$") % 2 == 0, page.name
        for formula in map("".join, re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL)):
            found += 1
            pairs = [(r"(?<!\\){", r"(?<!\\)}"), (r"\\left\b", r"\\right\b")]
            for opening, closing in [*pairs, (r"\\begin\b", r"\\end\b")]:
                counts = len(re.findall(opening, formula)), len(re.findall(closing, formula))
                assert counts[0] == counts[1], f"{page.name}: {formula}"
    assert found > 100


def test_citation_as_bibtex(generate: ModuleType, tmp_path: Path) -> None:
    entry = generate.bibtex(generate.CITATION)
    assert f"version = {{{riskernels.__version__}}}" in entry
    assert "author = {{The riskernels authors}}" in entry
    source = tmp_path / "CITATION.cff"
    source.write_text(
        'title: "a: b"\nauthors:\n  - name: A\n  - name: "B C"\nlicense: MIT\nversion: 2\n'
        'date-released: "2031-01-02"\n'
    )
    assert generate.bibtex(source).splitlines()[:5] == [
        "@software{a,",
        "  title = {a: b},",
        "  author = {{A} and {B C}},",
        "  version = {2},",
        "  year = {2031},",
    ]


def test_no_page_takes_the_place_of_one_that_sphinx_writes():
    own = {"search", "genindex", "py-modindex"}
    assert not own & {page.stem for page in (ROOT / "docs").glob("*.md")}
