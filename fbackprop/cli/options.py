"""Options: defaults, then a TOML file, then flags. A dataclass per verb says what there is; tyro reads the flags."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
from rich.console import Console
from rich.table import Column

from ..errors import Problem, unknown
from ..train.task.config import read_toml

T = TypeVar("T")


def parse(kind: type[T], verb: str, argv: list[str]) -> T:
    """Returns a `kind` of what `argv` gives. Raises Problem for a bad flag, value or file.

    A field named `config` makes --config FILE be read first. --help prints and exits 0. A ~ that the shell left is the home
    directory.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?")
    path = first.parse_known_args(argv)[0].config if "config" in names else None
    given = [] if path is None else [token for flag in _from_toml(kind, Path(path).expanduser()) for token in flag]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(kind, prog=f"fbackprop {verb}", args=[*given, *argv], config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as exit:
        if exit.code == 0:
            sys.exit(0)
        raise Problem(f"{verb}: {_plain(said.getvalue())}. fbackprop {verb} --help lists the options") from None
    homes = {field.name: os.path.expanduser(value) for field in dataclasses.fields(kind)  # type: ignore[arg-type]
             if isinstance(value := getattr(found, field.name), str) and value.startswith("~")}
    return dataclasses.replace(found, **homes)  # type: ignore[type-var]


class Screen(Console):
    """A Console whose reader may go, for example `| head`: rich would exit 1, which is a bad result."""

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(141) from None


def screen(quiet: bool = False) -> Console:
    """Returns stdout for people, wide enough for a table where there is no terminal."""
    return Screen(highlight=False, markup=False, quiet=quiet, width=None if sys.stdout.isatty() else 120, soft_wrap=False)


def numeric(*names: str) -> list[Column]:
    """Returns the columns of a table that hold numbers."""
    return [Column(name, justify="right") for name in names]


def _from_toml(kind: type, path: Path) -> list[list[str]]:
    """Returns the file's keys as flags, each checked against the type of its field."""
    table = read_toml(path)
    types = {name: hint for name, hint in get_type_hints(kind).items() if name not in ("model", "config")}
    flags = []
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == "model":
            continue  # a run's own config.toml names it; the command line decides
        if name not in types:
            raise unknown(f"{path}: key", key, sorted(types))
        wanted = [t for t in get_args(types[name]) or (types[name],) if t is not type(None)]
        if not any(value == t or (isinstance(t, type) and _is_a(value, t)) for t in wanted):
            expected = " or ".join(t.__name__ if isinstance(t, type) else repr(t) for t in wanted)
            raise Problem(f"{path}: {key}: expected {expected}, got {json.dumps(value, default=str)}")
        flag = f"--{name.replace('_', '-')}"
        if not isinstance(value, bool):
            flags.append([flag, str(value)])
        elif value:
            flags.append([flag])
    return flags


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _plain(text: str) -> str:
    """Returns tyro's framed message as one line: what is wrong, and the nearest option."""
    lines = (_unframed(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    words = " ".join([line for line in lines if line][1:])  # the first is the frame's title
    number = re.search(r"Error parsing (--[\w-]+):.*(invalid literal for int|string to float).*?: ('[^']*')", words)
    if number:
        wanted = "a whole number" if "int" in number[2].split() else "a number"
        return f"{number[1]}: expected {wanted}, got {number[3]}"
    return re.split(r"Argument helptext|For full helptext", words)[0].strip(" .")


def _unframed(line: str) -> str:
    line = line.strip("│─╭╮╯╰| ")
    return "" if not line.strip("-+ ") else line.lstrip(" ")
