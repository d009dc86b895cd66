"""Calls of makers: one that does not fit, as those of other frameworks, is told what to write."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np

from .checks import expect, is_whole, show
from .facts import Option

Make = TypeVar("Make", bound=Callable[..., Any])


def by_name(elsewhere: str = "", why: str = "") -> Callable[[Make], Make]:
    """Returns a decorator that checks the calls of a maker: their form, and some of the types.

    elsewhere: the arguments in the order of other frameworks, under this maker's names where it has
    them. why: what becomes of the others. The signature stays, for editors and type checkers.
    """

    def decorate(make: Make) -> Make:
        signature = inspect.signature(make)

        @wraps(make)
        def checked(*args: Any, **options: Any) -> Any:
            bound = _bound(signature, args, options)
            if bound is None:
                raise _correction(checked, elsewhere.split(), why, args, options)
            _expect_types(make, bound)
            return make(*args, **options)

        return cast(Make, checked)

    return decorate


def _is_number(value: Any) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real or getattr(value, "shape", None) == ()


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_function(value: Any) -> bool:
    return value is None or callable(value)


def _is_size(value: Any) -> bool:
    """Whether a value can be a number of features, or several."""
    return all(map(is_whole, value if isinstance(value, (tuple, list)) else (value,)))


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (_is_bool, "True or False"),
    "float": (_is_number, "a number"),
    "Initializer | None": (_is_function, "an initializer of jax.nn.initializers, or None"),
}


def _expect_types(make: Callable[..., Any], bound: inspect.BoundArguments) -> None:
    """Raises ValueError for an argument of a type that its annotation excludes."""
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        fits, expected = TYPES.get(parameter.annotation, (None, ""))
        if fits is None or fits(value):
            continue
        hint = ""
        if isinstance(parameter.default, bool):
            bound.arguments[name] = not parameter.default
            call = _written(make, bound.args, bound.kwargs)
            hint = f"Write {call}, or leave it out for {parameter.default}"
        expect(False, f"{make.__name__} {name}", expected, repr(value), hint)


def _bound(signature: inspect.Signature, args: Sequence[Any],
           options: Mapping[str, Any]) -> inspect.BoundArguments | None:
    """Returns the arguments by name, None where they do not fit."""
    try:
        return signature.bind(*args, **options)
    except TypeError:
        return None


def _correction(make: Callable[..., Any], elsewhere: list[str], why: str, args: tuple[Any, ...],
                options: dict[str, Any]) -> TypeError:
    """Returns an error with the call to write, or with what would be wrong there too."""
    signature = inspect.signature(make)
    said = f"{make.__name__}: expected {_form(make)}, got {_written(make, args, options)}"
    if any(getattr(value, "shape", ()) for value in args):
        return TypeError(f"{said}. It makes a Layer, and arrays go to the layer's forward")
    hints = []
    for read in _readings(list(signature.parameters), elsewhere, args, options):
        bound = _bound(signature, (), read)
        if bound is None:
            continue
        try:
            make(**read)
        except (TypeError, ValueError) as error:
            hints.append(str(error))
            continue
        hint = f"Write {_written(make, bound.args, bound.kwargs)}"
        dropped = len(read) < len(args) + len(options)
        hints.insert(0, f"{hint}: {why}" if dropped else hint)
        break
    return TypeError(". ".join([said, *hints[:1]]))


def _readings(own: list[str], elsewhere: list[str], args: tuple[Any, ...],
              options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields arguments by name, read as in other frameworks, then in the order of `own`."""
    for order in (elsewhere, own):
        known = dict.fromkeys((*order, *own))
        named = {_closest(name, known): value for name, value in options.items()}
        read = dict(zip(order, args)) | named
        dropped = {name: value for name, value in read.items() if name not in own}
        understood = set(dropped) <= set(order) and all(map(_is_size, dropped.values()))
        if len(read) == len(args) + len(options) and understood:
            yield {name: value for name, value in read.items() if name in own}


def _closest(name: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(name, known, 1)), name)


def _form(make: Callable[..., Any]) -> str:
    """Returns the call with `...` for the values of options."""
    parameters = inspect.signature(make).parameters.values()
    shown = (each.name + "=..." * (each.kind is each.KEYWORD_ONLY) for each in parameters)
    return f"{make.__name__}({', '.join(shown)})"


def _written(make: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Returns the call as a user writes it."""
    named = (f"{name}={_shown(value)}" for name, value in options.items())
    return f"{make.__name__}({', '.join([*map(_shown, args), *named])})"


def _shown(value: Any) -> str:
    return show(value) if getattr(value, "shape", ()) else str(Option("", value, True))
