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

import io
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path

import numpy as np

from .batches import Pair
from .files import DataError, expect, read

MNIST5K = Path(__file__).with_name("mnist5k.npz")
MNIST5K_SHA256 = "f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810"
CLASSES = 10


class LabelError(DataError):
    """The file is sound, but a label in it is no class: the data is wrong, not the disk."""

    exit_code = 2


# ---- the 5000 digits in the package


def load_mnist5k(path: str | PathLike[str] = MNIST5K) -> Pair:
    """Returns images uint8 (5000, 28, 28) in grey levels 0..255 and labels int32 (5000,).

    There are 500 of each class, **sorted by label**. SHA-256 of the file is checked first. `path`
    is for a copy of the same file. Raises DataError.
    """
    path = Path(path)
    hint = "Install fbackprop again, or make the file with experiments/make_mnist5k.py"
    with np.load(io.BytesIO(read(path, hint, MNIST5K_SHA256))) as arrays:
        return arrays["x"], arrays["y"].astype(np.int32)


def split(labels: np.ndarray, *, test_size: int = 1000, seed: int = 0) -> Pair:
    """Returns the indices (train, test) of a stratified split, both shuffled, fixed by `seed`.

    They are disjoint and together all of 0..N-1. Every class has its share of the test set, to
    within one: 100 of each for mnist5k. A plain cut would be useless there: the source is sorted by
    label, so its last 1000 are all the 8s and 9s.
    Raises ValueError unless 1 <= test_size < N.
    """
    count = len(labels)
    expect(1 <= test_size < count, f"split of {count} labels", "test_size", f"1 to {count - 1}", test_size, error=ValueError)
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    order = order[np.argsort(labels[order], kind="stable")]  # class after class, each class in random order
    chosen = np.zeros(count, bool)
    chosen[np.arange(test_size) * count // test_size] = True  # evenly spaced, so each class gives its share
    return rng.permutation(order[~chosen]), rng.permutation(order[chosen])


# ---- IDX files


def load_idx(directory: str | PathLike[str]) -> tuple[Pair, Pair]:
    """Returns (train, test) of the four IDX files in `directory`.

    Each is (images uint8 (N, 28, 28), labels int32 (N,)). Names: {train,t10k}-images-idx3-ubyte and
    {train,t10k}-labels-idx1-ubyte, or with a dot (train-images.idx3-ubyte), each also with .gz; of
    several the plain one is taken. Whether a file is compressed is told by its content. Images are
    read-only.
    Raises DataError (missing, truncated, corrupt, the wrong kind of file, counts that differ, empty), LabelError.
    """
    directory = Path(directory)
    expect(directory.is_dir(), directory, "data", "a directory with the four IDX files of MNIST",
           "a file" if directory.exists() else "nothing of that name", "Give the directory the files lie in")
    return _load_pair(directory, "train"), _load_pair(directory, "t10k")


def _load_pair(directory: Path, part: str) -> Pair:
    x_path, y_path = _find(directory, f"{part}-images", "idx3-ubyte"), _find(directory, f"{part}-labels", "idx1-ubyte")
    x, y = _read_idx(x_path, 3), _read_idx(y_path, 1)
    expect(x.shape[1:] == (28, 28), x_path, "image size", "28 x 28", "{} x {}".format(*x.shape[1:]), "Is this MNIST?")
    expect(len(x) > 0, x_path, "images", "at least one", "none", "Fetch the file again")
    expect(len(x) == len(y), y_path, "labels", f"{len(x)}, as many as images in {x_path.name}", len(y),
           "Do the two files belong together?")
    check_labels(y, CLASSES, y_path)
    return x, y.astype(np.int32)


def _find(directory: Path, stem: str, kind: str) -> Path:
    paths = [directory / f"{stem}{mark}{kind}{end}" for end in ("", ".gz") for mark in "-."]
    found = [path for path in paths if path.exists()]
    expect(bool(found), paths[0], "file", "this file, or the same with .gz", "no such file",
           f"The name may also be {paths[1].name}; all four files have to lie in one directory")
    return found[0]


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads an IDX file: 0, 0, 8 (for uint8), ndim, that many big-endian uint32, the values."""
    again = "Fetch the file again"
    raw = read(path, again)
    start = 4 + 4 * ndim
    expect(len(raw) >= start, path, "length", f"a header of {start} bytes", f"{len(raw)} bytes", again)
    magic = bytes([0, 0, 8, ndim])
    expect(raw[:4] == magic, path, "magic number", f"0x{magic.hex()}", f"0x{raw[:4].hex()}",
           f"An IDX file of {'images' if ndim == 3 else 'labels'} starts with it; are two files mixed up?")
    shape = tuple(np.frombuffer(raw, ">u4", ndim, offset=4).tolist())
    expect(len(raw) == start + prod(shape), path, "length", f"{start + prod(shape)} bytes for shape {shape}",
           f"{len(raw)} bytes", again)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def check_labels(labels: np.ndarray, classes: int, where: str | PathLike[str]) -> None:
    """Raises LabelError unless `labels`, of any shape, are integers in 0..classes-1.

    The error names `where`, the first bad index and its value. Values cannot be checked under jit,
    so this is done once, when a data set is read.
    """
    hint = f"Labels are class numbers, for {classes} classes 0 to {classes - 1}"
    expect(np.issubdtype(labels.dtype, np.integer), where, "labels", "an integer dtype", labels.dtype, hint, LabelError)
    bad = np.argwhere((labels < 0) | (labels >= classes))
    if len(bad):
        index = tuple(bad[0].tolist())
        expect(False, where, f"labels[{', '.join(map(str, index))}]", f"0 to {classes - 1}", labels[index], hint, LabelError)


# ---- a data set


@dataclass(frozen=True, eq=False)
class DataSet:
    """`train` and `test`, each (x float32 (N, 28, 28) in 0..1, y int32 (N,)); `name` says where they come from."""

    name: str
    train: Pair
    test: Pair


def digits(path: str | PathLike[str] | None = None) -> DataSet:
    """Returns the digits of the package, 4000 to train and 1000 to test.

    path: a directory of IDX files, to take all of MNIST from instead. Raises DataError, LabelError.
    """
    if path is not None:
        train, test = load_idx(path)
        return DataSet(f"mnist from {path}", _scaled(*train), _scaled(*test))
    images, labels = load_mnist5k()
    train_rows, test_rows = split(labels)
    return DataSet("mnist5k", _scaled(images[train_rows], labels[train_rows]), _scaled(images[test_rows], labels[test_rows]))


def _scaled(images: np.ndarray, labels: np.ndarray) -> Pair:
    return images / np.float32(255), labels
