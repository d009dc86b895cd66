"""ratings: seeded low-rank ratings with a known noise floor, or the `u.data` of MovieLens 100k from a path.

Shapes    pairs (N, 2): user and item of a rating; ratings (N,)
Dtypes    pairs int32, users 0..U-1 and items 0..I-1; ratings float32
Units     stars; errors are root mean squares in stars
Raises    DataError: the file is missing, unreadable or wrong, with the line (exit code 74). ValueError: an argument is wrong
Source    generated: mean + user bias + item bias + u . v + noise; u.data: Harper and Konstan 2015, The MovieLens Datasets.
          It may not be passed on, so it is not in the package: https://grouplens.org/datasets/movielens/100k/
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from .batches import Pair
from .files import DataError, expect, read

MEAN, BIAS, TASTE, NOISE = 3.5, 0.4, 0.6, 0.5  # stars: the mean, then standard deviations of a bias, of u . v, of the noise
FEWEST = 10  # ratings: one of ten is for the test
HINT = "Give the path of u.data of MovieLens 100k: user id, item id, rating, timestamp, with tabs between them"

FIELDS = {  # name -> (pattern, in words)
    "user id": (re.compile(rb"(?=0*[1-9])[0-9]{1,9}"), "a whole number from 1"),
    "item id": (re.compile(rb"(?=0*[1-9])[0-9]{1,9}"), "a whole number from 1"),
    "rating": (re.compile(rb"[1-4](\.[0-9]{1,9})?|5(\.0{1,9})?"), "a number from 1 to 5"),
    "timestamp": (re.compile(rb"[0-9]{1,18}"), "a whole number of seconds"),
}


# ---- generated ratings


def generate_ratings(*, users: int = 600, items: int = 400, rank: int = 4, noise: float = NOISE, density: float = 0.4,
                     seed: int = 0) -> Pair:
    """Returns (pairs, ratings) of a share `density` of all users x items: 96,000 by default.

    No pair comes twice; the order is random.

        rating = 3.5 + user bias + item bias + u . v + noise e        u, v of `rank` numbers, e normal

    `noise` is the floor: the RMSE, on ratings kept apart, of a model that knows everything but e. One that learns from
    n ratings a model of p parameters stays about p / (2 n) above it, so the default has 86,400 ratings to train 5000:
    3 %. The ratings are not cut to 1..5 and not rounded: both would blur the floor.
    Raises ValueError unless users, items, rank >= 1, noise >= 0, 0 < density <= 1 and at least one rating results.
    """
    where = "generate_ratings"
    for name, number in (("users", users), ("items", items), ("rank", rank)):
        expect(operator.index(number) >= 1, where, name, "at least 1", number, error=ValueError)
    expect(0 <= noise < np.inf, where, "noise", "a finite number of at least 0", noise, error=ValueError)
    expect(0 < density <= 1, where, "density", "above 0, at most 1", density, error=ValueError)
    count = round(density * users * items)
    expect(count >= 1, where, "ratings", "at least one", f"none of {users} x {items} at density {density}", error=ValueError)
    rng = np.random.default_rng(seed)
    user, item = np.divmod(rng.choice(users * items, count, replace=False), items)
    u, v = rng.normal(size=(users, rank)), rng.normal(0, TASTE / np.sqrt(rank), size=(items, rank))
    stars = MEAN + rng.normal(0, BIAS, users)[user] + rng.normal(0, BIAS, items)[item] + (u[user] * v[item]).sum(axis=1)
    return np.stack([user, item], axis=1).astype(np.int32), (stars + noise * rng.normal(size=count)).astype(np.float32)


# ---- a file of ratings


def load_ratings(path: str | PathLike[str]) -> Pair:
    """Returns (pairs, ratings) of a file like `u.data`, in its order.

    Users and items are numbered from 0 in order of their ids. In MovieLens 100k that is id - 1, and
    there are 943 users, 1682 items, 100,000 ratings. The timestamp is only checked.
    Raises DataError naming the first bad line: fields missing or too many, not a number, an id below 1, a rating outside
    1..5, a pair rated twice.
    """
    path = Path(path)
    lines = read(path, HINT).split(b"\n")
    if not lines[-1]:
        lines.pop()  # the end of the last line starts no other
    expect(bool(lines), path, "ratings", "at least one line", "an empty file", HINT)
    seen: dict[tuple[int, int], int] = {}
    ratings = np.empty(len(lines), np.float32)
    for number, line in enumerate(lines, 1):
        user, item, ratings[number - 1] = _parsed(line, f"{path}, line {number}")
        first = seen.setdefault((user, item), number)
        if first != number:
            raise DataError(f"{path}, line {number}: expected every pair once, got user {user} and item {item} as in "
                            f"line {first}. {HINT}")
    ids = np.array(list(seen), np.int64)
    numbered = [np.unique(column, return_inverse=True)[1] for column in ids.T]
    return np.stack(numbered, axis=1).astype(np.int32), ratings


def _parsed(line: bytes, where: str) -> tuple[int, int, float]:
    fields = line.removesuffix(b"\r").split(b"\t")
    if len(fields) != len(FIELDS):
        expect(False, where, "fields", f"{len(FIELDS)} with tabs between them", f"{len(fields)} in {_short(line)}", HINT)
    for field, (name, (pattern, expected)) in zip(fields, FIELDS.items(), strict=True):
        if not pattern.fullmatch(field):
            expect(False, where, name, expected, _short(field), HINT)
    return int(fields[0]), int(fields[1]), float(fields[2])


def _short(raw: bytes) -> str:
    """Returns any bytes as one line of at most some 40 characters."""
    return repr(raw[:30])[1:] + ("..." if len(raw) > 30 else "")


# ---- a data set


@dataclass(frozen=True, eq=False)
class RatingSet:
    """`train` and `test`, each (pairs, ratings); `mean` is of the training ratings, `noise` the RMSE nobody beats, or None.

    `users` and `items` count all that occur, so every pair fits tables of `users` and `items` rows; in a file of few ratings
    some are met only in the test.
    """

    name: str
    train: Pair
    test: Pair
    users: int
    items: int
    mean: float
    noise: float | None


def ratings(path: str | PathLike[str] | None = None) -> RatingSet:
    """Returns ratings, nine of ten to train, one to test: generated ones, whose floor is known.

    path: a file to take the ratings from instead. The split is random and always the same. Raises
    DataError.
    """
    if path is None:
        name, noise, (pairs, stars) = "generated ratings", NOISE, generate_ratings(noise=NOISE)
    else:
        name, noise, (pairs, stars) = f"ratings from {path}", None, load_ratings(path)
        expect(len(stars) >= FEWEST, path, "ratings", f"at least {FEWEST}, one of ten for the test", len(stars), HINT)
    order = np.random.default_rng(0).permutation(len(stars))
    test, train = np.split(order, [len(stars) // 10])
    users, items = (pairs.max(axis=0) + 1).tolist()
    mean = float(stars[train].mean(dtype=np.float64))
    return RatingSet(name, (pairs[train], stars[train]), (pairs[test], stars[test]), users, items, mean, noise)
