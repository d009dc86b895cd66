"""A whole benchmark: the points that a request means, all of them measured, and what the figures say of one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import Problem
from .measure import Point, Say, against_tuned, ask, in_turns, ratio

PEERS = ("jax", "jax-tuned", "flax", "equinox", "torch", "torch-compile")


@dataclass
class Benchmark:
    """points: measured, those by hand first. check: the hand-written gradients' error, their FLOPs, and what they ran on.
    peak: FLOPs a second of the device's best product.
    """

    work: str
    step: bool
    points: list[Point]
    check: dict[str, Any]
    peak: float

    @property
    def manual(self) -> list[Point]:
        return [p for p in self.points if p.peer == "manual"]

    @property
    def peers(self) -> dict[str, list[Point]]:
        """The points of the others, by peer."""
        names = dict.fromkeys(p.peer for p in self.points if p.peer != "manual")
        return {name: [p for p in self.points if p.peer == name] for name in names}

    @property
    def ratio(self) -> dict[str, dict[str, Any]]:
        """By hand over every peer; over jax-tuned all points against all."""
        return {peer: against_tuned(self.manual, theirs) if peer == "jax-tuned" else over(self.manual[0], theirs[0])
                for peer, theirs in self.peers.items()}

    def peak_share(self, point: Point) -> float:
        return self.check["flops"] / (point.time / 1e3) / self.peak

    @property
    def as_json(self) -> dict[str, Any]:
        told = lambda p: {**p.as_json, "peak_share": self.peak_share(p)}
        by_peer = {peer: {**told(each[0]), "points": [told(p) for p in each]}
                   for peer, each in {"manual": self.manual, **self.peers}.items()}
        return {"work": self.work, "step": self.step, **self.check, "peak_flops_per_s": self.peak,
                "manual": by_peer.pop("manual"), "peers": by_peer, "ratio": self.ratio}

    @property
    def disagreement(self) -> str:
        """Why the figures do not count; empty where all computed the same."""
        from ...verify.verdict import TOLERANCE

        error, mine = self.check["gradient_error"], self.points[0].value
        if error is not None and not error <= TOLERANCE["float32"]:
            return f"gradient error {error:.1e}, above {TOLERANCE['float32']:.0e}"
        allowed = 1e-5 if error is not None else 2e-2  # bfloat16 has 8 bits
        for p in self.points:
            if not abs(p.value - mine) <= allowed * abs(mine):
                return f"the loss of {p.peer} {p.name} is {p.value:.6g}, by hand {mine:.6g}: not the same computation"
        return ""


def over(mine: Point, theirs: Point) -> dict[str, Any]:
    """One point over another; of time alone where the other has no figure like XLA's temporary bytes."""
    found = {"time": ratio(mine, theirs)}
    if theirs.temp_mb is None:
        return found
    memory = mine.temp_mb / theirs.temp_mb
    return {**found, "memory": memory, "compile": ratio(mine, theirs, "compile_s")}


def peers_of(words: str) -> tuple[str, ...]:
    """Returns the peers that `against` names, by commas. Raises Problem for one that does not exist."""
    peers = tuple(dict.fromkeys(words.split(",")))
    for peer in peers:
        if peer not in PEERS:
            raise Problem(f"`against` {peer!r}: expected some of {', '.join(PEERS)}")
    return peers


def points_of(work: str, peers: tuple[str, ...], every: bool) -> list[Point]:
    """What is to be measured, by hand first: `every` named setting, or the first alone.

    Raises Problem for a work that is not there, or a peer that it does not have.
    """
    from .work import FULL, find_work

    here = find_work(work)
    others = ",".join(peer for peer in peers if peer not in here.peers)
    if others:
        raise Problem(f"`against` {others}: expected {' or '.join(here.peers)}, for {work} is no "
                      f"other peer's. Leave {others} out")
    settings = list(here.settings)
    points = [Point("manual", name) for name in (here.points if every else [FULL])]
    for peer in peers:
        names = settings if peer == "jax-tuned" else settings[:1]
        points += [Point(peer, name) for name in names]
    return points


def benchmark(work: str, peers: tuple[str, ...], every: bool, rounds: int, seconds: float, seed: int, say: Say,
              step: bool = False) -> Benchmark:
    """All points in turns; with `every`, the planner's after those with a name. Raises what `points_of` and `ask` raise."""
    points = points_of(work, peers, every)
    request = {"work": work, "seed": seed, "seconds": 1.0}
    say(f"{work}: the gradients checked, the device's best product")
    check, peak = ask({**request, "peer": "check"}), ask({**request, "peer": "peak"})["flops_per_s"]
    if every:
        say(f"{work}: planning")
        named = sum(p.peer == "manual" for p in points)
        points[named:named] = [Point("manual", **each) for each in ask({**request, "peer": "plans"})["plans"]]
    in_turns(work, points, rounds, seconds, seed, step, say)
    return Benchmark(work, step, points, check, peak)
