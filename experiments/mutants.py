"""Does the checker catch a backward rule with one equation of its jaxpr changed?

Command   python experiments/mutants.py [--count 24] [--seed 0] [--quick] [--json FILE]
Expected  of over 2,000 mutants that change a gradient at least 99 % are called WRONG; every survivor is printed with its reason
Time      about 7 minutes on one core; --quick, every eleventh case, under 60 s

Every case of the table gives up to `count` mutants, of every kind in turn: another primitive, a sign, a constant, an axis, a
dropped term, another order, off by one. stillborn: raises, or another shape. equivalent: changes nothing at three points.
Cases of an empty batch are left out: there is nothing to change. Exit code 1 when the expected result does not come out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict

import jax

from fbackprop.verify.cases import CASES
from fbackprop.verify.mutants import Outcome, try_mutants
from fbackprop.verify.mutations import KINDS

COLUMNS = ("mutants", "stillborn", "equivalent", "caught", "survivor")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="mutants per case at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="every eleventh case")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    began, outcomes = time.perf_counter(), []
    cases = [case for case in CASES if "empty" not in case.note]
    for case in cases[:: 11 if options.quick else 1]:
        outcomes += try_mutants(case, options.count, options.seed)
    by_family, by_kind = defaultdict(Counter), defaultdict(Counter)
    for outcome in outcomes:
        for counts in (by_family[outcome.case.family], by_kind[outcome.mutant.mutation.kind]):
            counts.update(("mutants", outcome.fate))
    table("family", by_family)
    table("kind", {kind: by_kind[kind] for kind in KINDS})
    for outcome in outcomes:
        if outcome.fate == "survivor":
            print(f"survivor: {outcome}")
    result = summary(outcomes) | {"seconds": round(time.perf_counter() - began), "jax": jax.__version__}
    print(json.dumps(result))
    if options.json:
        with open(options.json, "w") as file:
            kept = {fate: [str(o) for o in outcomes if o.fate == fate] for fate in ("survivor", "equivalent", "stillborn")}
            json.dump({**result, "families": by_family, "kinds": by_kind, "lists": kept}, file, indent=2)
    return 0 if result["rate"] >= 0.99 and not result["unexplained"] else 1


def summary(outcomes: list[Outcome]) -> dict:
    fates = Counter(outcome.fate for outcome in outcomes)
    changing = fates["caught"] + fates["survivor"]
    return {
        "mutants": len(outcomes), **{name: fates[name] for name in COLUMNS[1:]},
        "at_first_point": sum(outcome.fate == "caught" and outcome.points == 1 for outcome in outcomes),
        "unexplained": sum(outcome.fate == "survivor" and not outcome.reason for outcome in outcomes),
        "rate": round(fates["caught"] / changing, 5) if changing else 0.0}


def table(what: str, rows: dict[str, Counter]) -> None:
    print(f"{what:14}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name, counts in rows.items():
        print(f"{name:14}" + "".join(f"{counts[column]:12}" for column in COLUMNS))
    print()


if __name__ == "__main__":
    sys.exit(main())
