"""Anybody's function and gradient as a Subject: traced by JAX where that keeps the meaning, else called on the host."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import expect, show
from ..dtypes import combine, partition, same_structure
from ..params import named_leaves
from .subject import Subject, Vector, WrongStructure, leaves_of, ravel, unraveller

SAME = 1e-5  # relative: values of one function, computed twice or in two ways
REACH = (0.0, 1e-3, 1e-1, 1.0)  # how far from the point a traced function is compared with the function called


def function_subject(fn: Callable, gradient_fn: Callable | None, args: tuple,
                     argnums: int | Sequence[int]) -> tuple[Subject, Vector, Any]:
    """Returns `(subject, theta, fixed)` of a pair (fn, gradient fn).

    gradient_fn None: fn is a custom_vjp function. Raises ValueError, in one line, for what cannot be checked.
    """
    expect(callable(fn), "fn", "a function", fn)
    expect(gradient_fn is None or callable(gradient_fn), "gradient_fn", "a function or None", gradient_fn)
    chosen = _chosen(argnums, len(args))
    given = {name: args[i] for i, name in _names(fn, chosen).items()}
    leaves = leaves_of(jax.tree.map(lambda leaf: _numbers(leaf) if is_float(leaf) else None, given))
    unchecked = _unchecked(given)
    positions = ", ".join(f"argument {i}" for i in chosen)
    expect(bool(leaves), positions, "real floating numbers to differentiate in", ", ".join(unchecked) or "none")
    called = _Called("fn", fn, args, chosen)
    theta = called.theta
    value = called.value(theta)
    _expect_a_function(called, value)

    def traced(theta: Vector, fixed: Any = None) -> Vector:
        with contextlib.redirect_stdout(io.StringIO()):
            return ravel(fn(*called.arguments(theta, lambda leaf, array: array)))

    def pulled(theta: Vector, fixed: Any, dy: Vector) -> Vector:
        y, pullback = jax.vjp(traced, theta)
        return pullback(dy.astype(y.dtype))[0]

    def own_rule(theta: Vector, fixed: Any, dy: Vector) -> Vector:
        try:
            return pulled(theta, fixed, dy)
        except (TypeError, ValueError) as error:
            raise WrongStructure(f"the rule raises {_in_one_line(error)}") from error

    name, problem = getattr(fn, "__name__", type(fn).__name__), _problem_of_tracing(traced, theta)
    if gradient_fn is None:
        expect(problem is None, "fn", "a function that JAX can trace, for its gradient_fn is None", problem)
        expect(jax.eval_shape(traced, theta).size > 0, "fn", "real floating numbers as its value", value)
        return Subject(name, leaves, traced, own_rule, None, unchecked), theta, None

    expect(_is_scalar(value), "fn", "a scalar value (or gradient_fn=None)", value)
    asked, several = _Called("gradient_fn", gradient_fn, args, chosen), isinstance(argnums, Sequence)

    def rule(theta: Vector, fixed: Any, dy: Vector) -> Vector:
        got = asked.value(theta)
        if several and not (isinstance(got, (tuple, list)) and len(got) == len(chosen)):
            raise WrongStructure(f"the gradient: expected a tuple of {len(chosen)}, one for each of argnums, got {show(got)}")
        pieces = [_gradient(each, args[i]) for i, each in zip(chosen, got if several else (got,))]
        whole = np.concatenate(pieces)
        return (whole * np.asarray(dy[0], np.float64)).astype(whole.dtype)

    host = problem is not None or not called.agrees_with(traced)
    f = (lambda theta, fixed: called.number(theta)) if host else traced
    return Subject(name, leaves, f, rule, None if host else pulled, unchecked, host, rule_on_host=True), theta, None


def is_float(leaf: Any) -> bool:
    """Returns True for a real floating array, tensor or Python number; False for any other object."""
    if hasattr(leaf, "new_tensor"):
        return bool(leaf.dtype.is_floating_point)
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
    return isinstance(leaf, float)


class _Called:
    """A function called on the host, with fresh copies of its arguments, of the types they were given in."""

    def __init__(self, what: str, fn: Callable, args: tuple, chosen: tuple[int, ...]) -> None:
        self._what, self._fn, self._args = what, fn, args
        self._inputs, self._others = partition({i: args[i] for i in chosen}, is_float)
        arrays = jax.tree.map(lambda leaf: np.asarray(_numbers(leaf), np.float64), self._inputs)
        self.theta, self._unravel = np.asarray(ravel(arrays), np.float64), unraveller(arrays)
        self._split = partial(_split, jax.tree.structure(arrays), [leaf.shape for leaf in jax.tree.leaves(arrays)])
        self._convert, self._silent = _like, False

    def arguments(self, theta: Vector, convert: Callable[[Any, Any], Any]) -> list[Any]:
        """Returns the arguments at theta, other floating arrays in its dtype."""
        def beside(leaf: Any) -> Any:
            numeric = is_float(leaf) and not isinstance(leaf, float)
            return convert(leaf, _numbers(leaf).astype(theta.dtype)) if numeric else _copied(leaf)

        pieces = self._split(theta) if isinstance(theta, np.ndarray) else self._unravel(theta)
        moved = jax.tree.map(convert, self._inputs, pieces)
        return [combine(moved[i], jax.tree.map(_copied, self._others[i])) if i in moved else jax.tree.map(beside, arg)
                for i, arg in enumerate(self._args)]

    def __call__(self, theta: Vector) -> Any:
        """Calls the function. Only what its first call prints is shown."""
        arguments = self.arguments(np.asarray(theta), self._convert)
        shown = contextlib.redirect_stdout(io.StringIO()) if self._silent else contextlib.nullcontext()
        self._silent = True
        with shown, np.errstate(all="ignore"):
            return self._fn(*arguments)

    def value(self, theta: Vector) -> Any:
        """Returns the value. Raises ValueError, in one line, where the function raises with arrays of NumPy and of JAX."""
        try:
            return self(theta)
        except Exception as error:
            first = error
        try:
            self._convert = lambda leaf, array: jnp.asarray(array)
            return self(theta)
        except Exception:
            self._convert = _like
        raise ValueError(f"{self._what}: expected a value, but it raises {_in_one_line(first)}") from first

    def number(self, theta: Vector) -> Vector:
        """Returns the scalar value; NaN where the function raises, as outside its domain."""
        try:
            value = self(theta)
        except (ArithmeticError, ValueError, RuntimeError):
            return np.full(1, np.nan)
        expect(_is_scalar(value), self._what, "a scalar value at every point", value)
        return np.asarray(_numbers(jax.tree.leaves(value)[0]), np.float64).reshape(1)

    def agrees_with(self, traced: Callable) -> bool:
        """Returns whether a traced function has the values of the function called, here and around."""
        rng, compiled = np.random.default_rng(0), jax.jit(traced)
        for reach in REACH:
            moved = self.theta + reach * np.maximum(1.0, np.abs(self.theta)) * rng.standard_normal(self.theta.size)
            if not _near(self.number(moved), np.asarray(compiled(moved), np.float64)):
                return False
        return True


def _split(treedef: Any, shapes: list[tuple[int, ...]], theta: np.ndarray) -> Any:
    """Returns theta as the arguments it is made of, by NumPy alone: in extended precision too."""
    pieces = np.split(theta, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    return jax.tree.unflatten(treedef, [piece.reshape(shape) for piece, shape in zip(pieces, shapes)])


def _chosen(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Returns argnums as positions from 0."""
    each = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    whole = all(isinstance(i, Integral) and not isinstance(i, bool) and -count <= i < count for i in each)
    chosen = tuple(int(i) % count for i in each) if whole and count else ()
    expect(bool(chosen) and len(set(chosen)) == len(chosen), "argnums",
           f"different positions among the {count} arguments", repr(argnums))
    return chosen


