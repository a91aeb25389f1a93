# SPDX-License-Identifier: Apache-2.0
"""Every code block of the pages runs, and every command that they show exists."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import doc_blocks
import doc_commands
import matplotlib
import numpy as np
import pytest
import torch
from doc_blocks import Block
from matplotlib import pyplot

PAGES = {doc_blocks.name(page): page for page in doc_blocks.pages()}
BLOCKS = [block for page in PAGES.values() for block in doc_blocks.blocks(page)]


def pages_with(*languages: str) -> list[str]:
    """Pages with a block in one of the languages that is not opted out."""
    kept = [b for b in BLOCKS if b.language in languages and b.not_run is None]
    return list(dict.fromkeys(doc_blocks.name(block.page) for block in kept))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a page; what it sets in torch and matplotlib is set back."""
    monkeypatch.chdir(tmp_path)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    matplotlib.use("Agg")
    with matplotlib.rc_context(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield tmp_path
    pyplot.close("all")
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def check_figure(made: Path) -> None:
    """The committed figure of this name is what the code has made, up to the fonts at hand."""
    committed = doc_blocks.FIGURES / made.name
    assert committed.is_file(), f"{made.name}: not committed; run tests/doc_blocks.py"
    old, new = pyplot.imread(committed), pyplot.imread(made)
    assert old.shape == new.shape, made.name
    assert np.abs(old - new).mean() < 0.02, f"{made.name}: not what the code draws"


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_of_a_page_runs(page: str, empty_folder: Path) -> None:
    ran = doc_blocks.run(PAGES[page])
    shown = set(re.findall(r"!\[[^]]*\]\((?:[\w./]*/)?([\w-]+\.png)", PAGES[page].read_text()))
    for image in shown:
        if any(image in block.text for block in ran):
            check_figure(empty_folder / image)


@pytest.mark.parametrize("page", pages_with(*doc_blocks.COMMANDS))
def test_commands_of_a_page_exist(page: str, empty_folder: Path) -> None:
    for block in doc_blocks.blocks(PAGES[page]):
        if block.language in doc_blocks.COMMANDS and block.not_run is None:
            doc_commands.check_block(block)


def test_every_fence_is_of_a_known_language() -> None:
    for block in BLOCKS:
        doc_blocks.check_language(block)


def test_blocks_that_are_not_run_are_listed() -> None:
    """Among the warnings, which every run of the tests prints."""
    for block in BLOCKS:
        if block.not_run is not None:
            assert block.not_run.strip(), f"{block.where} does not say why it is not run"
            warnings.warn(f"{block.where} is not run: {block.not_run}", UserWarning, stacklevel=1)


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_are_found_where_markdown_allows_them(tmp_path: Path) -> None:
    text = (
        "```python\na = 1\n```\n"
        "- item\n\n  ```json\n  {}\n  ```\n"
        "````{note}\nRead\n```sh\nls\n```\n````\n"
        "```{code-block} python\n:caption: two\na + 1\n```\n"
        "~~~text\n```\n~~~\n"
        "<!-- not run: needs a GPU -->\n\n```python\nb = 2\n```\n"
        "    ```\n"
    )
    found = [
        (b.language, b.line, b.text, b.not_run) for b in doc_blocks.blocks(page(tmp_path, text))
    ]
    assert found == [
        ("python", 2, "a = 1\n", None),
        ("json", 7, "{}\n", None),
        ("sh", 12, "ls\n", None),
        ("python", 17, "a + 1\n", None),
        ("text", 20, "```\n", None),
        ("python", 25, "b = 2\n", "needs a GPU"),
        (doc_blocks.NOT_CLOSED, 28, "", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = (\n```\n",
        "```\nx\n```\n",
        "```pyhton\nx\n```\n",
        "```json\n{'a': 1}\n```\n",
        "```text\nx\n",
        "```{eval-rst}\n.. code-block:: python\n\n   x\n```\n",
        "<!-- not run: needs a GPU -->\n```python\nx = (\n```\n",
    ],
)
def test_a_malformed_block_fails(text: str, tmp_path: Path) -> None:
    (block,) = doc_blocks.blocks(page(tmp_path, text))
    with pytest.raises(AssertionError, match=r"page\.md"):
        doc_blocks.check_language(block)


def test_blocks_of_a_page_share_names_and_their_output_is_compared(empty_folder: Path) -> None:
    text = (
        "```python\nx = 2\n```\nand\n"
        "```python\nprint(x / 1, 'a  b')\n```\n\n```text\n2.0 a b\n```\n"
    )
    assert len(doc_blocks.run(page(empty_folder, text))) == 2
    doc_blocks.run(page(empty_folder, text.replace("2.0 a", "2...")))
    with pytest.raises(AssertionError, match=r"printed\n2\.0 a"):
        doc_blocks.run(page(empty_folder, text.replace("2.0 a", "2.1 a")))
    with pytest.raises(NameError):
        doc_blocks.run(page(empty_folder, text.replace("x = 2", "y = 2")))
    with pytest.raises(ZeroDivisionError) as caught:
        doc_blocks.run(page(empty_folder, text.replace("x = 2", "1 / 0")))
    assert caught.traceback[-1].path == empty_folder / "page.md"
    assert caught.traceback[-1].lineno == 1


def test_a_figure_must_be_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doc_blocks, "FIGURES", tmp_path / "committed")
    (tmp_path / "committed").mkdir()
    made = tmp_path / "a.png"
    pyplot.imsave(made, np.zeros((8, 8)), vmin=0, vmax=1)
    with pytest.raises(AssertionError, match="not committed"):
        check_figure(made)
    pyplot.imsave(tmp_path / "committed" / "a.png", np.zeros((8, 8)), vmin=0, vmax=1)
    check_figure(made)
    pyplot.imsave(made, np.ones((8, 8)), vmin=0, vmax=1)
    with pytest.raises(AssertionError, match="not what the code draws"):
        check_figure(made)


def shell(text: str, language: str = "sh") -> Block:
    return Block(doc_blocks.ROOT / "README.md", 1, language, text)


def test_shell_blocks_are_taken_apart() -> None:
    text = "A=1 ris info  # what\ncd x && \\\n  make run | tee log\n\n"
    expected = [["A=1", "ris", "info"], ["cd", "x"], ["make", "run"], ["tee", "log"]]
    assert doc_commands.commands(shell(text)) == expected
    assert doc_commands.commands(shell("$ ris info\nriskernels 1\n", "console")) == [
        ["ris", "info"]
    ]


@pytest.mark.parametrize(
    "command",
    [
        "ris train --config a/config.json --covariance.beta 0.5 --out b",
        "ris train --from_hpo a/best.json --out b",
        "ris --help",
        "python -m ris_pytorch_pipeline.hpo --n_trials 1 --epochs_per_trial 1 --space wide",
        "RISKERNELS_SIMD=avx2 python -m riskernels.info --verbose",
        "python -m bench --op tikhonov_covariance --threads 1 && make docs VENV=x",
        'pip install -e ".[plots,test]"',
        "python -c 'import riskernels'",
        "torchrun --standalone --nproc_per_node=2 -m ris_pytorch_pipeline train --out b",
        "python -m pytest tests/test_docs.py::test_x",
    ],
)
def test_a_command_that_exists_passes(command: str, empty_folder: Path) -> None:
    doc_commands.check_block(shell(command))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ris train --epoch 3", "epoch"),
        ("ris train --covariance.beta two", "two"),
        ("ris trane", "trane"),
        ("python -m riskernels.info --verbos3", "--verbos3"),
        ("python -m riskernels.inf", "no module"),
        ("python -m risk.info", "unknown module"),
        ("python -m bench --threads none", "none"),
        ("python -m pytest tests/test_x.py", "no file"),
        ("python tests/test_x.py", "no file"),
        ("pip install .[plot]", "no extra plot"),
        ("torchrun --nproc=2 -m ris_pytorch_pipeline train --epoch 3", "epoch"),
        ("torchrun --nproc_per_nodes=2 -m ris_pytorch_pipeline train", "nproc_per_nodes"),
        ("torchrun --nproc_per_node=2 train.py", "torchrun without -m"),
        ("make doc", "no target doc"),
        ("make docs PYTHN=x", "no variable PYTHN"),
        ("RISKERNELS_SIMB=avx2 ris info", "no variable RISKERNELS_SIMB"),
        ("rsi info", "unknown command rsi"),
        ("# nothing", "no command"),
    ],
)
def test_a_command_that_does_not_exist_fails(
    command: str, message: str, empty_folder: Path
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        doc_commands.check_block(shell(command))
