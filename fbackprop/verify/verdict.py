"""From evidence to a verdict: OK, WRONG, KINK or NOISY, per leaf, with the element that decided it.

A rule is WRONG when an oracle disagrees beyond its bound and the function has no kink there that explains it; KINK when the
one-sided slopes differ and the rule's value lies between them; NOISY when nothing disagrees but differences could not have
seen an error of a thousandth. Bounds and why: docs/checking.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .oracles import EPS, TAYLOR_STEPS, Evidence, Oracles
from .subject import Leaf

VERDICTS = ("OK", "KINK", "NOISY", "WRONG")  # from harmless to harmful
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
DIFFERENCE_TOLERANCE = 1e-7
INNER_UNITS = 16  # of the last place of a narrow dtype inside
ROUGH_HINT = "The value is flat or rough over small steps: rounding hides what the differences would say"
INFINITE_HINT = "The function is not finite here: nothing can be judged"
UNJUDGED_HINT = "Neither jax.vjp nor the differences are finite at some elements: these are not judged"
KINK_HINT = "The one-sided slopes differ: any value between them is a convention"
USED_OTHERWISE = {False: 1e-9, True: 1e-6}  # relative, of the same rule; larger where jax measured no rounding of it
BLIND = 1e-3  # a bound above this share of the leaf can judge nothing
FAR = 1e-6  # an error, relative, that is no rounding where differences agree with jax.vjp
CLOSE = 10.0  # an error in float32, in bounds, up to which rounding is measured once more
TAYLOR_ORDER = 1.95
SAFETY = 4.0  # rounding of a sum of many terms, in units of one rounding


@dataclass(frozen=True)
class Finding:
    """What one oracle found for one leaf. error and bound are absolute."""

    verdict: str
    layer: str
    leaf: str
    oracle: str
    dtype: str
    index: tuple[int, ...] | None = None
    expected: float = 0.0
    got: float = 0.0
    error: float = 0.0
    bound: float = 0.0
    scale: float = 0.0  # the largest magnitude in the leaf
    hint: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        """Returns the finding in a few JSON fields."""
        shown = ("verdict", "layer", "leaf", "oracle", "dtype", "error", "bound", "hint")
        return {name: getattr(self, name) for name in shown}

    def __str__(self) -> str:
        where = "" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        if self.oracle == "structure":  # nothing could be compared
            return f"{self.verdict:5} {self.layer}  {self.hint}"
        text = f"{self.verdict:5} {self.layer}  {self.leaf}{where}  {self.oracle} {self.dtype}"
        if self.oracle == "value":
            return f"{text}: {self.hint}"
        if self.verdict != "OK":
            text += f": expected {self.expected:.6g}, got {self.got:.6g}"
        text += f" (error {self.error:.2g}, bound {self.bound:.2g})"
        return text + (f". {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Report:
    """All findings of a check; its verdict is the most harmful one. Prints what is not OK, then a summary line."""

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()  # what of the arguments has no gradient
    notes: tuple[str, ...] = ()  # what else the reader has to know, in sentences

    @property
    def verdict(self) -> str:
        return max((f.verdict for f in self.findings), key=VERDICTS.index, default="OK")

    @property
    def worst(self) -> Finding | None:
        """Returns the most harmful finding; among equals the one nearest to its bound."""
        return max(self.findings, key=lambda f: (VERDICTS.index(f.verdict), f.error / f.bound if f.bound else 0), default=None)

    @property
    def hint(self) -> str:
        """Returns the worst finding's hint, or that of another finding as harmful."""
        findings = (self.worst, *self.findings)
        return next((f.hint for f in findings if f and f.hint and f.verdict == self.verdict), "")

    def with_hints(self, hints: dict[str, str]) -> Report:
        """Returns the report with the hint of each leaf put into what is WRONG there."""
        hinted = lambda f: replace(f, hint=hints.get(f.leaf, f.hint)) if f.verdict == "WRONG" else f
        return replace(self, findings=tuple(map(hinted, self.findings)))

    def __add__(self, other: Report) -> Report:
        return Report(self.findings + other.findings, self.unchecked + other.unchecked, self.notes + other.notes)

    def __str__(self) -> str:
        bad = self._worst_of_each_leaf()
        leaves = {(finding.layer, finding.leaf) for finding in self.findings}
        dtypes = ", ".join(dict.fromkeys(finding.dtype for finding in self.findings if finding.dtype))
        looked = f"{len(leaves)} leaves in {dtypes}, {len(bad)} findings" if dtypes else "the structure is another one"
        if not self.findings:
            looked = "the structure fits; there is no floating number to check"
        if self.unchecked:
            looked += f". Not checked: {', '.join(self.unchecked)}"
        looked = ". ".join([looked, *self.notes])
        return "\n".join([*map(str, bad), f"{self.verdict}: {looked}"])

    def _worst_of_each_leaf(self) -> list[Finding]:
        """Returns the most harmful finding of every leaf that is not OK, with all dtypes that show as much."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            if finding.verdict != "OK":
                groups.setdefault((finding.layer, finding.leaf), []).append(finding)
        worst = []
        for group in groups.values():
            first = max(group, key=lambda finding: VERDICTS.index(finding.verdict))
            alike = dict.fromkeys(finding.dtype for finding in group if finding.verdict == first.verdict)
            worst.append(replace(first, dtype=", ".join(alike)))
        return worst


def judge(oracles: Oracles, evidence: Evidence, rule: Any, layer: str) -> list[Finding]:
    """Returns one finding per leaf, of the oracle that is hardest on it, in float64."""
    found = []
    for number, leaf in enumerate(oracles.subject.leaves):
        finding, off = _judge_leaf(oracles, evidence, rule, number, leaf, layer)
        if finding.verdict == "WRONG":
            finding = _excused(oracles, evidence, rule, number, leaf, finding, off)
        found.append(finding)
    return found


def judge_uses(oracles: Oracles, evidence: Evidence, rule: Any, uses: Iterable[tuple[str, Any]], layer: str) -> list[Finding]:
    """Returns a WRONG finding for every leaf that the same rule gives otherwise in one of its uses, in float64."""
    found = []
    tolerance = max(USED_OTHERWISE[evidence.auto is None], _tolerance(_narrowest(rule.dtype, evidence.inner)))
    for use, got in uses:
        for number, leaf in enumerate(oracles.subject.leaves):
            expected, where = rule[leaf.slice].astype(np.float64), np.arange(leaf.start, leaf.stop)
            base = Finding("OK", layer, leaf.path, "", "float64", scale=_largest(expected))
            bound = 2 * (tolerance * base.scale + SAFETY * float(evidence.noise[number]))
            finding, _ = _compare(base, leaf, f"the rule {use}", got[leaf.slice].astype(np.float64), expected, bound, where,
                                  np.isfinite(expected))
            found += [finding] if finding.verdict == "WRONG" else []
    return found


def _excused(oracles: Oracles, evidence: Evidence, rule: Any, number: int, leaf: Leaf, wrong: Finding, off: Any) -> Finding:
    """Returns the finding as it is, NOISY if more rounding shows in larger steps, or KINK where a kink explains it."""
    if not _certain(oracles, evidence, rule, number, leaf):
        evidence = oracles.widened(evidence)
        again, _ = _judge_leaf(oracles, evidence, rule, number, leaf, wrong.layer)
        if again.verdict != "WRONG":
            return replace(again, verdict="NOISY", hint=ROUGH_HINT)
    slope = float(rule[leaf.slice] @ evidence.v[leaf.slice])
    bends = (oracles.bends(evidence, float(rule[i]), element=int(i)) for i in off)
    bent = all(bends) if len(off) else oracles.bends(evidence, slope, leaf=number)
    if bent and not (len(off) > 1 and _ties_broken(oracles, evidence, rule, number, leaf, off)):
        return replace(wrong, verdict="KINK", hint=KINK_HINT)
    return wrong


def _ties_broken(oracles: Oracles, evidence: Evidence, rule: Any, number: int, leaf: Leaf, off: Any) -> bool:
    """Returns whether the rule shares no tie out: among the elements jax differs at, or among all that bend."""
    bending, direction = oracles.bending(evidence, leaf)
    groups = [np.union1d(off, bending)]
    if evidence.auto is not None:
        error = np.abs(rule[leaf.slice] - evidence.auto[leaf.slice])
        groups.append(leaf.start + np.flatnonzero(error > DIFFERENCE_TOLERANCE * _largest(evidence.auto[leaf.slice])))
    signs = np.ones_like(evidence.v)
    signs[bending] = direction
    return any(len(group) > 1 and oracles.shared(evidence, rule, group, signs[group], number) for group in groups)


def _certain(oracles: Oracles, evidence: Evidence, rule: Any, number: int, leaf: Leaf) -> bool:
    """Returns whether all oracles agree with each other and the rule is far from them."""
    if evidence.auto is None:
        return False
    of_auto, _ = _judge_leaf(oracles, evidence, evidence.auto, number, leaf, "")
    if of_auto.verdict != "OK":
        return False
    auto = evidence.auto[leaf.slice]
    return _largest(rule[leaf.slice] - auto) > FAR * _largest(auto)


def _judge_leaf(oracles: Oracles, evidence: Evidence, rule: Any, number: int, leaf: Leaf, layer: str) -> tuple[Finding, Any]:
    """Returns the finding of the hardest oracle, and the elements of theta that an oracle disagrees with."""
    inside = (evidence.coordinates >= leaf.start) & (evidence.coordinates < leaf.stop)
    where, differences = evidence.coordinates[inside], evidence.differences[inside]
    auto, got, v = evidence.auto, rule[leaf.slice].astype(np.float64), evidence.v[leaf.slice]
    noise = SAFETY * float(evidence.noise[number])
    scale = _largest(differences if auto is None else auto[leaf.slice])
    base = Finding("OK", layer, leaf.path, "", "float64", scale=scale)
    if not np.isfinite(evidence.rounding):
        return replace(base, verdict="NOISY", oracle="value", hint=INFINITE_HINT), np.zeros(0, int)
    narrow = _narrowest(rule.dtype, evidence.inner)
    tolerance = _tolerance(narrow)
    found, off = [], np.zeros(0, int)

    if auto is not None:
        finite = np.isfinite(auto[leaf.slice])  # elsewhere the differences decide
        bound = tolerance * scale + noise
        expected = np.where(finite, auto[leaf.slice], got)
        finding, off = _compare(base, leaf, "jax.vjp", got, expected, bound, np.arange(leaf.start, leaf.stop), finite)
        if finding.verdict == "OK" and bound > scale > 0 and finding.error > tolerance * scale:
            finding = replace(finding, verdict="NOISY", hint=_limit(narrow))
        found = [finding]

    floor = SAFETY * evidence.rounding / float(np.min(evidence.steps[inside]))
    bound = max(DIFFERENCE_TOLERANCE, tolerance) * scale + floor + evidence.truncation[inside]
    sloped = np.isfinite(differences) & np.isfinite(bound)
    finding, wrong = _compare(base, leaf, "differences", rule[where].astype(np.float64), differences, bound, where, sloped)
    silent = not np.any(differences) and not np.any(got)  # nothing depends on this leaf, and the rule says so
    if finding.verdict == "OK" and floor > BLIND * scale and not silent:
        finding = replace(finding, verdict="NOISY", hint=_limit(narrow))
    found, off = [*found, finding], np.union1d(off, wrong)
    judged = np.zeros(leaf.stop - leaf.start, bool) if auto is None else np.isfinite(auto[leaf.slice])
    judged[where[sloped] - leaf.start] = True
    if (auto is not None and not np.all(judged)) or not np.any(judged):
        found.append(replace(base, verdict="NOISY", oracle="value", hint=UNJUDGED_HINT))

    slope, terms = float(got @ v), float(np.abs(got) @ np.abs(v))
    if evidence.jvp is not None and evidence.jvp_terms is not None and np.isfinite(evidence.jvp[number]):
        along = float(evidence.jvp[number])
        bound = tolerance * (float(evidence.jvp_terms[number]) + terms) + noise * float(np.sum(np.abs(v)))
        error = abs(slope - along)
        agrees = error <= bound or not np.isfinite(slope)  # an element of the rule that is not finite is judged by itself
        found.append(replace(base, verdict="OK" if agrees else "WRONG", oracle="dot product with jax.jvp",
                             expected=along, got=slope, error=error, bound=bound))
    found.append(_taylor(evidence, number, slope, tolerance * terms, base))
    if auto is None:
        found.append(_direction(evidence, number, slope, tolerance * terms, base))
    return max(found, key=lambda f: VERDICTS.index(f.verdict)), off


def _narrowest(*dtypes: Any) -> Any:
    """Returns the dtype with the fewest digits, None for float64."""
    narrow = [dtype for dtype in dtypes if dtype is not None and jnp.finfo(dtype).bits < 64]
    return max(narrow, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def _tolerance(dtype: Any) -> float:
    """Returns the relative tolerance of a computation with values in `dtype`."""
    name = "float64" if dtype is None else jnp.dtype(dtype).name
    return TOLERANCE[name] if name in TOLERANCE else INNER_UNITS * float(jnp.finfo(name).eps)


def _limit(dtype: Any) -> str:
    inside = "" if dtype is None else f". It computes in {jnp.dtype(dtype).name}"
    return f"The gradient is at rounding level here{inside}"


def _compare(base: Finding, leaf: Leaf, oracle: str, got: Any, expected: Any, bound: Any, where: Any,
             judged: Any = True) -> tuple[Finding, Any]:
    """Returns `(finding, elements of theta that disagree)`. NaN disagrees with everything that is `judged`."""
    with np.errstate(invalid="ignore"):
        errors = np.where(got == expected, 0.0, np.abs(got - expected))  # an infinite slope may be infinite
    errors = np.where(judged, np.where(np.isnan(errors), np.inf, errors), 0.0)
    bounds = np.where(judged, np.broadcast_to(bound, errors.shape), np.inf)
    worst = int(np.argmax(errors - np.where(np.isfinite(bounds), bounds, 0.0)))
    bound = bounds[worst]
    verdict = "OK" if np.all(errors <= bounds) else "WRONG"
    finding = replace(base, verdict=verdict, oracle=oracle, index=leaf.index(int(where[worst])), bound=float(bound),
                      expected=float(expected[worst]), got=float(got[worst]), error=float(errors[worst]))
    return finding, where[~(errors <= bounds)]


def _largest(values: Any) -> float:
    """Returns the largest magnitude among the finite values."""
    return float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))


def _taylor(evidence: Evidence, number: int, slope: float, allowed: float,
            base: Finding) -> Finding:
    """Judges that the Taylor remainder falls as the square of the step, or is rounding at the end.

    A wrong slope leaves an error of first order, far above rounding at every step. A network of many kinks has no clean order
    at the larger steps, where some are crossed; at the smallest its remainder is rounding.
    A slope of float32 is off by what is `allowed`.
    """
    with np.errstate(invalid="ignore"):
        remainders = np.abs(evidence.increments[number] - TAYLOR_STEPS * slope)
    rounding = SAFETY * (evidence.rounding + EPS * TAYLOR_STEPS * abs(slope))
    rounding += allowed * TAYLOR_STEPS
    order = 2.0
    if remainders[-1] > 10 * rounding[-1]:
        order = float(np.max(np.log(remainders[-3:-1] / remainders[-2:]) / np.log(TAYLOR_STEPS[0] / TAYLOR_STEPS[1])))
    ok = order >= TAYLOR_ORDER
    return replace(base, verdict="OK" if ok else "WRONG", oracle="order of the Taylor remainder", expected=2.0, got=order,
                   error=max(0.0, 2.0 - order), bound=2.0 - TAYLOR_ORDER)


def _direction(evidence: Evidence, number: int, slope: float, allowed: float,
               base: Finding) -> Finding:
    """Judges the slope along v by extrapolated differences, for elements that no difference was taken for."""
    h = TAYLOR_STEPS
    increments = evidence.increments[number]
    with np.errstate(invalid="ignore"):
        slopes = (16 * increments[1:] - increments[:-1]) / (12 * h[1:])  # what h contributes falls out, h squared stays
        changes = np.abs(np.diff(slopes))
        rounding = SAFETY * evidence.rounding / h[2:]
        bounds = allowed + DIFFERENCE_TOLERANCE * np.abs(slopes[1:]) + 2 * changes + rounding
    best = int(np.argmin(np.where(np.isfinite(bounds), bounds, np.inf)))
    error, bound = abs(slopes[1:][best] - slope), bounds[best]
    agrees = not np.isfinite(bound) or not np.isfinite(slope) or error <= bound
    return replace(base, verdict="OK" if agrees else "WRONG", oracle="differences along a direction",
                   expected=float(slopes[1:][best]), got=slope, error=float(error), bound=float(bound))


def judge_single(oracles: Oracles, evidence: Evidence, rule: Any, layer: str) -> list[Finding]:
    """Returns one finding per leaf against jax.vjp of the same forward, in float32."""
    if evidence.single is None:
        return []
    (auto, noise), found, narrow = evidence.single, [], evidence.point.astype(np.float32)
    evidence = replace(evidence, point=narrow.astype(np.float64))
    inner = np.float32 if evidence.inner is None else _narrowest(np.float32, evidence.inner)
    overflows = not (np.isfinite(evidence.rounding) and np.all(np.isfinite(evidence.point.theta)))
    for number, leaf in enumerate(oracles.subject.leaves):
        expected, got = auto[leaf.slice].astype(np.float64), rule[leaf.slice].astype(np.float64)
        base = Finding("OK", layer, leaf.path, "", "float32", scale=_largest(expected))
        if overflows:
            found.append(replace(base, verdict="NOISY", oracle="value", hint=INFINITE_HINT))
            continue
        bound = _tolerance(inner) * base.scale + SAFETY * float(noise[number])
        where, finite = np.arange(leaf.start, leaf.stop), np.isfinite(expected)
        finding, off = _compare(base, leaf, "jax.vjp", got, np.where(finite, expected, got), bound, where, finite)
        if len(off) and all(oracles.bends(evidence, float(rule[i]), element=int(i)) for i in off):
            finding = replace(finding, verdict="KINK", hint=KINK_HINT)
        elif len(off) and finding.error <= CLOSE * bound and (
                finding.error <= bound + SAFETY * oracles.inner_noise(narrow)[0][number]):
            finding = replace(finding, verdict="NOISY", hint=_limit(inner))
        off = where[finite & ~(np.abs(got - expected) <= _tolerance(inner) * base.scale)]
        if finding.verdict == "OK" and len(off) and bound > base.scale > 0:
            bent = all(oracles.bends(evidence, float(rule[i]), element=int(i)) for i in off)
            finding = replace(finding, verdict="KINK" if bent else "NOISY", hint=KINK_HINT if bent else _limit(inner))
        if finding.verdict == "OK" and not np.array_equal(expected[~finite], got[~finite]):
            finding = replace(finding, verdict="NOISY", hint="jax.vjp is not finite in float32 at some elements")
        found.append(finding)
    return found


def judge_narrow(oracles: Oracles, dtype: str, rule: Any, auto: Any, truth: Any, own: Any, layer: str) -> list[Finding]:
    """Returns one finding per leaf in bfloat16 or float16.

    The bound is twice jax.grad's error against float64, or 2 ulp. own: that error, per leaf, at
    other cotangents.
    """
    found = []
    for leaf, error in zip(oracles.subject.leaves, own):
        expected = truth[leaf.slice]
        scale = _largest(expected)
        ulp = float(ml_dtypes.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(scale or 1.0))
        bound = max(2 * float(error), 2 * float(np.max(np.abs(auto[leaf.slice].astype(np.float64) - expected))), 2 * ulp)
        base = Finding("OK", layer, leaf.path, "", dtype, scale=scale)
        where = np.arange(leaf.start, leaf.stop)
        found.append(_compare(base, leaf, "float64", rule[leaf.slice].astype(np.float64), expected, bound, where)[0])
    return found
