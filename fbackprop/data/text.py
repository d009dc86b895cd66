"""text: 1 MB of public-domain plays in the package, or any file, byte by byte; windows of it to train a language model.

Axes      N bytes of text, B windows in a batch, T bytes in a window, V byte values in the alphabet
Dtypes    text uint8; ids int32 in 0..V-1
Units     losses in nats per byte (divided by log 2: bits per byte)
Raises    DataError: a file is missing, unreadable, corrupt or too short (exit code 74). ValueError: an argument is wrong
Source    eight plays of Shakespeare; licence and origin of plays.txt.gz in LICENSE-plays.txt, made by
          experiments/make_plays.py
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from .batches import Pair, seed_and_step
from .files import expect, read

PLAYS = Path(__file__).with_name("plays.txt.gz")
PLAYS_SHA256 = "d8c60b7a944959e1c924b732b01837204d1404a0876cc925bdfcc32f63ad5d6e"
SHORTEST = 20  # bytes: two of them are for validation, one to read and one to predict


def load_plays(path: str | PathLike[str] = PLAYS) -> np.ndarray:
    """Returns the text of the package, uint8 (1008068,): eight plays, all ASCII. Read-only.

    SHA-256 of the file is checked first. `path` is for a copy of the same file. Raises DataError.
    """
    path, hint = Path(path), "Install fbackprop again, or make the file with experiments/make_plays.py"
    return np.frombuffer(read(path, hint, PLAYS_SHA256), np.uint8)


# ---- a text as ids


@dataclass(frozen=True, eq=False)
class TextSet:
    """`train` and `validation`, ids int32 of one text, in its order; `vocabulary` uint8 (V,): the byte that an id stands for.

    The alphabet is of the **whole** text, so every id is below V and nothing is lost or replaced. A byte that only the
    validation part has is therefore an ordinary id that training never sees: it counts there at whatever the model gives it.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    vocabulary: np.ndarray

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids (N,) of a text, a str as UTF-8.

        Raises ValueError for the first byte outside the alphabet.
        """
        raw = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)
        strange = np.flatnonzero(~np.isin(raw, self.vocabulary))
        if len(strange):
            expect(False, f"encode for {self.name}", f"byte {strange[0]}", f"one of the {len(self.vocabulary)} in the alphabet",
                   repr(bytes(raw[strange[:1]])), "Leave it out: the model has no row for it", ValueError)
        return np.searchsorted(self.vocabulary, raw).astype(np.int32)

    def decode(self, ids: np.ndarray) -> bytes:
        """Returns the bytes of ids; for a str, `.decode(errors="replace")`.

        Raises ValueError for ids not in 0..V-1.
        """
        return self.vocabulary[_checked(ids, len(self.vocabulary), "decode")].tobytes()


def text(path: str | PathLike[str] | None = None) -> TextSet:
    """Returns the plays of the package: the first 90 % to train, the rest to validate.

    path: any file of at least 20 bytes, to take the text from instead. The cut is one cut, because
    windows of a text that is dealt out piece by piece would be half known already. What is
    compressed by gzip is decompressed. Raises DataError.
    """
    if path is None:
        name, raw = "plays", load_plays()
    else:
        path, hint = Path(path), "Give the path of a text"
        name, raw = f"text from {path}", np.frombuffer(read(path, hint), np.uint8)
        expect(len(raw) >= SHORTEST, path, "length", f"at least {SHORTEST} bytes", f"{len(raw)} bytes", hint)
    vocabulary, ids = np.unique(raw, return_inverse=True)
    cut = len(raw) * 9 // 10
    return TextSet(name, ids[:cut].astype(np.int32), ids[cut:].astype(np.int32), vocabulary)


def _checked(ids: np.ndarray, V: int | None, where: str) -> np.ndarray:
    """Raises ValueError unless `ids` are integers, (N,), and if V is given, in 0..V-1."""
    ids = np.asarray(ids)
    expect(np.issubdtype(ids.dtype, np.integer), where, "ids", "an integer dtype", ids.dtype, error=ValueError)
    expect(ids.ndim == 1, where, "ids", "one axis, (N,)", f"shape {ids.shape}", error=ValueError)
    if V is not None and ids.size:
        low, high = int(ids.min()), int(ids.max())
        expect(low >= 0 and high < V, where, "ids", f"0 to {V - 1}", low if low < 0 else high, error=ValueError)
    return ids


# ---- windows


def _cuttable(ids: np.ndarray, length: int, where: str) -> tuple[np.ndarray, int]:
    ids, length = _checked(ids, None, where), operator.index(length)
    expect(len(ids) >= 2, where, "ids", "at least two, one to read and one to predict", len(ids), error=ValueError)
    expect(1 <= length < len(ids), where, "length", f"1 to {len(ids) - 1}, one less than there are ids", length,
           error=ValueError)
    return ids, length


@dataclass(frozen=True, eq=False)
class Windows:
    """`windows(seed, step)` -> (x, target), both (B, T): windows of `ids`, made by `windows`. A pure function of (seed, step).

    `target` is `x` one byte later. Every window starts anywhere, drawn anew, so an epoch is a count of bytes, not a
    permutation: about a third of the text is not met in one.
    """

    ids: np.ndarray
    length: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.ids) // (self.batch_size * self.length)

    def __call__(self, seed: int, step: int) -> Pair:
        """Raises ValueError for a negative seed or step."""
        starts = np.random.default_rng(seed_and_step(seed, step)).integers(len(self.ids) - self.length, size=self.batch_size)
        at = starts[:, None] + np.arange(self.length)
        return self.ids[at], self.ids[at + 1]


def windows(ids: np.ndarray, length: int, batch_size: int) -> Windows:
    """Returns random windows of `length` T of `ids` (N,), `batch_size` B at a time.

    Raises ValueError unless 1 <= T < N, 1 <= B and B T <= N, one step's worth.
    """
    where = "windows"
    ids, length = _cuttable(ids, length, where)
    batch_size = operator.index(batch_size)
    most = len(ids) // length
    expect(1 <= batch_size <= most, where, "batch_size", f"1 to {most}, for {len(ids)} ids in windows of {length}", batch_size,
           "Take fewer or shorter windows, or a longer text", ValueError)
    return Windows(ids, length, batch_size)


def held_out_windows(ids: np.ndarray, length: int) -> Pair:
    """Returns (x, target), each (M, T): `ids` (N,) cut one window after another.

    So every byte is predicted at most once. M = (N - 1) // T; what is left over at the end is
    dropped. Raises ValueError unless 1 <= T < N.
    """
    ids, length = _cuttable(ids, length, "held_out_windows")
    used = (len(ids) - 1) // length * length
    return ids[:used].reshape(-1, length), ids[1:used + 1].reshape(-1, length)


# ---- the baseline


def bigram_loss(train_ids: np.ndarray, test_ids: np.ndarray, V: int, *, smoothing: float = 1.0) -> float:
    """Returns the mean negative log-likelihood of `test_ids[1:]`, in nats: a baseline.

        p(b | a) = (count of a b in train_ids + s) / (count of a + s V)

    s is `smoothing`, 1 is "add one". Holds V x V counts. Raises ValueError unless there are two ids each, all in 0..V-1,
    and s > 0: without it a pair never seen costs infinitely much.
    """
    expect(0 < smoothing < np.inf, "bigram_loss", "smoothing", "a finite number above 0", smoothing, error=ValueError)
    pairs = []
    for name, ids in (("train_ids", train_ids), ("test_ids", test_ids)):
        ids = _checked(ids, V, f"bigram_loss, {name}").astype(np.int64)
        expect(len(ids) >= 2, "bigram_loss", name, "at least two ids", len(ids), error=ValueError)
        pairs.append(ids[:-1] * V + ids[1:])
    counts = np.bincount(pairs[0], minlength=V * V).reshape(V, V) + smoothing
    loss = np.log(counts.sum(axis=1, keepdims=True)) - np.log(counts)
    return float(loss.ravel()[pairs[1]].mean())
