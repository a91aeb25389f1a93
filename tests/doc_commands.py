# SPDX-License-Identifier: Apache-2.0
"""Commands that the pages show, checked by the parser of the program that they call.

Nothing is run but the parsing: every subcommand and option must exist and every value be accepted.
Files that a page only supposes (``--config results_run/config.json``) are made beforehand.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from unittest import mock

from doc_blocks import ROOT, Block

from ris_pytorch_pipeline import cli, hpo
from ris_pytorch_pipeline.config_io import save_config, to_dict
from ris_pytorch_pipeline.configs import ConfigError, ExperimentConfig

SEPARATORS = {"|", "||", "&&", ";", "&"}
UNCHECKED = {"cd", "git", "mkdir", "source", "sudo"}
"""Commands of other programs, whose arguments are not looked at."""
OTHER_MODULES = {"http.server", "pytest", "venv"}
"""Modules of others that ``python -m`` may run."""


def commands(block: Block) -> list[list[str]]:
    """The simple commands of a shell block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found: list[list[str]] = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


@contextlib.contextmanager
def _only_parsing(arguments: list[str]) -> Iterator[None]:
    """Programs that run meanwhile stop after argparse has accepted their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *args: object, **options: object) -> None:
        parse(parser, *args, **options)  # type: ignore[arg-type]
        raise SystemExit(0)

    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            yield
        except SystemExit as stop:
            if stop.code in (0, None):
                return
            lines = said.getvalue().strip().splitlines() or [str(stop.code)]
            raise AssertionError(lines[-1]) from None
    raise AssertionError("ran without parsing its arguments")


def _suppose(path: str | None, text: str) -> None:
    if path is None or Path(path).exists():
        return
    assert not Path(path).is_absolute(), f"{path} is not in the current folder"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def _option(arguments: list[str], option: str) -> str | None:
    following = [*arguments[1:], None]
    return next((b for a, b in zip(arguments, following, strict=True) if a == option), None)


def check_ris(arguments: list[str]) -> None:
    """``ris ...`` by its own parser."""
    if (config := _option(arguments, "--config")) is not None and not Path(config).exists():
        _suppose(config, "")
        save_config(ExperimentConfig(), config)
    best = {"format": hpo.FORMAT, "config": to_dict(ExperimentConfig())}
    _suppose(_option(arguments, "--from_hpo"), json.dumps(best))
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cli._parse(arguments)
        except ConfigError as error:
            raise AssertionError(str(error)) from None
        except SystemExit as stop:
            assert stop.code in (0, None), "refused"  # --help


def check_module(module: str, arguments: list[str]) -> None:
    """``python -m module ...``."""
    if module == "ris_pytorch_pipeline":
        check_ris(arguments)
    elif module == "ris_pytorch_pipeline.hpo":
        check_ris(["hpo", *arguments])
    elif module == "pip":
        check_pip(arguments)
    elif module in OTHER_MODULES:
        for path in (a for a in arguments if module == "pytest" and a.startswith("tests")):
            assert (ROOT / path.partition("::")[0]).exists(), f"no file {path}"
    else:
        assert module.split(".")[0] in ("bench", "riskernels"), f"unknown module {module}"
        try:
            exists = find_spec(module) is not None
        except ModuleNotFoundError:
            exists = False
        assert exists, f"no module {module}"
        with _only_parsing([module, *arguments]):
            runpy.run_module(module, run_name="__main__")


def check_python(arguments: list[str]) -> None:
    """``python -m ...``, ``python -c ...`` or ``python FILE ...``."""
    assert arguments, "python without anything to run"
    if arguments[0] == "-m":
        check_module(arguments[1], arguments[2:])
    elif arguments[0] == "-c":
        ast.parse(arguments[1])
    else:
        script = ROOT / arguments[0]
        assert script.is_file(), f"no file {arguments[0]}"
        if "ArgumentParser" in script.read_text():
            with _only_parsing([str(script), *arguments[1:]]):
                runpy.run_path(str(script), run_name="__main__")


def _section(title: str) -> str:
    """A table of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    return text.partition(f"[{title}]\n")[2].partition("\n[")[0]


def check_pip(arguments: list[str]) -> None:
    """``pip install``: the extras of this package exist."""
    extras = set(re.findall(r"^(\w+) = \[", _section("project.optional-dependencies"), re.M))
    for argument in arguments:
        if asked := re.fullmatch(r"(?:\.|riskernels)\[([\w,]+)\]", argument):
            missing = set(asked[1].split(",")) - extras
            assert not missing, f"no extra {', '.join(sorted(missing))}"


def check_make(arguments: list[str]) -> None:
    """``make ...``: the targets and variables exist."""
    text = (ROOT / "Makefile").read_text()
    for argument in arguments:
        variable, equals, _ = argument.partition("=")
        if equals:
            assert f"$({variable})" in text, f"the Makefile has no variable {variable}"
        else:
            assert re.search(rf"^{argument}:", text, re.M), f"the Makefile has no target {argument}"


def check_torchrun(arguments: list[str]) -> None:
    """``torchrun ... -m module ...``, by its own parser."""
    from torch.distributed import run

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            asked = run.parse_args(arguments)
    except SystemExit:
        raise AssertionError(said.getvalue().strip().splitlines()[-1]) from None
    assert asked.module, "torchrun without -m"
    check_module(asked.training_script, asked.training_script_args)


def check(words: list[str]) -> None:
    """Raise AssertionError unless the command could be called like this."""
    documented = (ROOT / "docs" / "environment.md").read_text()
    words = words[1:] if words[0] == "export" else words
    while words and (assigned := re.match(r"([A-Z]\w*)=", words[0])):
        own = assigned[1].startswith("RIS")
        assert not own or f"`{assigned[1]}`" in documented, f"no variable {assigned[1]}"
        words = words[1:]
    if not words:
        return
    program, arguments = PurePosixPath(words[0]).name, words[1:]
    checks = {"ris": check_ris, "pip": check_pip, "make": check_make, "python": check_python}
    checks |= {"python3": check_python, "torchrun": check_torchrun}
    if program in checks:
        checks[program](arguments)
    else:
        assert program in UNCHECKED, f"unknown command {program}"


def check_block(block: Block) -> None:
    """Every command of a block."""
    found = commands(block)
    assert found, f"{block.where}: no command"
    for words in found:
        try:
            check(list(words))
        except AssertionError as error:
            raise AssertionError(f"{block.where}: {' '.join(words)}: {error}") from None
