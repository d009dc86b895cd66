"""files: what every data set needs to read a file and to say what is wrong with it.

Raises    DataError, in one sentence: where, what, expected, got, what to do (exit code 74)
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

from ..errors import FileProblem


class DataError(FileProblem):
    """A file of data is missing, unreadable or corrupt: where, what, expected, got, what to do."""


def expect(ok: bool, where: Any, what: str, expected: Any, got: Any, hint: str = "",
           error: type[Exception] = DataError) -> None:
    """Raises `error` with one sentence built from the parts unless `ok`.

    fbackprop.checks has such a function too, but imports jax.
    """
    if not ok:
        raise error(f"{where}: {what}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def read(path: Path, hint: str, sha256: str = "") -> bytes:
    """Returns what is in a file, decompressed if the content, whatever the name, is a gzip's.

    sha256: what the SHA-256 of the file has to be. Raises DataError.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror or error}. {hint}") from error
    if sha256:
        got = hashlib.sha256(raw).hexdigest()
        expect(got == sha256, path, "SHA-256", sha256, f"{got} ({len(raw)} bytes)", hint)
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, got a damaged one ({error}). {hint}") from error
