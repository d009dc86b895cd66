"""What a file may not do while it is graded: autodiff, other programs, the network, files elsewhere, this package's own rules.

Obstacles, not walls: they tell an honest learner what is wrong and stop a thoughtless file. Python has no sandbox, and an audit
hook is not one (PEP 578 says so); who knows CPython well gets past. What holds without them: docs/exercises.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
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
RULES = ("layers", "losses", "models")  # this package's own rules, which the imports of a submission do not find
LARGEST = 10**8  # bytes of a file that is written
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def close(folder: str) -> None:
    """From here to the end of the process; files may be changed below `folder`. Nothing opens it again."""
    forbid_autodiff()
    with suppress(ImportError, ValueError, OSError):  # where there is such a limit
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    with suppress(ImportError):  # where there is such a function: it starts programs and no audit event says so
        import _posixsubprocess

        _posixsubprocess.fork_exec = subprocess._fork_exec = _refuser("an exercise starts and ends no other program")  # type: ignore
    _hide_rules()
    sys.meta_path.insert(0, _Imports(frozenset(sys.modules)))
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook(os.path.realpath(folder)))


def _hide_rules() -> None:
    """Makes the packages of rules look as if they had not been imported; functions that use them still work."""
    package = __name__.partition(".")[0]
    hidden = tuple(f"{package}.{name}" for name in RULES)
    for name in list(sys.modules):
        if name in hidden or name.startswith(tuple(f"{rules}." for rules in hidden)):
            del sys.modules[name]
    for name in RULES:
        vars(sys.modules[package]).pop(name, None)


def _refuser(words: str, error: type[Exception] = PermissionError) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise error(words)

    return refuse


def forbid_autodiff() -> None:
    """Every way in raises from here on, in this process."""
    for name in AUTODIFF:
        refuse = _refuser(f"jax.{name} is autodiff: an exercise's backward is written by hand", RuntimeError)
        for module in (jax, api, ad, jax.interpreters.ad):
            if hasattr(module, name):
                setattr(module, name, refuse)
    for trace in ("JVPTrace", "LinearizeTrace"):  # what all of them go through, in whatever module a name was kept
        if hasattr(ad, trace):
            getattr(ad, trace).__init__ = _refuser("autodiff: an exercise's backward is written by hand", RuntimeError)


class _Imports(MetaPathFinder):
    """Refuses what is not there already, but for the standard library and JAX's own; and to import anew what was there."""

    def __init__(self, there: frozenset[str]) -> None:
        self.there = there

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        top = name.partition(".")[0]
        if name in self.there:
            raise ImportError(f"an exercise does not reload {name}")
        if name.startswith("jax.experimental") or not (top in LIBRARIES or top in sys.stdlib_module_names):
            raise ImportError(f"an exercise imports jax, numpy and fbackprop's Layer alone, not {name}")


def _hook(folder: str) -> Callable[[str, tuple], None]:
    programs, changes, writing, realpath, sep = PROGRAMS, CHANGES.copy(), WRITING, os.path.realpath, os.sep
    python = [realpath(path) for path in {sys.prefix, sys.base_prefix, *sys.path} if path]
    ours = realpath(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))

    def below(real: str, *roots: str) -> bool:
        return any(real == root or real.startswith(root + sep) for root in roots)

    def outside(path: Any) -> bool:
        """Not a file of the submission's own."""
        if isinstance(path, int):
            return False
        return not below(realpath("." if path is None else os.fsdecode(path)), folder, os.devnull)

    def secret(path: Any) -> bool:
        """Neither its own nor Python's; this package, where the rules are, is not."""
        return outside(path) and (below(real := realpath(os.fsdecode(path or ".")), ours) or not below(real, *python))

    def hook(event: str, args: tuple) -> None:
        if event in programs:
            raise PermissionError("an exercise starts and ends no other program")
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            raise PermissionError("an exercise does not use the network")
        if event.startswith("ctypes."):
            raise PermissionError("an exercise does not use ctypes")
        if event == "open":
            path, _, flags = args
            if (flags or 0) & writing and outside(path):
                raise PermissionError("an exercise writes no file outside its own folder")
            if secret(path):
                raise PermissionError("an exercise reads no file outside its own folder")
        elif event in ("os.listdir", "os.scandir") and secret(args[0]):
            raise PermissionError("an exercise reads no file outside its own folder")
        elif event in changes:
            below_an_open_folder = event != "os.truncate" and args[-1] != -1  # as shutil.rmtree does it
            if below_an_open_folder or any(map(outside, args[:changes[event]])):
                raise PermissionError("an exercise changes no file outside its own folder")

    return hook
