"""What a file may not do while it is graded: autodiff, other programs, the network, files elsewhere, this package's own rules.

Obstacles, not walls: they tell an honest learner what is wrong and stop a thoughtless file. Python has no sandbox, and an audit
hook is not one (PEP 578 says so); who knows CPython well gets past. What holds without them: docs/exercises.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any, NoReturn

import jax
import jax.interpreters.ad
from jax._src import api
from jax._src.interpreters import ad

AUTODIFF = ("grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose", "jacfwd", "jacrev", "jacobian", "hessian",
            "fwd_and_bwd", "backward_pass", "backward_pass3", "linearize_jaxpr", "jvp_jaxpr", "linearize_from_jvp")
LIBRARIES = frozenset({"jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum"})
PROGRAMS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile", "os.kill",
                      "os.killpg", "subprocess.Popen", "pty.spawn", "_winapi.CreateProcess", "_winapi.TerminateProcess"})
CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1,
           "os.chown": 1, "os.utime": 1, "os.truncate": 1}  # how many paths come first; what comes last is a dir_fd
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def close(folder: str) -> None:
    """From here to the end of the process; files may be changed below `folder`. Nothing opens it again."""
    forbid_autodiff()
    sys.meta_path.insert(0, _Imports())
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook(os.path.realpath(folder)))


def forbid_autodiff() -> None:
    def refuser(name: str) -> Callable[..., NoReturn]:
        def refuse(*args: Any, **options: Any) -> NoReturn:
            raise RuntimeError(f"jax.{name} is autodiff: an exercise's backward is written by hand")

        return refuse

    for name in AUTODIFF:
        for module in (jax, api, ad, jax.interpreters.ad):
            if hasattr(module, name):
                setattr(module, name, refuser(name))
    for trace in ("JVPTrace", "LinearizeTrace"):  # what all of them go through, in whatever module a name was kept
        if hasattr(ad, trace):
            setattr(getattr(ad, trace), "__init__", refuser("grad"))  # noqa: B010


class _Imports(MetaPathFinder):
    """Refuses what is not there already, but for the standard library and JAX's own."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        top = name.partition(".")[0]
        if name.startswith("jax.experimental") or not (top in LIBRARIES or top in sys.stdlib_module_names):
            raise ImportError(f"an exercise imports jax, numpy and fbackprop's Layer alone, not {name}")


def _hook(folder: str) -> Callable[[str, tuple], None]:
    programs, changes, writing, realpath, isdir = PROGRAMS, CHANGES.copy(), WRITING, os.path.realpath, os.path.isdir
    below, null = folder + os.sep, os.devnull

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = realpath(os.fsdecode(path))
        return real not in (folder, null) and not real.startswith(below)

    def hook(event: str, args: tuple) -> None:
        if event in programs:
            raise PermissionError("an exercise starts and ends no other program")
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            raise PermissionError("an exercise does not use the network")
        if event.startswith("ctypes."):
            raise PermissionError("an exercise does not use ctypes")
        if event == "open":
            path, _, flags = args
            if not isinstance(path, int) and ((flags or 0) & writing or isdir(path)) and outside(path):
                raise PermissionError("an exercise writes no file outside its own folder")
        elif event in changes:
            below_an_open_folder = event != "os.truncate" and args[-1] != -1  # as shutil.rmtree does it
            if below_an_open_folder or any(map(outside, args[:changes[event]])):
                raise PermissionError("an exercise changes no file outside its own folder")

    return hook
