"""Does the checker catch a backward rule with one equation of its jaxpr changed?

Rows      G2 G3
Command   python experiments/mutants.py [--count 24] [--every 2] [--seed N] [--quick] [--out DIR]
Expected  of the mutants that change a gradient at least 99 % are called WRONG; every survivor is printed with its reason
Time      about 4 minutes on one core, --every 1 twice that; --quick, every 60th case and 6 mutants each, 6 s

Every case of the table gives up to `count` mutants, of every kind in turn: another primitive, a sign, a constant, an axis, a
dropped term, another order, off by one. stillborn: raises, or another shape. equivalent: changes nothing at three points.
Cases of an empty batch are left out: there is nothing to change. The seed says with which
case the every-n-th begins. Figure: what became of the mutants of each kind.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict

from lab import Lab, main
from mutation.mutants import try_mutants
from mutation.mutations import KINDS

from fbackprop.verify.cases import CASES

COLUMNS = ("mutants", "stillborn", "equivalent", "caught", "survivor")
COLORS = ("#dddddd", "#9ecae1", "#0072B2", "#D55E00")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=24, help="mutants per case at most: %(default)s")
    parser.add_argument("--every", type=int, default=2, help="every n-th case: %(default)s")


def experiment(lab: Lab) -> None:
    every = lab.pick(lab.options.every, 60)
    cases = [case for case in CASES if "empty" not in case.note][lab.seed % every :: every]
    outcomes = [outcome for case in cases for outcome in try_mutants(case, lab.pick(lab.options.count, 6), lab.seed)]
    by_family, by_kind = defaultdict(Counter), defaultdict(Counter)
    for outcome in outcomes:
        for counts in (by_family[outcome.case.family], by_kind[outcome.mutant.mutation.kind]):
            counts.update(("mutants", outcome.fate))
    for what, counted in (("family", by_family), ("kind", {kind: by_kind[kind] for kind in KINDS})):
        lab.table((what, *COLUMNS), [(name, *(counts[column] for column in COLUMNS)) for name, counts in counted.items()], what)
    for outcome in outcomes:
        if outcome.fate == "survivor":
            print(f"survivor: {outcome}")

    fates = Counter(outcome.fate for outcome in outcomes)
    changing = fates["caught"] + fates["survivor"]
    unexplained = [str(outcome) for outcome in outcomes if outcome.fate == "survivor" and not outcome.reason]
    first = sum(outcome.fate == "caught" and outcome.points == 1 for outcome in outcomes)
    lists = {fate: [str(o) for o in outcomes if o.fate == fate] for fate in ("survivor", "equivalent", "stillborn")}
    lab.keep(mutants=len(outcomes), fates=fates, at_first_point=first, lists=lists)
    lab.expect("share caught of those that change a gradient, and how many", (fates["caught"] / max(changing, 1), changing),
               changing > 0 and fates["caught"] >= 0.99 * changing)
    lab.expect("survivors without a reason", len(unexplained), not unexplained)
    draw(lab, by_kind)


def draw(lab: Lab, by_kind: dict[str, Counter]) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax, left = figure.axes[0], [0] * len(KINDS)
    for fate, color in zip(COLUMNS[1:], COLORS):
        counts = [by_kind[kind][fate] for kind in KINDS]
        ax.barh(KINDS, counts, left=left, color=color, label=fate)
        left = [a + b for a, b in zip(left, counts)]
    ax.invert_yaxis()
    ax.set_xlabel("mutants")
    ax.set_title("What changes a gradient is caught")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    sys.exit(main(experiment, add_options=add_options))
