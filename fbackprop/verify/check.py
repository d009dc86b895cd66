"""The checks people call: a Layer, a network, a loss, anybody's pair (fn, gradient fn), anybody's custom_vjp function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..checks import expect
from ..compose import objective
from ..dtypes import canonical, is_floating
from ..jaxprs.walk import by_autodiff
from ..layer import Layer
from ..params import Tree, is_carried, merge, split
from .culprit import culprits
from .functions import function_subject
from .oracles import LARGE, Oracles, Point, quick_jit
from .planted import nearest_bug
from .subject import Subject, WrongStructure, cast, layer_subject
from .uses import agrees_with_jax, batch_of_one, uses
from .verdict import Finding, Report, judge, judge_narrow, judge_single, judge_uses

DTYPES = ("float64", "float32")
KNOWN = (*DTYPES, "bfloat16", "float16")
BY_ITSELF = "The rule is made by jax.vjp, so that oracle compares it with itself"
STREAM = 0x6662_7072_6F70  # added to every seed: `default_rng(seed)` is what users draw their inputs from


def check_layer(layer: Layer, x: Any, params: Tree | None = None, *, seed: int = 0, dtypes: Sequence[str] = DTYPES,
                hints: bool = True) -> Report:
    """Judges the rule of `layer` at `x`, params and a random cotangent, by every oracle, in each dtype.

    x: arrays, or ShapeDtypeStructs, then normal numbers (zeros where integer) are drawn. params: the layer's own by default,
    their trainable leaves replaced by normal numbers, for a bias of zeros hides mistakes. hints: name the nearest mistake.
    """
    _expect_input(layer, x)
    rng = stream(seed)
    with jax.enable_x64(True):
        x = cast(canonical(draw(x, rng)), np.float64)  # no array of the user's can be changed in place
        params = draw_params(layer, x, rng) if params is None else cast(canonical(params), np.float64)
        report = _judged(layer, x, params, rng, dtypes, hints and not layer.parts)
        if report.verdict == "WRONG" and layer.parts:
            check = lambda part, x, params: _judged(part, x, params, stream(seed), DTYPES[:1], hints)
            blamed = culprits(layer, params, x, check)
            report = blamed or _hinted(report, layer, params, x, rng, hints)
    return report


def _expect_input(layer: Any, x: Any) -> None:
    """Raises TypeError for no Layer, and for an x that is a shape or holds words."""
    expect(isinstance(layer, Layer), "check_layer layer", "a Layer", getattr(layer, "__name__", repr(layer)),
           "Write check_layer(dense(3), x); check_gradient takes functions", TypeError)
    leaves = jax.tree.leaves(x)
    shape = bool(leaves) and all(type(leaf) is int for leaf in leaves)
    expect(not shape, "check_layer x", "arrays, or specs of them", repr(x),
           "For a shape alone write jax.ShapeDtypeStruct((3, 5), float)", TypeError)
    words = [leaf for leaf in leaves if not (hasattr(leaf, "dtype") or isinstance(leaf, (int, float)))]
    expect(not words, "check_layer x", "arrays, or specs of them", repr(x), error=TypeError)


def _judged(layer: Layer, x: Any, params: Tree, rng: np.random.Generator, dtypes: Sequence[str], hints: bool) -> Report:
    """Judges a layer as a whole. Inside `jax.enable_x64(True)`."""
    x, params = cast((x, params), np.float64)
    subject, theta, fixed = layer_subject(layer, params, x)
    report = check_subject(subject, theta, fixed, rng, dtypes)
    if report.verdict != "WRONG" and "float64" in dtypes and theta.size <= LARGE:
        report += _judged_at_one(layer, x, params, rng)
    return _hinted(report, layer, params, x, rng, hints)


def _judged_at_one(layer: Layer, x: Any, params: Tree, rng: np.random.Generator) -> Report:
    """Returns what is WRONG with a batch of one; nothing where the layer is made for the batch that it was given."""
    with suppress(Exception):
        first = batch_of_one(layer, *jax.tree.map(jnp.asarray, (params, x)))
        if first is None:
            return Report(())
        subject, theta, fixed = layer_subject(layer, params, first)
        point = Point.drawn(subject, theta, fixed, rng)
        at = (point.theta, point.fixed, point.dy)
        if not quick_jit(partial(agrees_with_jax, subject))(*at):
            report = check_point(Oracles(subject), point, rng, DTYPES[:1])
            name = f"{layer.name} at a batch of one"
            return Report(tuple(replace(finding, layer=name) for finding in report.findings if finding.verdict == "WRONG"))
    return Report(())


def _hinted(report: Report, layer: Layer, params: Tree, x: Any, rng: np.random.Generator, hints: bool) -> Report:
    """Returns the report with the nearest known mistake of every WRONG leaf."""
    small = sum(leaf.size for leaf in jax.tree.leaves((params, x)) if is_floating(leaf)) <= LARGE
    if not (hints and small and report.verdict == "WRONG"):  # every known mistake is a gradient in memory
        return report
    return report.with_hints(nearest_bug(layer, params, x, rng))


def check_loss(loss: Layer, y: Any, target: Any, **options: Any) -> Report:
    """Judges a loss as `check_layer` at (y, target): arrays or specs."""
    return check_layer(loss, (y, target), (), **options)


def check_network(net: Layer, loss: Layer | None, params: Tree, batch: Any, *, seed: int = 0,
                  dtypes: Sequence[str] = DTYPES) -> Report:
    """Judges the whole reverse chain on a batch, as `check_layer` judges a layer with parts."""
    return check_layer(objective(net, loss), batch, params, seed=seed, dtypes=dtypes)


def check_gradient(fn: Callable[..., Any], gradient_fn: Callable[..., Any] | None, *args: Any,
                   argnums: int | Sequence[int] = 0, seed: int = 0) -> Report:
    """Judges `gradient_fn(*args)` as the gradient of the scalar `fn(*args)` in its argument `argnums`, in float64.

    gradient_fn None: fn is a `custom_vjp` function of any output, judged by differences and Taylor order alone, since jax would
    ask the very rule under test. fn may be a NumPy or PyTorch function: then jax is no oracle either. Several argnums: the
    gradient is a tuple. Floating arguments are passed in float64, in the type they are given in.
    """
    rng = stream(seed)
    with jax.enable_x64(True):
        subject, theta, fixed = function_subject(fn, gradient_fn, args, argnums)
        return check_subject(subject, theta, fixed, rng, ("float64",))


def assert_rule(subject: Layer | Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raises AssertionError with the report if anything is WRONG, for tests.

    Judges a Layer as `check_layer`, anything else as `check_gradient`.
    """
    check: Callable[..., Report] = check_layer if isinstance(subject, Layer) else check_gradient
    report = check(subject, *args, **options)
    assert report.verdict != "WRONG", f"\n{report}"


