"""The one table of cases behind every test of a rule, and the mistakes that can be made in one kind of layer.

A public layer, combinator or loss without a row fails a test. Axis sizes differ (2, 3, 5, 7), inputs are normal numbers with
negatives; size-1 and size-0 axes, large logits, and kinks pinned, in cases of their own.
"""

from __future__ import annotations

from . import attention, branch, embedding, layers, losses, norm, recurrent, window
from .case import Bugs, Case

_FAMILIES = (layers, losses, branch, recurrent, norm, embedding, attention, window)

CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
KIND_BUGS: Bugs = {kind: bugs for family in _FAMILIES for kind, bugs in family.BUGS.items()}

__all__ = ["CASES", "KIND_BUGS", "Case"]
