"""fbackprop exercise: a file with a complete forward and a blank backward, to be filled in and verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from tyro.conf import Positional

from ..classroom.exercises import EXERCISES
from ..errors import FileProblem, Problem, unknown
from .options import parse, screen


@dataclass(frozen=True)
class Options:
    """Write an exercise: a layer whose backward is yours to write. Without a name: which there are."""

    name: Positional[str | None] = None
    """One of the list."""
    out: str | None = None
    """The file to write (./NAME.py unless given)."""
    force: bool = False
    """Overwrite it."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    options = parse(Options, "exercise", argv)
    facts = _list(options) if options.name is None else _write(options.name, options)
    if options.json:
        print(json.dumps({"verb": "exercise", **facts}))
    return 0


def _list(options: Options) -> dict[str, object]:
    if options.out is not None or options.force:
        raise Problem("exercise: --out and --force: expected with a name. fbackprop exercise lists the names")
    table = Table("exercise", "what is learned", "level", "minutes")
    for exercise in EXERCISES.values():
        table.add_row(exercise.name, exercise.learned, str(exercise.level), str(exercise.minutes))
    console = screen()
    console.print(table)
    console.print("fbackprop exercise dense writes dense.py; fbackprop verify dense.py:layer checks it")
    return {"exercises": [vars(exercise) for exercise in EXERCISES.values()]}


def _write(name: str, options: Options) -> dict[str, object]:
    if name not in EXERCISES:
        raise unknown("exercise", name, EXERCISES)
    file = Path(f"{name}.py" if options.out is None else options.out)
    if file.is_dir():
        raise Problem(f"{file}: expected a file to write, got a directory")
    text = EXERCISES[name].file.read_text(encoding="utf-8").replace(f"{name}.py:layer", f"{file.name}:layer")
    try:
        with file.open("w" if options.force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise Problem(f"{file}: expected a new file, found one. --force overwrites it, --out FILE writes another") from None
    except OSError as error:
        raise FileProblem(f"{file}: expected to write it, got: {error.strerror}") from error
    print(f"{file}: the task is at its top. Check it: fbackprop verify {file}:layer")
    return {"exercise": name, "file": str(file)}
