"""One checkpoint, one file: every leaf with its SHA-256, sealed as a whole; half a file or a flipped bit is never read.

A file is an ordinary .npz (`numpy.load` opens it): `header`, JSON as bytes, and one array a leaf under its path, such as
`params/1/w`. Its zip comment, the last bytes, is the SHA-256 of all before them: zip's own CRC does not cover names and dates.
bfloat16 and its like are stored as unsigned integers of their size, typed keys as their data: npz knows neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import FileProblem, Problem
from ...params import Tree, named_leaves

FORMAT = 2  # 2: a leaf's SHA-256 covers its name, and a run its fingerprint
SEAL, DIGITS = b"sha256 ", 64  # the zip comment: these bytes, then the digest of all before it in hexadecimal


class Damaged(FileProblem):
    """A checkpoint that is not, byte for byte, what was written."""


class Stored(NamedTuple):
    """A leaf as it lies in the file, and the dtype it has in memory."""

    array: np.ndarray
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.array.shape))}]"


def snapshot(tree: Tree) -> dict[str, Stored]:
    """Copies every leaf to the host, by its path: the next step may take the buffers."""
    leaves: dict[str, Stored] = {}
    for path, leaf in named_leaves(tree):
        if leaf is not None:
            if path in leaves:
                raise Problem(f"checkpoint: expected every leaf to have a path of its own, two are {path}. Rename one")
            leaves[path] = _stored(leaf)
    return leaves


def write(path: Path, leaves: dict[str, Stored], facts: dict[str, Any]) -> None:
    """Writes a `snapshot` and `facts` (JSON) to `path`: all of it or nothing, durable when this returns.

    Raises OSError; what was at `path` before is then still there, and nothing beside it.
    """
    table = {name: {"shape": [*leaf.array.shape], "dtype": leaf.dtype, "sha256": _sha256(name, leaf)}
             for name, leaf in leaves.items()}
    about = {"format": FORMAT, **facts, **machine(), "leaves": table}
    header = np.frombuffer(json.dumps(about).encode(), np.uint8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            np.savez(file, allow_pickle=False, header=header, **{name: leaf.array for name, leaf in leaves.items()})
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        for _ in _verified(temporary):  # as it reads back, a leaf at a time
            pass
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def machine() -> dict[str, Any]:
    """Returns the versions and the backend that a checkpoint written now would name."""
    return {"versions": {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")}, "backend": jax.default_backend()}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Returns (header, leaves), every byte verified. Raises Damaged, which names the file."""
    header, *leaves = _verified(path)
    return header, dict(leaves)


def _verified(path: Path) -> Iterator[Any]:
    """Yields the header, then a pair (name, Stored) at a time, each verified before."""
    try:
        _check_seal(path)
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format"] != FORMAT:
                raise Problem(f"{path}: expected format {FORMAT}, got {header['format']}: another version wrote it. Go on with "
                              "that version, or give `out` another name for another run")
            yield header
            for name, leaf in header["leaves"].items():
                stored = Stored(file[name], leaf["dtype"])
                if _sha256(name, stored) != leaf["sha256"]:
                    raise ValueError(f"leaf {name} is not what its SHA-256 says")
                yield name, stored
    except OSError as error:  # it may be whole: nothing to go back from
        raise FileProblem(f"{path}: cannot be read: {error.strerror or error}. Check its permissions and the disk") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path}: expected a whole checkpoint, got a damaged one: {error}") from error


def fill(like: Tree, leaves: dict[str, Stored], path: Path) -> Tree:
    """Returns the leaves, read from `path`, in the structure of `like`, bit for bit.

    Raises Problem where one is missing, one too many, or of another shape or dtype: its path, expected and found.
    """
    wanted = snapshot(like)
    for name in {**wanted, **leaves}:
        expected, found = (str(side.get(name, "none")) for side in (wanted, leaves))
        if expected != found:
            x64 = re.sub("32|64", "", expected) == re.sub("32|64", "", found)
            hint = "JAX_ENABLE_X64 was another" if x64 else "The checkpoint is of another network or optimizer"
            raise Problem(f"{path}: leaf {name}: expected {expected}, found {found}. {hint}")
    return jax.tree.unflatten(jax.tree.structure(like), [_loaded(leaves[name]) for name in wanted])


def _stored(leaf: Any) -> Stored:
    if isinstance(leaf, (bool, int, float)):
        return Stored(np.asarray(leaf), f"python {type(leaf).__name__}")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return Stored(np.array(jax.random.key_data(leaf)), f"key {jax.random.key_impl(leaf)}")
    array = np.array(leaf, copy=True)
    if array.dtype.kind in "biufc":
        return Stored(array, array.dtype.name)
    return Stored(array.view(f"u{array.dtype.itemsize}"), array.dtype.name)


def _loaded(leaf: Stored) -> Any:
    kind, _, name = leaf.dtype.partition(" ")
    if kind == "python":
        return leaf.array.item()
    if kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(leaf.array), impl=name)
    return jnp.asarray(leaf.array.view(jnp.dtype(kind)))


def _sha256(name: str, leaf: Stored) -> str:
    """Returns the SHA-256 of a leaf with its name, so that two leaves of one shape cannot change places."""
    sha = hashlib.sha256(f"{name} {leaf} ".encode())
    sha.update(np.ascontiguousarray(leaf.array).data)
    return sha.hexdigest()


def _seal(file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = SEAL + b"0" * DIGITS
    end = file.seek(-DIGITS, os.SEEK_END)
    digest = _digest(file, end)
    file.seek(end)
    file.write(digest)


def _check_seal(path: Path) -> None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < len(SEAL) + DIGITS:
            raise ValueError(f"{size} bytes are too few")
        digest = _digest(file, size - DIGITS)
        if file.read() != digest:
            raise ValueError("its SHA-256 is another")


def _digest(file: BinaryIO, end: int) -> bytes:
    """Returns the SHA-256 of the first `end` bytes, and leaves the file there."""
    file.seek(0)
    sha, block = hashlib.sha256(), 1 << 20
    for start in range(0, end, block):
        sha.update(file.read(min(block, end - start)))
    return sha.hexdigest().encode()


def _sync(directory: Path) -> None:
    """Writes the new name in `directory` to the disk. Windows has no call for that."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
