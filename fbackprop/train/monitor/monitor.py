"""Monitor: watches a training by the numbers of its steps and probes, and says in words what goes wrong.

Its state is a function of what it was fed, in order: fed the same records after a restart, it is where it was.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from ...observe.origin import first_bad
from ...observe.reading import Reading, turn
from .alerts import Alert, Finding, Latch, Thresholds

KEPT = 64  # looks that are remembered, evenly over the whole run

Layers = Mapping[str, Mapping[str, float]]


class Monitor:
    """Feed `step` once per optimizer step and `probe` every so many; both return what is new.

    A kind is said once, with the layer it is worst in, and again only after it has ended.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds = thresholds or Thresholds()
        self._latch = Latch(thresholds.hold)
        self._first: list[float] = []  # losses
        self._losses: deque[float] = deque(maxlen=thresholds.window)
        self._moved: deque[tuple[float, float]] = deque(maxlen=thresholds.look)  # update / weights: of all, of the largest
        self._looks: list[tuple[int, float, dict[str, float]]] = []  # step, median loss, norms of the weights
        self._stride = self._seen = self._steps = 0
        self._layers: Layers = {}
        self._readings: dict[str, Reading] = {}

    def step(self, number: int, loss: float, layers: Layers) -> list[Alert]:
        """Takes the numbers of a step and returns the new alerts.

        layers: {layer path: {"grad_norm", "param_norm" (after the step), "update_norm"}}.
        """
        self._layers, self._steps = layers, self._steps + 1
        alerts = self._latch.look(number, self._non_finite(loss, layers))
        if "non-finite" in self._latch.raised or not math.isfinite(loss):
            return alerts + (self._latch.look(number, self._run_away()) if alerts else [])
        alerts += self._latch.look(number, self._spike(loss))
        if len(self._first) < self.thresholds.look:
            self._first.append(loss)
        self._losses.append(loss)
        self._moved.append(_moved(layers))
        if self._steps % self.thresholds.look == 0:
            for finding in (self._growing(number), self._high(), self._low(number), self._plateau(number)):
                alerts += self._latch.look(number, finding)
            self._remember(number)
        return alerts

    def probe(self, number: int, readings: Mapping[str, Reading]) -> list[Alert]:
        """Takes the readings of the step's batch and params. Returns the new alerts."""
        self._readings = dict(readings)
        origin = first_bad(readings)
        if origin is not None:
            text = f"{origin} is the first of the pass that is not finite: look there for a division, a log or an overflow."
            return self._latch.look(number, Finding("non-finite", origin.path, 1.0, True, False, text))
        findings = _probe_findings(readings, self.thresholds)
        return [alert for finding in findings for alert in self._latch.look(number, finding)]

    def describe(self) -> dict[str, Any]:
        """Returns what is known now, ready for JSON, None for what is not finite.

        Kinds raised, norms of the last step's layers, the last probe's readings, and the largest
        over the smallest gradient norm of the layers.
        """
        gradients = [layer["grad_norm"] for layer in self._layers.values() if math.isfinite(layer["grad_norm"])]
        layers = {path: {**layer, "update_ratio": _ratio(layer["update_norm"], layer["param_norm"])}
                  for path, layer in self._layers.items()}
        probes = {path: {"layer": seen.layer, "y_rms": seen.y.rms, "dy_norm": seen.dy.norm, "dparams_norm": seen.dparams.norm,
                         "dead": seen.dead, "saturated": seen.saturated} for path, seen in self._readings.items()}
        spread = _ratio(max(gradients), min(gradients)) if gradients else None
        known = {"raised": self.raised, "layers": layers, "probe": probes, "gradient_spread": spread}
        return {name: _for_json(value) for name, value in known.items()}

    def state(self) -> dict[str, Any]:
        """Returns JSON-serialisable state. `Monitor.of(state)` restores it."""
        return {"first": self._first, "losses": [*self._losses], "moved": [*self._moved], "looks": self._looks,
                "counts": [self._stride, self._seen, self._steps], "raised": self._latch.raised, "held": self._latch.count}

    @classmethod
    def of(cls, state: dict[str, Any], thresholds: Thresholds | None = None) -> Monitor:
        """Restores a Monitor from its `state`."""
        monitor = cls(thresholds)
        monitor._first = list(state["first"])
        monitor._losses.extend(state["losses"])
        monitor._moved.extend(map(tuple, state["moved"]))
        monitor._looks = [tuple(look) for look in state["looks"]]
        monitor._stride, monitor._seen, monitor._steps = state["counts"]
        monitor._latch.raised = {kind: Finding(*finding) for kind, finding in state["raised"].items()}
        monitor._latch.count = dict(state["held"])
        return monitor

    @property
    def raised(self) -> list[str]:
        """Returns the kinds that hold now."""
        return sorted(self._latch.raised)

    # ---- what it looks for

    def _remember(self, number: int) -> None:
        self._stride = self._stride or 1
        if self._seen % self._stride == 0:
            self._looks.append((number, median(self._losses), {path: n["param_norm"] for path, n in self._layers.items()}))
        self._seen += 1
        if len(self._looks) > KEPT:
            self._looks, self._stride = self._looks[::2], 2 * self._stride

    def _since(self, number: float) -> tuple[int, float, dict[str, float]] | None:
        """Returns the last look remembered that is not after step `number`."""
        return next((look for look in reversed(self._looks) if look[0] <= number), None)

    def _non_finite(self, loss: float, layers: Layers) -> Finding:
        """Counts the layers with a bad gradient, update or weight, and one for a bad loss."""
        bad = [path for path, norms in layers.items() if not all(map(math.isfinite, norms.values()))]
        count, layer = len(bad) + (not math.isfinite(loss)), min(bad, key=turn, default="")
        what = f"layer {layer}: its gradient, its update or its weights are" if bad else "the loss is"
        text = (f"{what} no longer finite (loss {loss:g}): a bad number in the batch, an overflow or a rate too high; "
                "first_bad of a probe of this batch names the place.")
        return Finding("non-finite", layer, float(count), count > 0, count == 0, text)

    def _run_away(self) -> Finding:
        """Tells whether the loss rose before a number was no longer finite."""
        ratio = _ratio(self._losses[-1], abs(self._first[0])) if self._first else 0.0
        return Finding("rate too high", "", ratio, ratio > self.thresholds.risen[1], False,
                       f"the loss rose to {ratio:.3g} times its first value, above {self.thresholds.risen[1]:g}, before it ran "
                       "away: the updates overshoot; try a tenth of the rate, or clip the gradient.")

    def _spike(self, loss: float) -> Finding:
        t = self.thresholds
        full = len(self._losses) == t.window and not {"weights growing", "rate too high"} & self._latch.raised.keys()
        usual = median(self._losses) if full else loss
        deviation = median(abs(seen - usual) for seen in self._losses) if full else 0.0
        bound = usual + max(t.spike * deviation, t.spike_share * self._scale()) if full else math.inf
        return Finding("loss spike", "", loss, loss > bound, loss < (usual + bound) / 2,
                       f"the loss jumped to {loss:.3g} from a median of {usual:.3g}, above {bound:.3g}: most likely one bad "
                       "batch; look at its inputs and targets, clip the gradient.")

    def _high(self) -> Finding:
        t = self.thresholds
        moved, loss = median(all_ for all_, _ in self._moved), median(list(self._losses)[-t.look:])
        risen = _ratio(loss, abs(self._first[0]))
        away = risen > t.risen[1] and "weights growing" not in self._latch.raised
        holds = (moved > t.rate_high[0] and risen > t.risen[0]) or away
        return Finding("rate too high", "", moved, holds, moved < t.rate_high[1] and risen < 1,
                       f"a step moves the weights by {moved:.2g} of their norm (too much: {t.rate_high[0]:g}) and the loss is "
                       f"{risen:.3g} times its first value: the updates overshoot; try a tenth of the rate, or warm it up.")

    def _low(self, number: int) -> Finding:
        t = self.thresholds
        moved, fell = median(most for _, most in self._moved), self._fell()
        explained = {"dead relu", "vanishing", "saturated sigmoid"} & self._latch.raised.keys()
        holds = moved < t.rate_low[0] and fell < t.plateau and self._steps >= t.patience and not explained
        return Finding("rate too low", "", moved, holds, moved > t.rate_low[1] or fell > 2 * t.plateau,
                       f"no layer moves by more than {moved:.2g} of its norm in a step, below {t.rate_low[0]:g}, and the loss "
                       f"has lost {max(fell, 0):.1%} in {number} steps: the rate is too low; try ten times as much.")

    def _plateau(self, number: int) -> Finding:
        t = self.thresholds
        before, fell, moved = self._since(number - t.plateau_steps), self._fell(), median(most for _, most in self._moved)
        slope = (before[1] - median(self._losses)) / self._scale() if before else math.inf
        holds = self._steps >= t.patience and abs(fell) < t.plateau and slope < t.plateau_slope and moved >= t.rate_low[0]
        return Finding("early plateau", "", fell, holds, abs(fell) > 2 * t.plateau,
                       f"the loss has lost {max(fell, 0):.1%} since the start, below {t.plateau:.0%}, and stays although the "
                       "weights move: weights all zero, targets that do not belong to the inputs, or a gradient that does not "
                       "come through; look at the probe, overfit ten examples first.")

    def _growing(self, number: int) -> Finding:
        t = self.thresholds
        half = self._since(number / 2)
        if half is None or self._steps < t.patience:
            return Finding("weights growing", "", 0.0, False, False, "")
        small = t.layer_share * math.hypot(*(n["param_norm"] for n in self._layers.values()))
        growth = {path: _ratio(n["param_norm"], half[2].get(path, math.inf)) for path, n in self._layers.items()
                  if n["param_norm"] > max(small, t.grown * self._looks[0][2].get(path, math.inf))}
        layer = max(growth, key=growth.__getitem__, default="")
        factor, loss = growth.get(layer, 0.0), median(self._losses)
        # of use while the loss pays for it; a loss below zero by more than it started from has no floor to pay from
        unpaid = (half[1] - loss) / self._scale() < t.unpaid or loss < -self._scale()
        return Finding("weights growing", layer, factor, factor > t.growing[0] and unpaid, factor < t.growing[1],
                       f"layer {layer}: its weights are {factor:.2f} times those of half as many steps, above "
                       f"{t.growing[0]:g}, and the loss went from {half[1]:.3g} to {loss:.3g}: nothing holds them; add "
                       "weight decay, check its sign and that the loss has a floor.")

    def _scale(self) -> float:
        return max(abs(median(self._first)), 1e-12)

    def _fell(self) -> float:
        return (median(self._first) - median(self._losses)) / self._scale()


