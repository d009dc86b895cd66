"""Errors that teach: what is wrong, in which layer, what was expected, what came, what to do.

Raised while tracing, so that a wrong shape never reaches the device. Structure is a TypeError, everything else a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from .dtypes import partition, same_structure


def show(tree: Any) -> str:
    """Returns a pytree in a few words: `(float32[3,5], int32[3])`, `{'w': float32[5,7]}`."""
    if tree is None or isinstance(tree, (str, bool, int, float)):
        return repr(tree)
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {show(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        inner = ", ".join(map(show, tree))
        return f"[{inner}]" if isinstance(tree, list) else f"({inner}{',' * (len(tree) == 1)})"
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return f"{tree.dtype}[{','.join(map(str, tree.shape))}]"
    return type(tree).__name__


def expect(ok: bool, what: str, expected: str, got: Any, hint: str = "", error: type[Exception] = ValueError) -> None:
    """Raises `error` with one sentence built from the parts unless `ok`."""
    if not ok:
        got = got if isinstance(got, str) else show(got)
        raise error(f"{what}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def is_whole(value: Any, least: int | None = None) -> bool:
    """Returns whether a value is a whole number, NumPy's too, and at least `least`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and (least is None or int(value) >= least)


def expect_whole(what: str, value: Any, least: int = 1) -> int:
    """Returns a whole number, NumPy's too, as an int. Raises ValueError unless it is one of at least `least`."""
    expect(is_whole(value, least), what, f"a whole number of at least {least}", repr(value))
    return int(value)


def expect_wholes(what: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Returns whole numbers as ints. Raises ValueError for one alone, or an entry that is none."""
    ok = isinstance(values, Iterable) and not isinstance(values, str)
    expect(ok, what, "a tuple of whole numbers", repr(values), f"Write ({values!r},) for one")
    return tuple(expect_whole(what, value, least) for value in values)


def expect_key(key: Any) -> None:
    """Raises TypeError unless `key` is a key of jax.random, of either kind."""
    dtype = getattr(key, "dtype", None)
    ok = dtype is not None and (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32)
    expect(ok, "key", "a key of jax.random", key, "Write net.init(jax.random.key(0), x)", TypeError)


def expect_params(params: Any, *names: str) -> None:
    """Raises TypeError unless `params` is a dict with exactly these keys."""
    wanted = "{" + ", ".join(map(repr, names)) + "}" if names else "()"
    ok = isinstance(params, dict) and set(params) == set(names) if names else isinstance(params, tuple) and not params
    expect(ok, "params", wanted, params, "Were they made by this layer's own init, or graft()ed?", TypeError)


def expect_array(what: str, array: Any, hint: str = "") -> None:
    """TypeError unless it has a shape and a dtype."""
    ok = hasattr(array, "shape") and hasattr(array, "dtype")
    expect(ok, what, "one array", array, hint, TypeError)


def expect_floating(**arrays: Any) -> None:
    """Raises TypeError for what is no array, ValueError unless all have one floating dtype."""
    for name, array in arrays.items():
        expect_array(name, array, "A layer for several inputs has to be chosen, or parallel(...) put "
                                  "around this one")
        expect(jnp.issubdtype(array.dtype, jnp.floating), name, "a floating dtype", array,
               "Convert it first, for example images / 255.0")
    dtypes = {str(array.dtype) for array in arrays.values()}
    expect(len(dtypes) == 1, " and ".join(arrays), "one dtype", ", ".join(f"{n} {show(a)}" for n, a in arrays.items()),
           "Cast the batch to the dtype of the parameters")


def expect_like(got: Any, wanted: Any, what: str) -> None:
    """Raises TypeError for another structure, ValueError for other shapes or dtypes of floats."""
    a_floats, b_floats = (partition(tree)[0] for tree in (got, wanted))
    expect(same_structure(a_floats, b_floats), what, f"the structure {show(wanted)}", got, error=TypeError)
    for a, b in zip(jax.tree.leaves(a_floats), jax.tree.leaves(b_floats)):
        expect(jnp.shape(a) == jnp.shape(b) and jnp.result_type(a) == jnp.result_type(b), what, show(wanted), got)


@contextmanager
def at(index: int | str, layer: Any) -> Iterator[None]:
    """Runs a child: names it for the profiler and puts its path in front of the errors it raises."""
    try:
        with jax.named_scope(layer.name):
            yield
    except (TypeError, ValueError) as error:
        path, name, text = getattr(error, "at_layer", ("", layer.name, str(error)))
        path = f"{index}/{path}" if path else str(index)
        error.at_layer = path, name, text  # type: ignore[union-attr]
        error.args = (f"layer {path} {name}: {text}",)
        raise
