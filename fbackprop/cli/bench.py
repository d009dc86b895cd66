"""fbackprop bench: the hand-written chain against jax.grad, its best settings, and other libraries, on one workload."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from ..errors import Failure, Problem
from .options import parse, screen

if TYPE_CHECKING:
    from ..comparison.bench.benchmark import Benchmark


@dataclass(frozen=True)
class Options:
    """Measure loss and gradients of a workload in alternating fresh processes: time, memory, seconds to compile."""

    work: Positional[str]
    """Your own file.py:function returning (net, loss, batches), or in a checkout of the project
    mlp, cnn, resnet, lstm, gpt, gpt50k, gpt2-124m."""
    against: str = "jax"
    """Peers, by commas: jax, jax-tuned; for a named work flax, equinox, torch, torch-compile."""
    step: bool = False
    """A whole training step with Adam in place of loss and gradients."""
    rounds: int = 3
    """How often every program has its turn; medians are told."""
    seconds: float = 2.0
    """How long a program runs in each of its turns, three runs at least."""
    seed: int = 0
    """Of weights and batch."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    """Exit code 1 when a loss differs from the hand-written one, or a gradient is further off than rounding explains."""
    options = parse(Options, "bench", argv)
    if options.rounds < 1 or options.seconds <= 0 or options.seed < 0:
        raise Problem("--rounds: expected at least 1, --seconds: above 0, --seed: at least 0")

    from ..comparison.bench.benchmark import benchmark, peers_of
    from ..train.run.log import plain

    peers, console = peers_of(options.against), screen()
    with Console(stderr=True, highlight=False).status("") as status:
        found = benchmark(options.work, peers, "jax-tuned" in peers, options.rounds, options.seconds, options.seed,
                          status.update, options.step)
    show(console, found)
    wrong = found.disagreement
    if options.json:
        print(json.dumps(plain({"verb": "bench", **found.as_json, "passed": not wrong})))
    if wrong:
        raise Failure(f"bench {options.work}: {wrong}")
    return 0


def show(console: Console, found: Benchmark) -> None:
    """Every point as a table, then the ratios; compare shows its frontier by it too."""
    heads = (Column(name, justify="right") for name in ("ms", "spread", "temporary MB", "compile s", "share of peak", "loss"))
    what = "a training step with Adam" if found.step else "loss and gradients"
    table = Table("peer", "setting", *heads, title=f"{found.work}, {what}: {found.check['device']}, jax {found.check['jax']}")
    for p in found.points:
        told = p.as_json
        memory = "" if p.temp_mb is None else f"{p.temp_mb:.1f}"
        table.add_row(p.peer, p.name, f"{p.time:.1f}", f"{told['spread']:.2f}", memory, f"{told['compile_s']:.1f}",
                      f"{found.peak_share(p):.2f}", f"{p.value:.6f}")
    console.print(table)
    for peer, each in found.ratio.items():
        said = {name.replace("_", " "): "out of reach" if value is None else f"{value:.2f}" for name, value in each.items()}
        console.print(f"by hand over {peer}: " + ", ".join(f"{name} {value}" for name, value in said.items()))
    if found.check["gradient_error"] is not None:
        console.print(f"largest gradient error {found.check['gradient_error']:.1e} (bound 1e-05)")
