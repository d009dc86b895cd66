"""fbackprop compare: the hand-written backward pass against the automatic one, on the same forward."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from ..errors import Failure, Problem, as_problem
from .bench import show as show_benchmark
from .options import numeric, parse, screen

if TYPE_CHECKING:
    from ..comparison.bench.benchmark import Benchmark
    from ..comparison.costs import Comparison
    from ..layer import Layer

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Options:
    """Compare the hand-written gradients with jax.grad's on one batch: error, bytes kept, FLOPs, time, for every layer."""

    model: Positional[str]
    """A model's name, or your own file.py:function returning (net, loss, batches). With --against a
    work of bench: your own, or in a checkout mlp, cnn, resnet, lstm, gpt, gpt50k, gpt2-124m."""
    against: str = ""
    """Draw the frontier, time against memory, with the points of these peers, by commas: jax, jax-tuned, flax, equinox, torch,
    torch-compile."""
    seed: int = 0
    """Of weights and batch."""
    batch_size: int | None = None
    """Examples in the batch; a model of its own makes its own."""
    data: str | None = None
    """Other data for a model with a name, as for train."""
    pairs: int = 20
    """How often the two programs take turns; medians are told."""
    rounds: int = 3
    """How often every point of the frontier has its turn, in a fresh process; medians are told."""
    seconds: float = 2.0
    """How long a point of the frontier runs in each of its turns, three runs at least."""
    out: str | None = None
    """Where compare.json, compare.png and frontier.png go, replacing those there; runs/compare by default."""
    text: bool = False
    """No files."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    """Returns 1 for a gradient that rounding does not explain. Raises Failure for a peer's loss."""
    options = parse(Options, "compare", argv)
    if options.pairs < 1 or options.rounds < 1 or options.seconds <= 0 or options.seed < 0:
        raise Problem("--pairs, --rounds: expected at least 1, --seconds: above 0, --seed: at least 0")

    from ..comparison.costs import compare
    from ..train.run.log import plain
    from ..verify.verdict import TOLERANCE

    # the frontier first: at this point nothing has taken an accelerator's memory
    frontier = measure_frontier(options) if options.against else None
    with as_problem(f"{options.model}: "):
        take = of_work if options.against else of_model
        net, loss, params, batch, narrow = take(options)
        found = compare(net, loss, params, batch, pairs=options.pairs)
    console = screen()
    bound = None if narrow else TOLERANCE["float32"]  # rounding says nothing of bfloat16
    show(console, found, bound)
    result = {"verb": "compare", "model": options.model, "passed": bound is None or found.max_gradient_error <= bound,
              **found.as_json}
    wrong = ""
    if frontier:
        show_benchmark(console, frontier)
        wrong = frontier.disagreement
        result.update(passed=result["passed"] and not wrong, frontier=frontier.as_json)
    for path in [] if options.text else save(plain(result), found, frontier, Path(options.out or "runs/compare")):
        console.print(str(path), soft_wrap=True)
    if options.json:
        print(json.dumps(plain(result)))
    if wrong:
        raise Failure(f"compare {options.model}: {wrong}")
    return 0 if result["passed"] else 1


def of_model(options: Options) -> tuple[Layer, Layer | None, Any, Any, bool]:
    """Returns (net, loss, params, batch, whether it computes in bfloat16) as train makes them."""
    from ..train.task.builtin import load_task
    from ..train.task.config import TrainConfig
    from ..train.task.recipe import start

    names = ("model", "seed", "batch_size", "data")
    config = TrainConfig.of(**{name: getattr(options, name) for name in names})
    task = load_task(config)
    return task.net, task.loss, *start(task, config), False


def of_work(options: Options) -> tuple[Layer, Layer | None, Any, Any, bool]:
    """Returns the same as bench makes it, so that layers and frontier speak of one net."""
    from ..comparison.bench.work import find_work

    work = find_work(options.model)
    return work.net, work.loss, work.params(options.seed), work.batch(options.seed), work.narrow


def measure_frontier(options: Options) -> Benchmark:
    """Measures the points of the frontier; by hand all there are, the planner's too."""
    from ..comparison.bench.benchmark import benchmark, peers_of

    if options.batch_size is not None or options.data is not None:
        raise Problem("--batch-size, --data: expected none with --against, for a work of bench has its own batch")
    with Console(stderr=True, highlight=False).status("") as status:
        return benchmark(options.model, peers_of(options.against), True, options.rounds, options.seconds, options.seed,
                         status.update)


def show(console: Console, found: Comparison, bound: float | None) -> None:
    """Prints the layers as a table, then both programs as a whole."""
    heads = numeric("runs", "error", "kept", "by jax.vjp", "forward", "dx", "dparams", "ms", "by jax.vjp")
    table = Table("layer", *heads, title="each layer by itself: bytes kept, FLOPs, milliseconds there and back")
    for row in found.layers:
        table.add_row(f"{row.path} {row.layer}", str(row.runs), f"{row.error:.0e}", short(row.kept), short(row.auto_kept),
                      *map(short, (row.forward_flops, row.dx_flops, row.dparams_flops)), f"{row.manual_ms:.2f}",
                      f"{row.auto_ms:.2f}")
    console.print(table)
    whole = Table("loss and gradients", *numeric("ms", "temporary MB", "compile s", "FLOPs"))
    for name, cost in (("by hand", found.manual), ("jax.grad", found.auto)):
        whole.add_row(name, f"{cost.ms:.2f}", f"{cost.temp_bytes / 1e6:.2f}",
                      f"{cost.compile_s:.2f}", short(cost.flops))
    ratio = found.as_json["ratio"]
    whole.add_row("ratio", *(f"{ratio[key]:.2f}" for key in ("time", "memory", "compile")),
                  f"{found.manual.flops / max(1, found.auto.flops):.2f}")
    console.print(whole)
    allowed = "" if bound is None else f" (bound {bound:.0e})"
    console.print(f"largest gradient error {found.max_gradient_error:.1e}{allowed}; loss and gradients take "
                  f"{found.manual.flops / max(1, found.forward_flops):.2f} times the forward's FLOPs")


def short(number: float) -> str:
    """Returns a number with its unit: 1530000 is 1.53M."""
    for size, letter in UNITS:
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def save(result: dict[str, Any], found: Comparison, frontier: Benchmark | None, directory: Path) -> list[Path]:
    """Writes compare.json and, with matplotlib, the figures. Raises FileProblem where it cannot."""
    from ..train.store.rundir import writing

    paths = [directory / "compare.json"]
    with writing(paths[0]):
        directory.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    try:
        from ..comparison.bench.frontier_figure import frontier_figure
        from ..comparison.figure import compare_figure
    except ImportError:
        return paths
    figures = {"compare.png": compare_figure(found, f"{result['model']}: by hand against jax.grad")}
    if frontier:
        figures["frontier.png"] = frontier_figure(frontier.points, f"{result['model']}: time against memory")
    for name, figure in figures.items():
        paths.append(directory / name)
        with writing(paths[-1]):
            figure.savefig(paths[-1])
    return paths
