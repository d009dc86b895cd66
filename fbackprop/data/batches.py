"""batches: a pure function of (seed, step), so that training can stop and resume at any step.

Shapes    x (N, ...), y (N, ...): any arrays with the same first axis
Raises    ValueError: an argument, such as the batch size, is wrong
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .files import expect

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Batches:
    """`batches(seed, step)` -> (x, y) of `batch_size` rows, made by `shuffled_batches`. A pure function of (seed, step).

    So training can stop and resume at any step, and two runs see the same batches: there is no iterator whose state could
    be lost. Every epoch is a new permutation; the rows left over after `steps_per_epoch` whole batches are dropped, other
    ones in every epoch.
    """

    x: np.ndarray
    y: np.ndarray
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.x) // self.batch_size

    def __call__(self, seed: int, step: int) -> Pair:
        """Raises ValueError for a negative seed or step."""
        seed, step = seed_and_step(seed, step)
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = _permutation(seed, epoch, len(self.x))[batch * self.batch_size:(batch + 1) * self.batch_size]
        return self.x[rows], self.y[rows]


def seed_and_step(seed: int, step: int) -> tuple[int, int]:
    """Both as int. Raises ValueError if one is negative, TypeError if one is no whole number."""
    seed, step = operator.index(seed), operator.index(step)
    expect(seed >= 0 and step >= 0, "batches", "(seed, step)", "both at least 0", (seed, step), error=ValueError)
    return seed, step


@lru_cache(maxsize=4)  # only for speed: consecutive steps share their epoch's permutation
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def shuffled_batches(x: np.ndarray, y: np.ndarray, batch_size: int) -> Batches:
    """Batches of x (N, ...) and y (N, ...): any arrays with the same first axis, not only digits.

    Raises ValueError unless N >= 1, x and y are equally long and 1 <= batch_size <= N.
    """
    rows, where = len(x), "shuffled_batches"
    expect(rows > 0, where, "x", "at least one row", "an empty data set", error=ValueError)
    expect(len(y) == rows, where, "y", f"{rows} rows, as many as x", len(y), error=ValueError)
    expect(1 <= batch_size <= rows, where, "batch_size", f"1 to {rows}, the number of rows", batch_size, error=ValueError)
    return Batches(x, y, operator.index(batch_size))
