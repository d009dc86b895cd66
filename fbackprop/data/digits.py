"""digits: the 5000 real MNIST digits in the package, or all of MNIST from a directory of IDX files.

Shapes    images (N, 28, 28), labels (N,); N is 5000 in the package (500 of each class), 60000 and 10000 in full MNIST
Dtypes    as read: uint8 and int32; in a DataSet: float32 and int32
Units     as read: grey levels 0..255, 0 the background; in a DataSet: 0..1 (divided by 255)
Raises    DataError: a file is missing, unreadable or corrupt (exit code 74). LabelError, a DataError: a label is no class
          (exit code 2). ValueError: an argument, such as the batch size, is wrong
Source    MNIST: LeCun, Cortes, Burges; licence and origin of mnist5k.npz in LICENSE-mnist5k.txt, made by
          experiments/make_mnist5k.py; IDX: the format description on the page of MNIST
"""

from __future__ import annotations

import gzip
import hashlib
import io
import operator
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..problem import FileProblem

MNIST5K = Path(__file__).with_name("mnist5k.npz")
MNIST5K_SHA256 = "f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810"
CLASSES = 10

Pair = tuple[np.ndarray, np.ndarray]


class DataError(FileProblem):
    """A file of data is missing, unreadable or corrupt: where, what, expected, got, what to do."""


class LabelError(DataError):
    """The file is sound, but a label in it is no class: the data is wrong, not the disk."""

    exit_code = 2


def _expect(ok: bool, where: Any, what: str, expected: Any, got: Any, hint: str = "",
            error: type[Exception] = DataError) -> None:
    """Raises `error` with one sentence built from the parts unless `ok`. (fbackprop.errors has one too, and imports jax.)"""
    if not ok:
        raise error(f"{where}: {what}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror or error}. {hint}") from error


# ---- the 5000 digits in the package


def load_mnist5k(path: str | PathLike[str] = MNIST5K) -> Pair:
    """images uint8 (5000, 28, 28) in grey levels 0..255, labels int32 (5000,): 500 of each class, **sorted by label**.

    SHA-256 of the file is checked first. `path` is for a copy of the same file. Raises DataError.
    """
    path = Path(path)
    hint = "Install fbackprop again, or make the file with experiments/make_mnist5k.py"
    raw = _read(path, hint)
    sha256 = hashlib.sha256(raw).hexdigest()
    _expect(sha256 == MNIST5K_SHA256, path, "SHA-256", MNIST5K_SHA256, f"{sha256} ({len(raw)} bytes)", hint)
    with np.load(io.BytesIO(raw)) as arrays:
        return arrays["x"], arrays["y"].astype(np.int32)


