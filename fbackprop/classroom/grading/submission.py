"""Runs one submission: `main()`, in a process of its own, in a folder with submission.py and asked.

asked (a pickle, from the judge): the name of the function, after how many seconds to end even if nobody is left to end it, and
points (params, x, theta, fixed, dy). Writes `numbers`: at each
point, in float64 and in float32, the floating leaves of y and then the gradient; or `failure`, JSON with a verdict and a
reason. Nothing written here can be OK by itself: the judge compares numbers, so a forged file has to hold the right ones.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import pickle
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...layer import Layer
from ...verify.oracles import quick_jit
from ...verify.subject import WrongStructure, cast, layer_subject
from . import guard

FILE, ASKED, READY, NUMBERS, FAILURE = "submission.py", "asked", "ready", "numbers", "failure"
PATH = os.path.abspath(FILE)  # of the submission, if this is its process


class Failed(Exception):
    """A verdict and its reason."""


def main() -> None:
    name, seconds, points = pickle.loads(Path(ASKED).read_bytes())
    numbers, failure, dumps = Path(NUMBERS).absolute(), Path(FAILURE).absolute(), json.dumps
    with jax.enable_x64(True):
        jax.jit(lambda a: a + 1)(np.ones(2)).block_until_ready()  # what JAX reads and starts, it reads and starts now
        faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115, it stays open
        Path(READY).touch()
        guard.close(str(Path.cwd()))
        try:
            numbers.write_bytes(answer(_layer(name), points))
        except Failed as failed:
            failure.write_text(dumps(failed.args))


def answer(layer: Layer, points: list[Any]) -> bytes:
    """The numbers of all points."""
    rows = []
    for params, x, theta, fixed, dy in points:
        subject, _, _ = layer_subject(layer, params, x)
        y = _run("forward", jax.eval_shape, subject.f, theta, fixed)
        if y.shape != dy.shape:
            raise Failed("ERROR", "the forward is not the exercise's: its output has another shape")
        both = lambda *at, subject=subject: (subject.f(*at[:2]), subject.rule(*at))
        if re.search(r":c(64|128)\[", str(_run("backward", jax.make_jaxpr(both), theta, fixed, dy))):
            raise Failed("ERROR", "backward computes with complex numbers: a complex step is autodiff by another name")
        run = quick_jit(both)
        for dtype in (np.float64, np.float32):
            at = cast((theta, fixed, dy), dtype)
            rows += [a.tobytes() for a in _run("backward", lambda run=run, at=at: jax.device_get(run(*at)))]
    return b"".join(rows)


def _layer(name: str) -> Layer:
    spec = importlib.util.spec_from_file_location("submission", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["submission"] = module
    _run("importing the file", spec.loader.exec_module, module)
    function = getattr(module, name, None)
    if not callable(function):
        raise Failed("ERROR", f"expected a function {name!r}, found none")
    made = _run(f"{name}()", function)
    layer = made[0] if isinstance(made, tuple) and len(made) == 2 else made
    if not isinstance(layer, Layer):
        raise Failed("ERROR", f"{name}(): expected a Layer or (Layer, x), got {type(made).__name__}")
    return layer


def _run(what: str, function: Any, *args: Any) -> Any:
    """What the submission's code returns; whatever it raises is told in a sentence."""
    try:
        return function(*args)
    except WrongStructure as error:
        raise Failed("ERROR", str(error)) from None
    except MemoryError:
        raise Failed("MEMORY", f"{what} asked for more memory than there is") from None
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a file may raise them
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if frame.filename == PATH]
        number = own[-1] if own else getattr(error, "lineno", None)  # a SyntaxError has no frame
        text = error.args[0] if isinstance(error, OSError) and len(error.args) == 1 else error  # shutil adds to it
        said = error.msg if isinstance(error, SyntaxError) else (str(text).splitlines() or [""])[0][:300]
        if isinstance(error, NotImplementedError) and what == "backward" and own:
            raise Failed("BLANK", f"the backward is not written yet: {said}") from None
        where = f" (line {number})" if number else ""
        raise Failed("ERROR", f"{what} raised {type(error).__name__}: {said}{where}") from None
