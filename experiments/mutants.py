"""Does the checker catch a backward rule with one equation of its jaxpr changed?

Rows      G2
Command   python experiments/mutants.py [--seed N] [--quick] [--out DIR] [--every 2] [--count 24]
Expected  of the mutants that change a gradient at least 99 % are called WRONG; every survivor is printed with its reason
Time      about 4 minutes on one core with every second case; --every 1 twice that, --quick 8 s

Every case of the table gives up to `count` mutants, of every kind in turn: another primitive, a sign, a constant, an axis, a
dropped term, another order, off by one. stillborn: raises, or another shape. equivalent: changes nothing at three points.
Cases of an empty batch are left out: there is nothing to change. The seed says which of two cases are taken.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict

from lab import Lab, main

from fbackprop.verify.cases import CASES
from fbackprop.verify.mutants import Outcome, try_mutants
from fbackprop.verify.mutations import KINDS

COLUMNS = ("mutants", "stillborn", "equivalent", "caught", "survivor")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=2, help="every n-th case: %(default)s")
    parser.add_argument("--count", type=int, default=24, help="mutants of a case at most: %(default)s")


def experiment(lab: Lab) -> None:
    every, outcomes = lab.pick(lab.options.every, 60), []
    cases = [case for case in CASES if "empty" not in case.note]
    for case in cases[lab.seed % every :: every]:
        outcomes += try_mutants(case, lab.pick(lab.options.count, 12), lab.seed)
    by_family, by_kind = defaultdict(Counter), defaultdict(Counter)
    for outcome in outcomes:
        for counts in (by_family[outcome.case.family], by_kind[outcome.mutant.mutation.kind]):
            counts.update(("mutants", outcome.fate))
    for name, rows in (("family", by_family), ("kind", {kind: by_kind[kind] for kind in KINDS})):
        lab.table((name, *COLUMNS), [(row, *(counts[column] for column in COLUMNS)) for row, counts in rows.items()], name)
    for outcome in outcomes:
        if outcome.fate == "survivor":
            print(f"survivor: {outcome}")
    found = summary(outcomes)
    lab.keep(**found, lists={fate: [str(o) for o in outcomes if o.fate == fate] for fate in COLUMNS[1:] if fate != "caught"})
    lab.expect("share of the mutants that change a gradient called WRONG, at least .99", found["rate"], found["rate"] >= 0.99)
    lab.expect("survivors without a reason: none", found["unexplained"], not found["unexplained"])
    if lab.figure() is not None:
        draw(lab, {kind: counts for kind, counts in by_kind.items() if counts["mutants"]})


def draw(lab: Lab, by_kind: dict[str, Counter]) -> None:
    (ax,) = lab.drawn.axes
    left = [0] * len(by_kind)
    for fate, colour in (("caught", "#0072B2"), ("equivalent", "#bbbbbb"), ("stillborn", "#e5e5e5"), ("survivor", "#D55E00")):
        widths = [counts[fate] for counts in by_kind.values()]
        ax.barh(list(by_kind), widths, left=left, color=colour, label=fate)
        left = [a + b for a, b in zip(left, widths)]
    ax.set(xlabel="mutants", title="rules with one equation changed: what became of them")
    ax.legend()


def summary(outcomes: list[Outcome]) -> dict:
    fates = Counter(outcome.fate for outcome in outcomes)
    changing = fates["caught"] + fates["survivor"]
    return {
        "mutants": len(outcomes), **{name: fates[name] for name in COLUMNS[1:]},
        "at_first_point": sum(outcome.fate == "caught" and outcome.points == 1 for outcome in outcomes),
        "unexplained": sum(outcome.fate == "survivor" and not outcome.reason for outcome in outcomes),
        "rate": round(fates["caught"] / changing, 5) if changing else 0.0}


if __name__ == "__main__":
    sys.exit(main(experiment, add_options=add_options))