def _moved(layers: Layers) -> tuple[float, float]:
    """Returns update over weights: of all layers together, and of the layer where it is largest."""
    total = [math.hypot(*(layer[which] for layer in layers.values())) for which in ("update_norm", "param_norm")]
    return _ratio(*total), max((_ratio(n["update_norm"], n["param_norm"]) for n in layers.values()), default=0.0)


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return math.inf if a else 0.0
    return a / b


def _for_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _for_json(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _probe_findings(readings: Mapping[str, Reading], t: Thresholds) -> list[Finding]:
    """Returns the findings of one probe, each in its worst layer, causes before effects.

    A dead layer lets no gradient through, so it comes before a vanishing gradient.
    """
    return [_alike(readings), _dead(readings, t), _saturated(readings, t), *_on_the_way_back(readings, t)]


def _alike(readings: Mapping[str, Reading]) -> Finding:
    """Looks only at layers with weights: a relu of negative inputs is dead, not alike."""
    layer, share = _largest({path: seen.alike for path, seen in readings.items() if seen.dparams.size})
    return Finding("units alike", layer, share, share == 1, share < 1,
                   f"layer {layer}: all its units give the same output: units that start equal have equal gradients and stay "
                   "equal; start from random weights.")


def _dead(readings: Mapping[str, Reading], t: Thresholds) -> Finding:
    layer, share = _largest({path: seen.dead for path, seen in readings.items() if seen.dead is not None})
    return Finding("dead relu", layer, share, share > t.dead[0], share < t.dead[1],
                   f"layer {layer}: {share:.0%} of its units are zero in the whole batch, above {t.dead[0]:.0%}: biases far "
                   "below zero, often by too high a rate; lower it, start again from He's weights, or use leaky_relu.")


def _saturated(readings: Mapping[str, Reading], t: Thresholds) -> Finding:
    last = max(readings, key=turn, default="")
    layer, share = _largest({path: seen.saturated for path, seen in readings.items()
                             if seen.saturated is not None and path != last})
    return Finding("saturated sigmoid", layer, share, share > t.saturated[0], share < t.saturated[1],
                   f"layer {layer}: {share:.0%} of its outputs lie where its slope is below 4 % of the largest, above "
                   f"{t.saturated[0]:.0%}: weights or inputs too large; scale inputs to size 1, start from Xavier's weights.")


def _on_the_way_back(readings: Mapping[str, Reading], t: Thresholds) -> list[Finding]:
    """Compares norms of dy with that of the last layer. A scalar output, a loss, has dy 1."""
    norms = {path: readings[path].dy.norm for path in sorted(readings, key=turn)
             if readings[path].dy.size and readings[path].y.size > 1}
    given = norms[next(reversed(norms))] if norms else 0.0
    shares = {path: norm / given for path, norm in norms.items()} if given else {}
    low, least = min(shares.items(), key=lambda item: item[1], default=("", 1.0))
    high, most = _largest(shares)
    return [
        Finding("vanishing", low, least, least < t.vanishing[0], least > t.vanishing[1],
                f"layer {low}: its dy has {least:.1e} of the norm that the last layer's has, below {t.vanishing[0]:g}: the "
                "gradient shrinks on the way back; larger weights (He, Xavier), relu, norms, skips or fewer layers help."),
        Finding("exploding", high, most, most > t.exploding[0], most < t.exploding[1],
                f"layer {high}: its dy has {most:.1e} times the norm that the last layer's has, above {t.exploding[0]:g}: the "
                "gradient grows on the way back; start from smaller weights, clip it, add norms."),
    ]


def _largest(values: Mapping[str, float]) -> tuple[str, float]:
    return max(values.items(), key=lambda item: item[1], default=("", 0.0))
