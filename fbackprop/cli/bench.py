"""fbackprop bench: the hand-written chain against jax.grad, its best settings, and other libraries, on one workload."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from ..problem import Failure, Problem
from .options import parse, screen

if TYPE_CHECKING:
    from ..bench.measure import Point

PEERS = ("jax", "jax-tuned", "flax", "equinox", "torch", "torch-compile")


@dataclass(frozen=True)
class Options:
    """Measure loss and gradients of a workload in alternating fresh processes: time, memory, seconds to compile."""

    work: Positional[str]
    """mlp, cnn, resnet, lstm, gpt, gpt50k, gpt2-124m, or your own file.py:function returning (net, loss, batches)."""
    against: str = "jax"
    """Peers, by commas: jax, jax-tuned, flax, equinox, torch, torch-compile."""
    step: bool = False
    """A whole training step with Adam in place of loss and gradients."""
    rounds: int = 3
    """How often every arm has its turn; medians are told."""
    seconds: float = 2.0
    """How long an arm runs in each of its turns, three runs at least."""
    seed: int = 0
    """Of weights and batch."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    """Exit code 1 when a loss differs from the hand-written one, or a gradient is further off than rounding explains."""
    options = parse(Options, "bench", argv)
    if options.rounds < 1 or options.seconds <= 0 or options.seed < 0:
        raise Problem("--rounds: expected at least 1, --seconds: above 0, --seed: at least 0")
    against = tuple(options.against.split(","))
    for peer in against:
        if peer not in PEERS:
            raise Problem(f"--against {peer!r}: expected some of {', '.join(PEERS)}")

    from ..bench.measure import against_tuned, ask, compile_ratio, in_turns, ratio
    from ..train.log import plain

    points = points_of(options.work, against)
    console, notes = screen(), Console(stderr=True, highlight=False)
    check = ask({"work": options.work, "peer": "check", "seed": options.seed, "seconds": 0})
    peak = ask({"work": options.work, "peer": "peak", "seed": options.seed, "seconds": 1.0})["flops_per_s"]
    with notes.status("") as status:
        in_turns(options.work, points, options.rounds, options.seconds, options.seed, options.step, status.update)
    mine = [p for p in points if p.peer == "manual"]
    first, others = mine[0], {peer: [p for p in points if p.peer == peer] for peer in against}
    ratios: dict[str, dict[str, Any]] = {}
    for peer, theirs in others.items():
        if peer == "jax-tuned":
            ratios[peer] = against_tuned(mine, theirs)
            continue
        ratios[peer] = {"time": ratio(first, theirs[0])}
        if theirs[0].temp_mb is not None:
            ratios[peer]["memory"] = first.temp_mb / theirs[0].temp_mb
            ratios[peer]["compile"] = compile_ratio(first, theirs[0])
    share = lambda p: check["flops"] / (p.time / 1e3) / peak
    show(console, options, points, ratios, check, share)
    told = lambda p: {**p.as_json, "peak_share": share(p)}
    result = {"verb": "bench", "work": options.work, "step": options.step, **check, "peak_flops_per_s": peak,
              "manual": {**told(first), "points": [told(p) for p in mine]},
              "peers": {peer: {**told(theirs[0]), "points": [told(p) for p in theirs]} for peer, theirs in others.items()},
              "ratio": ratios}
    wrong = disagreement(points, check)
    if options.json:
        print(json.dumps(plain({**result, "passed": not wrong})))
    if wrong:
        raise Failure(f"bench {options.work}: {wrong}")
    return 0


def points_of(work: str, against: tuple[str, ...]) -> list[Point]:
    """Every setting to be measured, the hand-written ones first. Raises Problem for a work or a peer that is not there."""
    from ..bench.idiomatic import IDIOMS
    from ..bench.measure import Point
    from ..bench.works import FULL, find_work

    here = find_work(work)
    others = [peer for peer in against if peer not in ("jax", "jax-tuned")]
    if others and work not in IDIOMS:
        raise Problem(f"--against {','.join(others)}: expected jax, for {work} is no peer's. Leave --against out")
    for peer in others:
        name = f"{peer.removesuffix('-compile')}_peer.py"
        if not (Path("experiments") / "peers" / name).exists():
            raise Problem(f"--against {peer}: expected experiments/peers/{name} in the working directory, found none. An "
                          "installed package holds no peers: clone the repository and go to its root")
    settings = list(IDIOMS[work].points) if work in IDIOMS else [FULL]
    tuned = "jax-tuned" in against
    points = [Point("manual", name) for name in (here.points if tuned else [FULL])]
    for peer in against:
        if peer == "jax-tuned":
            points += [Point(peer, name) for name in settings]
        else:
            points.append(Point(peer, settings[0] if peer == "jax" else "idiomatic"))
    return points


def disagreement(points: list[Point], check: dict[str, Any]) -> str:
    """Why the figures do not count; empty where all computed the same."""
    from ..verify.verdict import TOLERANCE

    error, mine = check["gradient_error"], points[0].value
    if error is not None and not error <= TOLERANCE["float32"]:
        return f"gradient error {error:.1e}, above {TOLERANCE['float32']:.0e}"
    allowed = 1e-5 if error is not None else 2e-2  # bfloat16 has 8 bits
    for point in points:
        if not abs(point.value - mine) <= allowed * abs(mine):
            return f"the loss of {point.peer} {point.name} is {point.value:.6g}, by hand {mine:.6g}: not the same computation"
    return ""


def show(console: Console, options: Options, points: list[Point], ratios: dict[str, dict[str, Any]], check: dict[str, Any],
         share: Any) -> None:
    heads = (Column(name, justify="right") for name in ("ms", "spread", "temporary MB", "compile s", "share of peak", "loss"))
    what = "a training step with Adam" if options.step else "loss and gradients"
    table = Table("peer", "setting", *heads, title=f"{options.work}, {what}: {check['device']}, jax {check['jax']}")
    for p in points:
        found = p.as_json
        memory = "" if p.temp_mb is None else f"{p.temp_mb:.1f}"
        table.add_row(p.peer, p.name, f"{p.time:.1f}", f"{found['spread']:.2f}", memory, f"{found['compile_s']:.1f}",
                      f"{share(p):.2f}", f"{p.value:.6f}")
    console.print(table)
    for peer, each in ratios.items():
        said = {name.replace("_", " "): "out of reach" if value is None else f"{value:.2f}" for name, value in each.items()}
        console.print(f"by hand over {peer}: " + ", ".join(f"{name} {value}" for name, value in said.items()))
    if check["gradient_error"] is not None:
        console.print(f"largest gradient error {check['gradient_error']:.1e} (bound 1e-05)")
