"""`fbackprop`, killed at a point inside its n-th save: python killed_in_save.py POINT N train ..."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from fbackprop.cli import main
from fbackprop.train.store import checkpoint

point, nth, saves = sys.argv[1], int(sys.argv[2]), 0


def die_at(name, at):
    """Kills the process in the n-th save when it comes to `at`."""
    if name == point and saves == nth:
        print(f"dying at {at}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def counted(write):
    def run(path, *rest):
        global saves
        saves += 1
        die_at("start", path)
        return write(path, *rest)

    return run


def halfway(savez):
    def run(file, *, header, allow_pickle, **arrays):
        if point == "half written" and saves == nth:
            some = dict(list(arrays.items())[: len(arrays) // 2])
            savez(file, header=header, allow_pickle=allow_pickle, **some)
            file.truncate(file.tell() - 7)
            file.flush()
            die_at("half written", file.name)
        return savez(file, header=header, allow_pickle=allow_pickle, **arrays)

    return run


def before(name, function):
    def run(*arguments):
        die_at(name, arguments[0])
        return function(*arguments)

    return run


def around(function):
    def run(source, target):
        die_at("before replace", source)
        function(source, target)
        die_at("after replace", target)

    return run


checkpoint.write = counted(checkpoint.write)
np.savez = halfway(np.savez)
checkpoint._seal = before("before fsync", checkpoint._seal)
os.replace = around(os.replace)
unlink = Path.unlink


def prune(path, missing_ok=False):
    if path.suffix == ".npz":
        die_at("before prune", path)
    unlink(path, missing_ok=missing_ok)


Path.unlink = prune
sys.exit(main(sys.argv[3:]))