def split(labels: np.ndarray, test_size: int = 1000, seed: int = 0) -> Pair:
    """Indices (train, test) of a stratified split: disjoint, together all of 0..N-1, both shuffled, fixed by `seed`.

    Every class has its share of the test set, to within one: 100 of each for mnist5k. A plain cut would be useless there:
    the source is sorted by label, so its last 1000 are all the 8s and 9s.
    Raises ValueError unless 1 <= test_size < N.
    """
    count = len(labels)
    _expect(1 <= test_size < count, f"split of {count} labels", "test_size", f"1 to {count - 1}", test_size, error=ValueError)
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    order = order[np.argsort(labels[order], kind="stable")]  # class after class, each class in random order
    chosen = np.zeros(count, bool)
    chosen[np.arange(test_size) * count // test_size] = True  # evenly spaced, so each class gives its share
    return rng.permutation(order[~chosen]), rng.permutation(order[chosen])


# ---- IDX files


def load_idx(directory: str | PathLike[str]) -> tuple[Pair, Pair]:
    """(train, test) of the four IDX files in `directory`, each (images uint8 (N, 28, 28), labels int32 (N,)).

    Names: {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, or with a dot (train-images.idx3-ubyte), each
    also with .gz; of several the plain one is taken. Whether a file is compressed is told by its content. Images are read-only.
    Raises DataError (missing, truncated, corrupt, the wrong kind of file, counts that differ, empty), LabelError.
    """
    directory = Path(directory)
    _expect(directory.is_dir(), directory, "data", "a directory with the four IDX files of MNIST",
            "a file" if directory.exists() else "nothing of that name", "Give the directory the files lie in")
    return _load_pair(directory, "train"), _load_pair(directory, "t10k")


def _load_pair(directory: Path, part: str) -> Pair:
    x_path, y_path = _find(directory, f"{part}-images", "idx3-ubyte"), _find(directory, f"{part}-labels", "idx1-ubyte")
    x, y = _read_idx(x_path, 3), _read_idx(y_path, 1)
    _expect(x.shape[1:] == (28, 28), x_path, "image size", "28 x 28", "{} x {}".format(*x.shape[1:]), "Is this MNIST?")
    _expect(len(x) > 0, x_path, "images", "at least one", "none", "Fetch the file again")
    _expect(len(x) == len(y), y_path, "labels", f"{len(x)}, as many as images in {x_path.name}", len(y),
            "Do the two files belong together?")
    check_labels(y, CLASSES, y_path)
    return x, y.astype(np.int32)


def _find(directory: Path, stem: str, kind: str) -> Path:
    paths = [directory / f"{stem}{mark}{kind}{end}" for end in ("", ".gz") for mark in "-."]
    found = [path for path in paths if path.exists()]
    _expect(bool(found), paths[0], "file", "this file, or the same with .gz", "no such file",
            f"The name may also be {paths[1].name}; all four files have to lie in one directory")
    return found[0]


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of bytes: 0, 0, 8 (for uint8), ndim, then ndim sizes as big-endian uint32, then the values."""
    again = "Fetch the file again"
    raw = _read(path, again)
    if raw[:2] == b"\x1f\x8b":  # gzip; an IDX file starts with two zeros, so the content decides, whatever the name
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: expected a whole gzip file, got a damaged one ({error}). {again}") from error
    start = 4 + 4 * ndim
    _expect(len(raw) >= start, path, "length", f"a header of {start} bytes", f"{len(raw)} bytes", again)
    magic = bytes([0, 0, 8, ndim])
    _expect(raw[:4] == magic, path, "magic number", f"0x{magic.hex()}", f"0x{raw[:4].hex()}",
            f"An IDX file of {'images' if ndim == 3 else 'labels'} starts with it; are two files mixed up?")
    shape = tuple(np.frombuffer(raw, ">u4", ndim, offset=4).tolist())
    _expect(len(raw) == start + prod(shape), path, "length", f"{start + prod(shape)} bytes for shape {shape}",
            f"{len(raw)} bytes", again)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def check_labels(labels: np.ndarray, classes: int, where: str | PathLike[str]) -> None:
    """LabelError unless `labels`, of any shape, are integers in 0..classes-1; it names `where`, the first bad index, its value.

    Values cannot be checked under jit, so this is done once, when a data set is read.
    """
    hint = f"Labels are class numbers, for {classes} classes 0 to {classes - 1}"
    _expect(np.issubdtype(labels.dtype, np.integer), where, "labels", "an integer dtype", labels.dtype, hint, LabelError)
    bad = np.argwhere((labels < 0) | (labels >= classes))
    if len(bad):
        index = tuple(bad[0].tolist())
        _expect(False, where, f"labels[{', '.join(map(str, index))}]", f"0 to {classes - 1}", labels[index], hint, LabelError)


# ---- a data set, and batches of it


@dataclass(frozen=True, eq=False)
class DataSet:
    """`train` and `test`, each (x float32 (N, 28, 28) in 0..1, y int32 (N,)); `name` says where they come from."""

    name: str
    train: Pair
    test: Pair


def digits(path: str | PathLike[str] | None = None) -> DataSet:
    """The digits of the package, 4000 to train and 1000 to test; with `path`, all of MNIST from that directory of IDX files.

    Raises DataError, LabelError.
    """
    if path is not None:
        train, test = load_idx(path)
        return DataSet(f"mnist from {path}", _scaled(*train), _scaled(*test))
    images, labels = load_mnist5k()
    train_rows, test_rows = split(labels)
    return DataSet("mnist5k", _scaled(images[train_rows], labels[train_rows]), _scaled(images[test_rows], labels[test_rows]))


def _scaled(images: np.ndarray, labels: np.ndarray) -> Pair:
    return images / np.float32(255), labels


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
        seed, step = operator.index(seed), operator.index(step)
        _expect(seed >= 0 and step >= 0, "batches", "(seed, step)", "both at least 0", (seed, step), error=ValueError)
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = _permutation(seed, epoch, len(self.x))[batch * self.batch_size:(batch + 1) * self.batch_size]
        return self.x[rows], self.y[rows]


@lru_cache(maxsize=4)  # only for speed: consecutive steps share their epoch's permutation
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def shuffled_batches(x: np.ndarray, y: np.ndarray, batch_size: int) -> Batches:
    """Batches of x (N, ...) and y (N, ...): any arrays with the same first axis, not only digits.

    Raises ValueError unless N >= 1, x and y are equally long and 1 <= batch_size <= N.
    """
    rows, where = len(x), "shuffled_batches"
    _expect(rows > 0, where, "x", "at least one row", "an empty data set", error=ValueError)
    _expect(len(y) == rows, where, "y", f"{rows} rows, as many as x", len(y), error=ValueError)
    _expect(1 <= batch_size <= rows, where, "batch_size", f"1 to {rows}, the number of rows", batch_size, error=ValueError)
    return Batches(x, y, operator.index(batch_size))
