"""fbackprop compare: the hand-written backward pass against the automatic one, on the same forward."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from ..problem import Problem
from .options import parse, screen

if TYPE_CHECKING:
    from ..explain.compare import Comparison

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Options:
    """Compare the hand-written gradients with jax.grad's on one batch: error, bytes kept, FLOPs, time, for every layer."""

    model: Positional[str]
    """A model's name, or your own file.py:function returning (net, loss, batches)."""
    seed: int = 0
    """Of weights and batch."""
    batch_size: int | None = None
    """Examples in the batch; a model of its own makes its own."""
    data: str | None = None
    """Other data for a model with a name, as for train."""
    pairs: int = 20
    """How often the two arms take turns; medians are told."""
    out: str | None = None
    """Where compare.json and compare.png go, replacing those there; runs/compare by default."""
    text: bool = False
    """No files."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    """Exit code 1 when a gradient is further off than rounding explains."""
    options = parse(Options, "compare", argv)
    if options.pairs < 1 or options.seed < 0:
        raise Problem("--pairs: expected at least 1, --seed: at least 0")

    import jax

    from ..explain.compare import compare
    from ..train.builtin import load_task
    from ..train.config import TrainConfig
    from ..train.log import plain
    from ..verify.verdict import TOLERANCE

    given = {"model": options.model, "seed": options.seed, "batch_size": options.batch_size, "data": options.data}
    task = load_task(TrainConfig.of(**{key: value for key, value in given.items() if value is not None}))
    batch = task.batches(options.seed, 0)
    try:
        params = task.net.init(jax.random.key(options.seed), batch if task.loss is None else batch[0])
        found = compare(task.net, task.loss, params, batch, options.pairs)
    except (TypeError, ValueError) as error:
        raise Problem(f"{options.model}: {error}") from error
    console = screen()
    show(console, found)
    good = found.max_gradient_error <= TOLERANCE["float32"]
    result = plain({"verb": "compare", "model": options.model, "passed": good, **found.as_json})
    for path in [] if options.text else saved(result, found, Path(options.out or "runs/compare")):
        console.print(str(path), soft_wrap=True)
    if options.json:
        print(json.dumps(result))
    return 0 if good else 1


def show(console: Console, found: Comparison) -> None:
    """The layers as a table, then both arms as a whole."""
    right = [Column(name, justify="right") for name in (
        "runs", "error", "kept", "by jax.vjp", "forward", "dx", "dparams", "ms", "by jax.vjp")]
    table = Table("layer", *right, title="each layer by itself: bytes kept, FLOPs, milliseconds there and back")
    for row in found.layers:
        table.add_row(f"{row.path} {row.layer}", str(row.runs), f"{row.error:.0e}", short(row.kept), short(row.auto_kept),
                      *map(short, (row.forward_flops, row.dx_flops, row.dparams_flops)), f"{row.manual_ms:.2f}",
                      f"{row.auto_ms:.2f}")
    console.print(table)
    heads = (Column(name, justify="right") for name in ("ms", "temporary MB", "compile s", "FLOPs"))
    whole = Table("loss and gradients", *heads)
    for name, arm in (("by hand", found.manual), ("jax.grad", found.auto)):
        whole.add_row(name, f"{arm.ms:.2f}", f"{arm.temp_bytes / 1e6:.2f}", f"{arm.compile_s:.2f}", short(arm.flops))
    ratio = found.as_json["ratio"]
    whole.add_row("ratio", *(f"{ratio[key]:.2f}" for key in ("time", "memory", "compile")),
                  f"{found.manual.flops / max(1, found.auto.flops):.2f}")
    console.print(whole)
    console.print(f"largest gradient error {found.max_gradient_error:.1e} (bound 1e-05); loss and gradients take "
                  f"{found.manual.flops / max(1, found.forward_flops):.2f} times the forward's FLOPs")


def short(number: float) -> str:
    """1530000 -> 1.53M."""
    for size, letter in UNITS:
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def saved(result: dict[str, Any], found: Comparison, directory: Path) -> list[Path]:
    """compare.json and, where matplotlib is, compare.png. Raises FileProblem where they cannot be written."""
    from ..train.rundir import writing

    paths = [directory / "compare.json"]
    with writing(paths[0]):
        directory.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    try:
        from ..explain.compare_figure import compare_figure
    except ImportError:
        return paths
    with writing(directory / "compare.png"):
        compare_figure(found, f"{result['model']}: by hand against jax.grad").savefig(directory / "compare.png")
    return [*paths, directory / "compare.png"]
