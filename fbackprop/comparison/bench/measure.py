"""Programs in turns, each in a fresh process; medians, and ratios by hand over others, in pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from ...errors import Failure

Say = Callable[[str], None]


@dataclass
class Point:
    """One setting of one peer, measured `len(ms)` times; ms: medians of a process each. plan: what a planned one has chosen."""

    peer: str
    name: str
    ms: list[float] = field(default_factory=list)
    compile_s: list[float] = field(default_factory=list)
    temp_mb: Any = None
    peak_mb: float | None = None
    value: float = float("nan")
    plan: dict[str, Any] | None = None

    @property
    def time(self) -> float:
        return median(self.ms)

    @property
    def as_json(self) -> dict[str, Any]:
        """ms: the median; spread: its largest over its smallest."""
        found = {"point": self.name, "ms": self.time, "spread": max(self.ms) / min(self.ms), "temp_mb": self.temp_mb,
                 "compile_s": median(self.compile_s), "value": self.value}
        return {**found, **{key: each for key, each in (("peak_mb", self.peak_mb), ("plan", self.plan)) if each is not None}}


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What one process says. Raises Failure with its last line where it says nothing: out of memory, a peer that broke."""
    command = [sys.executable, "-m", "fbackprop.comparison.bench.process", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        what = " ".join(str(request[key]) for key in ("work", "peer", "point") if key in request)
        raise Failure(f"bench {what}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(work: str, points: list[Point], rounds: int, seconds: float, seed: int, step: bool,
             say: Say) -> None:
    """Every point once a round, forwards and backwards alternately, so that a drift of the machine falls on all alike."""
    for turn in range(rounds):
        for point in points[:: 1 if turn % 2 == 0 else -1]:
            say(f"{work}, round {turn + 1} of {rounds}: {point.peer} {point.name}")
            found = ask({"work": work, "peer": point.peer, "point": point.name, "plan": point.plan, "seed": seed,
                         "seconds": seconds, "step": step})
            point.ms.append(found["ms"])
            point.compile_s.append(found["compile_s"])
            point.temp_mb, point.peak_mb, point.value = found["temp_mb"], found.get("peak_mb"), found["value"]


def ratio(a: Point, b: Point, figure: Literal["ms", "compile_s"] = "ms") -> float:
    """Median over the rounds of a's figure over b's."""
    return median(x / y for x, y in zip(getattr(a, figure), getattr(b, figure)))


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in time and memory at once, the quickest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.time, p.temp_mb)):
        if not best or point.temp_mb < best[-1].temp_mb:
            best.append(point)
    return best


def within(points: Iterable[Point], mb: float) -> Point | None:
    """The quickest that needs no more than this."""
    return min((p for p in points if p.temp_mb <= mb), key=lambda p: p.time, default=None)


def against_tuned(mine: list[Point], tuned: list[Point]) -> dict[str, Any]:
    """time_at_equal_memory: for each point of the tuned frontier the quickest of mine within its memory over it, the largest of
    these ratios; None where one is out of reach. fastest: the same for the quickest tuned point alone. least_memory: the least
    of mine over the least of theirs.
    """
    pairs = [(within(mine, point.temp_mb), point) for point in frontier(tuned)]
    ratios = [ratio(own, point) if own else None for own, point in pairs]
    return {"time_at_equal_memory": None if None in ratios else max(each for each in ratios if each), "fastest": ratios[0],
            "least_memory": min(p.temp_mb for p in mine) / min(p.temp_mb for p in tuned)}