def _names(fn: Callable, chosen: tuple[int, ...]) -> dict[int, str]:
    """Returns the arguments' own names where the function has them."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = {i: each.name for i, each in enumerate(parameters)
             if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)}
    return {i: named.get(i, f"argument {i}") for i in chosen}


def _expect_a_function(called: _Called, value: Any) -> None:
    """Raises ValueError for a function that returns something else when called again."""
    again = called.value(called.theta)
    expect(same_structure(value, again), "fn", "one structure at every call", f"{show(value)}, then {show(again)}")
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(again)):
        if not _is_numeric(a):
            continue
        a, b = _numbers(a), _numbers(b)
        expect(a.shape == b.shape, "fn", "one shape at every call", f"{show(a)}, then {show(b)}")
        with np.errstate(invalid="ignore"):  # infinite twice
            difference = f"values that differ by {np.max(np.abs(a - b), initial=0.0):.3g}"
        same = "the same value when called again at the same arguments"
        hint = "It draws at random or remembers: give it a fixed key or seed"
        expect(_near(a, b), "fn", same, difference, hint)


def _problem_of_tracing(traced: Callable, theta: Vector) -> str | None:
    try:
        jax.eval_shape(traced, theta)
    except Exception as error:
        return _in_one_line(error)
    return None


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")


def _gradient(got: Any, argument: Any) -> Vector:
    """Returns the gradient in one argument as a vector. Raises WrongStructure."""
    wanted = partition(argument, is_float)[0]
    if isinstance(argument, (list, tuple)) and _is_numeric(got) and got.shape == np.shape(argument):
        return _floats(got)  # an array for a list of numbers
    treedef: Any = jax.tree.structure(argument)
    leaves = jax.tree.leaves(argument)
    try:
        gradients = [g for g, leaf in zip(treedef.flatten_up_to(got), leaves) if is_float(leaf)]
    except ValueError:
        gradients = jax.tree.leaves(got) if same_structure(got, wanted) else []
    shapes = [np.shape(_numbers(leaf)) for leaf in jax.tree.leaves(wanted)]
    if [_numbers(g).shape if _is_numeric(g) else None for g in gradients] != shapes:
        raise WrongStructure(f"the gradient: expected structure and shapes of the argument it is taken in, {show(wanted)}, "
                             f"got {show(got)}")
    return np.concatenate([_floats(g) for g in gradients]) if gradients else np.zeros(0)


def _floats(leaf: Any) -> Vector:
    """Returns the numbers of a leaf in their floating dtype, which says how far they are rounded; others in float64."""
    flat = _numbers(leaf).ravel()
    return flat if jnp.issubdtype(flat.dtype, jnp.floating) else flat.astype(np.float64)


def _unchecked(given: dict[str, Any]) -> tuple[str, ...]:
    """Returns what of the chosen arguments has no gradient: whole numbers, complex ones, other objects, empty arrays."""
    return tuple(f"{path} ({show(leaf) if hasattr(leaf, 'dtype') else type(leaf).__name__})"
                 for path, leaf in named_leaves(given) if leaf is not None and not (is_float(leaf) and np.size(_numbers(leaf))))


def _is_numeric(leaf: Any) -> bool:
    """Returns True for real numbers in any array, tensor or Python number."""
    if hasattr(leaf, "new_tensor"):
        return not leaf.dtype.is_complex
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer))
    return isinstance(leaf, Real) and not isinstance(leaf, bool)


def _is_scalar(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return len(leaves) == 1 and _is_numeric(leaves[0]) and _numbers(leaves[0]).size == 1


def _numbers(leaf: Any) -> np.ndarray:
    """Returns an array, tensor or number as a NumPy array."""
    return np.asarray(leaf.detach().cpu().numpy() if hasattr(leaf, "new_tensor") else leaf)


def _near(a: Any, b: Any) -> bool:
    """Returns whether values agree as two evaluations of one function do."""
    both = np.isnan(a) & np.isnan(b) | (a == b)
    size = np.max(np.abs(np.where(np.isfinite(a), a, 0.0)), initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool(np.all(both | (np.abs(a - b) <= SAME * size)))


def _like(leaf: Any, array: np.ndarray) -> Any:
    """Returns a float64 array as what the caller gave: an array of JAX or NumPy, a tensor or a number."""
    if hasattr(leaf, "new_tensor"):
        return leaf.detach().double().new_tensor(array).requires_grad_(leaf.requires_grad)
    if isinstance(leaf, jax.Array):
        return jnp.asarray(array)
    if isinstance(leaf, np.ndarray):
        return np.array(array)
    return float(array) if type(leaf) is float else np.float64(array)


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
