"""Prints a file of experiments/accelerator.py as Markdown: device, versions, date, all rows.

    python experiments/accelerator_table.py FILE

The exit code is 2 for a file of another program, 74 for a file that cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from accelerator_file import read

from fbackprop.errors import Problem

HEADS = ("work", "gradients", "setting", "ms", "over jax", "per s", "peak MB", "over jax",
         "temporary MB", "compile s", "share of peak", "gradient difference")
OTHERS = ("layers", "devices")  # rows that are sentences


def markdown(content: dict[str, Any]) -> str:
    """Returns the whole text."""
    rows = content["rows"]
    lines = [*heading(content), "", line_of(HEADS), "|---" * len(HEADS) + "|"]
    works = [row for row in rows if row["name"] not in OTHERS]
    lines += [line_of(cells) for row in works for cells in cells_of(row)]
    lines += ["", *(said for row in rows if row["name"] in OTHERS for said in sentences(row))]
    lines += [f"{row['name']}: {row['state']}, {row.get('why', 'no reason is known')}."
              for row in rows if row["state"] != "done"]
    if content["missing"]:
        lines.append(f"Missing rows: {', '.join(content['missing'])}.")
    return "\n".join(lines).rstrip() + "\n"


def text_of(path: Path) -> str:
    """Returns the text of a file. Raises Problem for a file that is not whole."""
    content = read(path)
    try:
        return markdown(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path}: expected every key of a row, got {type(error).__name__}: {error}. "
                      "Measure the row again") from error


def heading(content: dict[str, Any]) -> Iterator[str]:
    """Yields the device, the versions and the date, then the best matrix product."""
    driver = [f"driver {content['driver']}"] * bool(content["driver"])
    versions = [f"{name} {each}" for name, each in content["versions"].items()]
    commits = dict.fromkeys(row["commit"] for row in content["rows"] if "commit" in row)
    device = f"{content['count']} x {content['device']} ({content['backend']})"
    said = [*driver, content["date"][:10], *versions, *(f"commit {each}" for each in commits)]
    yield ", ".join([device, *said]) + "."
    peaks = [f"{value / 1e12:.3g} TFLOP/s in {name}"
             for name, value in content.get("matmul_peak", {}).items() if name != "why" and value]
    rehearsal = " Small sizes, for a rehearsal." * content["small"]
    yield f"Best matrix product: {', '.join(peaks) or 'not measured'}.{rehearsal}"


def line_of(cells: Sequence[str]) -> str:
    """Returns a line of the table; a pipe inside a cell would end the cell."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def cells_of(row: dict[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of every program of a work."""
    plain = row["arms"].get("jax", {})
    name = f"{row['name']}, {row['dtype']}, {row['batch']} {row['unit']}"
    for program, each in row["arms"].items():
        if "ms" in each:
            cells = [each["setting"], number(each["ms"]), ratio(each, plain, "ms"),
                     number(each["per_s"]), number(each["peak_mb"]), ratio(each, plain, "peak_mb"),
                     number(each["temp_mb"]), number(each["compile_s"]), number(each["peak_share"]),
                     number(each["gradient_difference"], ".1e")]
        else:
            cells = [reason(each), *[""] * (len(HEADS) - 3)]
        yield [name, program, *cells]
        name = ""


def reason(program: dict[str, Any]) -> str:
    """Says why a program has no figures."""
    if "same_as" in program:
        return f"as {program['same_as']}: {program['why']}"
    return program.get("failed") or program.get("missing") or "not measured"


def number(value: float | None, form: str = ".3g") -> str:
    """Returns a number in a few characters; nothing for null."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:{form}}"


def ratio(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> str:
    """Returns a program's figure over that of jax.grad; nothing where either has none."""
    return f"{mine[key] / theirs[key]:.2f}" if mine.get(key) and theirs.get(key) else ""


def sentences(row: dict[str, Any]) -> Iterator[str]:
    """Yields what the row of the layers or of the devices found."""
    programs = row["arms"]
    if "difference" in programs.get("layers", {}):
        found = programs["layers"]
        yield (f"Layers, float32 at the highest precision, against {row['against']}: "
               f"{row['compared']} of {row['layers']} compared, "
               f"largest gradient difference {found['difference']:.1e} ({found['layer']}).")
        yield from (f"Layer {name} failed: {why}." for name, why in row["failed_layers"].items())
    for name, program in programs.items():
        if "ms" in program:
            yield (f"{row['work']} on {name}: {number(program['ms'])} ms, gradient difference "
                   f"{number(program['gradient_difference'], '.1e') or 'not measured'}.")
        elif name != "layers" or "difference" not in program:
            yield f"{row['name']}, {name}: {reason(program)}."


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        if len(words) != 1:
            raise Problem(f"accelerator_table: expected one file, got {len(words)} words. "
                          "Give the file of experiments/accelerator.py")
        print(text_of(Path(words[0])), end="")
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
