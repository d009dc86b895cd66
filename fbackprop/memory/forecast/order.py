"""order: the order in which XLA on a CPU runs the equations of a loop's body, foretold.

Of those that are ready, the one that frees most bytes or takes fewest: small things come early, and stay.

Source    the list scheduler of XLA, xla/service/hlo_memory_scheduler.cc. XLA takes the best of three schedulers; outside of
          loops the order in which the rules are written has told its bytes better
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from .traced import Equation, Value


def listed(equations: Sequence[Equation], takes: Mapping[Equation, int], kept: Collection[Value]) -> list[Equation]:
    """`equations` in that order. takes: the bytes each fills; kept: what is never freed."""
    makers = {value: equation for equation in equations for value in equation.outputs}
    reads = {equation: [value for value in equation.reads() if value in makers] for equation in equations}
    readers: dict[Value, list[Equation]] = {value: [] for value in makers}
    for equation, values in reads.items():
        for value in values:
            readers[value].append(equation)
    unread = {value: len(those) + (value in kept) for value, those in readers.items()}
    missing = {equation: len({makers[value] for value in values}) for equation, values in reads.items()}
    then = {equation: {reader: None for value in equation.outputs for reader in readers[value]} for equation in equations}

    def worth(equation: Equation) -> tuple[int, int]:
        freed = sum(value.size for value in reads[equation] if unread[value] == 1)
        return freed - takes[equation], len(then[equation])

    ready = [equation for equation in equations if not missing[equation]]
    found = []
    while ready:
        best = max(reversed(ready), key=worth)  # of equals the one that has been ready for the shortest time
        ready.remove(best)
        found.append(best)
        for value in reads[best]:
            unread[value] -= 1
        for equation in then[best]:
            missing[equation] -= 1
        ready += [equation for equation in then[best] if not missing[equation]]
    return found
