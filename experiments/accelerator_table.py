"""Prints a file of experiments/accelerator.py as Markdown: the device, the versions, the date, and one table of all rows.

    python experiments/accelerator_table.py FILE

Exit code 2 for a file that is not of that command, 74 for one that cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from accelerator_file import read

from fbackprop.problem import Problem

HEADS = ("work", "gradients", "setting", "ms", "over jax", "per s", "peak MB", "over jax", "temporary MB", "compile s",
         "share of peak", "gradient difference")


def markdown(content: dict[str, Any]) -> str:
    """Returns the whole text."""
    works = [row for row in content["rows"] if "dtype" in row and row["name"] not in ("layers", "devices")]
    lines = [*heading(content), "", "| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for row in works for cells in cells_of(row)]
    lines += ["", *(line for row in content["rows"] if row not in works for line in said_of(row))]
    lines += [f"{row['name']}: {row['state']}, {row['why']}." for row in content["rows"] if row["state"] != "done"]
    if content["missing"]:
        lines.append(f"Missing rows: {', '.join(content['missing'])}.")
    return "\n".join(lines).rstrip() + "\n"


def heading(content: dict[str, Any]) -> Iterator[str]:
    """Yields what was measured where, by which versions and when."""
    versions = ", ".join(f"{name} {each}" for name, each in content["versions"].items())
    driver = f", driver {content['driver']}" if content["driver"] else ""
    yield f"{content['count']} x {content['device']} ({content['backend']}){driver}, {content['date'][:10]}, {versions}, commit " \
          f"{content['commit'] or 'unknown'}."
    peaks = {key: value for key, value in content.get("matmul_peak", {}).items() if key != "why" and value}
    yield "Best matrix product: " + (", ".join(f"{value / 1e12:.3g} TFLOP/s in {key}" for key, value in peaks.items())
                                     or "not measured") + "." + " Small sizes: a rehearsal." * content["small"]


def cells_of(row: dict[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of every arm of a work."""
    name = f"{row['name']}, {row['dtype']}, {row['batch']} {row['unit']}"
    plain = row["arms"].get("jax", {})
    for arm, each in row["arms"].items():
        first = name if arm == next(iter(row["arms"])) else ""
        if "ms" not in each:
            yield [first, arm, reason(each), *[""] * (len(HEADS) - 3)]
            continue
        yield [first, arm, each["setting"], number(each["ms"]), ratio(each, plain, "ms"), number(each["per_s"]),
               number(each["peak_mb"]), ratio(each, plain, "peak_mb"), number(each["temp_mb"]), number(each["compile_s"]),
               number(each["peak_share"]), number(each["gradient_difference"], ".1e")]


def reason(arm: dict[str, Any]) -> str:
    """Says why an arm has no figures; a pipe in it would end the cell."""
    said = f"as {arm['same_as']}: {arm['why']}" if "same_as" in arm else arm.get("failed") or arm.get("missing") or "unknown"
    return said.replace("|", "/")


def number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else f"{value:,.0f}" if form == ".4g" and value >= 1e4 else f"{value:{form}}"


def ratio(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> str:
    """Returns one arm over jax.grad of the idiomatic version; empty where either has no figure."""
    return f"{mine[key] / theirs[key]:.2f}" if mine.get(key) and theirs.get(key) else ""


def said_of(row: dict[str, Any]) -> Iterator[str]:
    """Yields the sentence of the layers or of the devices."""
    arms = row["arms"]
    if row["name"] == "layers" and "difference" in arms.get("layers", {}):
        yield (f"Layers, float32 at the highest precision, against {row['against']}: {row['compared']} of {row['layers']} compared, "
               f"largest gradient difference {arms['layers']['difference']:.1e} ({arms['layers']['layer']}).")
        yield from (f"Layer {name} failed: {why}." for name, why in row["failed_layers"].items())
    elif row["name"] == "devices":
        one, every = arms.get("one device", {}), arms.get("all devices", {})
        if "ms" in one and "ms" in every:
            yield (f"Devices, {row['work']}: {one['ms']:.4g} ms on one, {every['ms']:.4g} on {row['devices']}, "
                   f"largest gradient difference {number(every['gradient_difference'], '.1e')}.")
        else:
            yield f"Devices, {row['work']}: {reason(every if 'ms' in one else one)}."


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        if len(words) != 1:
            raise Problem(f"accelerator_table: expected one file, got {len(words)}. Give the file of experiments/accelerator.py")
        print(markdown(read(Path(words[0]))), end="")
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
