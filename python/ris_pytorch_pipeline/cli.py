# SPDX-License-Identifier: Apache-2.0
"""The command ``ris``: simulate, train, hpo, localize, evaluate, checklist and others.

``--help`` and usage errors answer at once, without importing PyTorch. An error of the user's is one
line on stderr and exit status 2; work that failed (a search without a result, a failed checklist)
is one line and status 1; Ctrl-C is 130 and SIGTERM, where work is saved first, 143.
``RIS_TRACEBACK=1`` in the environment shows the trace of an error instead.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from .commands import CommandError, Hpo, ImportShards, Localize, Simulate, Train
from .configs import ConfigError, ExperimentConfig, load_config
from .evaluation_command import Evaluate
from .hpo import HpoError, HpoOptions, load_best
from .inspection import Checklist, Info, Plot, Profile
from .interrupts import Interrupted
from .recipes import recipe


def _value(args: Sequence[str], option: str) -> str | None:
    """Value of ``--option`` in ``args``, spelled with hyphens or underscores."""
    for position, text in enumerate(args):
        name, _, value = text.partition("=")
        if name.replace("_", "-") == f"--{option}":
            return value or next(iter(args[position + 1 :]), None)
    return None


def _base_experiment(args: Sequence[str]) -> ExperimentConfig:
    """The configuration that the options of a command override."""
    command = args[0] if args else None
    file, best, named = (_value(args, name) for name in ("config", "from-hpo", "recipe"))
    if command == "train" and [file, best, named].count(None) < 2:
        raise ConfigError("train: give one of --config, --from_hpo and --recipe")
    if command == "train" and best is not None:
        return load_best(best)
    if command == "train" and named is not None:
        return recipe(named)
    if command == "checklist" and file is None:
        checkpoint = _value(args, "checkpoint")
        saved = Path(checkpoint or "", "config.json")
        if checkpoint is not None and saved.is_file():
            return load_config(ExperimentConfig, saved)
    if command in ("train", "hpo", "simulate", "checklist") and file is not None:
        return load_config(ExperimentConfig, file)
    return ExperimentConfig()


def _commands(base: ExperimentConfig) -> dict[str, Any]:
    """Every command by name, with its defaults."""
    missing: Any = tyro.MISSING
    system, simulation = base.system, base.simulation
    return {
        "simulate": Simulate(missing, system=system, simulation=simulation),
        "import-shards": ImportShards(missing, missing),
        "train": Train(base),
        "hpo": Hpo(HpoOptions(system=system, simulation=simulation, base=base)),
        "localize": Localize(missing, missing),
        "evaluate": Evaluate(),
        "checklist": Checklist(base),
        "profile": Profile(),
        "plot": Plot(),
        "info": Info(),
    }


def _one_line(text: str) -> str:
    """tyro's boxed message as one line: the body, without the title and the advice below it."""
    lines = text.splitlines()[1:]
    # Where the stream is not UTF-8, tyro draws the box with "-" and "|".
    while lines and not lines[0].strip("│|─- "):
        lines.pop(0)
    rule = next((i for i, line in enumerate(lines) if "──" in line or "-----" in line), len(lines))
    body = " ".join(" ".join(line.strip("│| ") for line in lines[:rule]).split())
    # The value of a whole section has no option name, only one of tyro's own.
    return re.sub(r"Error parsing \S*__tyro\S*: ", "", body) or "the command line cannot be used"


def _parse(args: Sequence[str]) -> Any:
    commands = _commands(_base_experiment(args))
    descriptions = {name: inspect.getdoc(command) or "" for name, command in commands.items()}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                tyro.extras.subcommand_type_from_defaults(commands, descriptions),
                prog="ris",
                description="Simulate, train, tune and localize with a reconfigurable surface.",
                args=args,
                use_underscores=True,
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_one_line(errors.getvalue())} (see ris --help)") from None


def _printable(text: str) -> str:
    """``text`` on one line: what it quotes from a file must not reach the terminal as commands."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ris: warning: {_printable(str(message))}", file=sys.stderr)


def guarded(work: Callable[[], int]) -> int:
    """The status of ``work``; an error becomes one line on stderr and the status that it means."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = work()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        reason = f": {stop}" if str(stop) else ""
        print(f"ris: interrupted{reason}", file=sys.stderr)
        return stop.status if isinstance(stop, Interrupted) else 130
    except BrokenPipeError:
        # The reader of a pipe has left; Python must not try to flush to it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:
        return int(stop.code or 0)
    except (CommandError, HpoError, ValueError, OSError) as error:
        if os.environ.get("RIS_TRACEBACK"):
            raise
        message = _printable(str(error)) or type(error).__name__
        print(f"ris: error: {message}", file=sys.stderr)
        return 1 if isinstance(error, (CommandError, HpoError)) else 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ris`` with ``argv`` (the process's own arguments by default); returns the status."""
    args = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: int(_parse(args).run()))