def check_subject(subject: Subject, theta: Any, fixed: Any, rng: np.random.Generator, dtypes: Sequence[str]) -> Report:
    """Judges one Subject at one point with a random cotangent. Inside `jax.enable_x64(True)`."""
    try:
        point = Point.drawn(subject, theta, fixed, rng)
        report = check_point(Oracles(subject), point, rng, dtypes, otherwise=not subject.rule_on_host)
        at = (point.theta, point.fixed, point.dy)
        by_itself = subject.auto is not None and not subject.rule_on_host and by_autodiff(subject.rule, *at)
        return replace(report, notes=(BY_ITSELF,)) if by_itself else report
    except WrongStructure as error:
        return Report((Finding("WRONG", subject.name, "", "structure", "", hint=str(error)),), subject.unchecked)


def check_point(oracles: Oracles, point: Point, rng: np.random.Generator, dtypes: Sequence[str] = DTYPES,
                otherwise: bool = False) -> Report:
    """Judges the rule of compiled oracles at one more point of the same shape. Raises WrongStructure.

    otherwise: also that the rule gives the same for other sizes of dy, without jit, under vmap, traced again.
    """
    name, found = oracles.subject.name, []
    known = not isinstance(dtypes, str) and dtypes and set(dtypes) <= set(KNOWN)
    expect(bool(known), "dtypes", f"some of {', '.join(KNOWN)}", repr(dtypes))
    evidence = oracles.evidence(point, rng)
    for dtype in dtypes:
        if dtype == "float64":
            rule = oracles.rule(point)
            found += judge(oracles, evidence, rule, name)
            if otherwise and all(finding.verdict != "WRONG" for finding in found):
                found += judge_uses(oracles, evidence, rule, uses(oracles, point, evidence.inner is not None), name)
        elif dtype == "float32":
            found += judge_single(oracles, evidence, oracles.rule(point.astype(np.float32)), name)
        else:
            narrow = point.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            auto, _, _ = oracles.auto(narrow, rng)
            truth, _, _ = oracles.auto(narrow.astype(np.float64), rng)
            own = oracles.own_error(narrow, stream(0))
            found += judge_narrow(oracles, dtype, oracles.rule(narrow), auto, truth, own, name)
    return Report(tuple(found), oracles.subject.unchecked)


def stream(seed: int) -> np.random.Generator:
    """Returns random numbers that `np.random.default_rng(seed)` does not reproduce.

    A cotangent equal to the input would hide a rule that takes one for the other.
    """
    return np.random.default_rng([seed, STREAM])


def draw(x: Any, rng: np.random.Generator, always: bool = False) -> Any:
    """Draws normal numbers for floating specs, zeros for integers; keeps arrays unless `always`."""
    def one(leaf: Any) -> Any:
        if not (always or isinstance(leaf, jax.ShapeDtypeStruct)):
            return leaf
        return rng.standard_normal(leaf.shape) if is_floating(leaf) else np.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(one, x)


def draw_params(layer: Layer, x: Any, rng: np.random.Generator) -> Tree:
    """Draws the layer's own params, with normal numbers in every trainable floating leaf."""
    key, spec = jax.random.key(0), jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), x)
    params = jax.eval_shape(layer.init, key, spec)
    if any(is_carried(node) for node in jax.tree.leaves(params, is_leaf=is_carried)):
        params = layer.init(key, spec)  # a State has to be a real one
    trainable, state = split(params)
    return merge(draw(trainable, rng, always=True), cast(state, np.float64))

