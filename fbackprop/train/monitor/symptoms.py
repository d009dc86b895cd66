"""What one probe shows: units alike, dead, saturated, vanishing, exploding, each in the layer where it is worst."""

from __future__ import annotations

from collections.abc import Mapping

from ...observe.reading import Reading, turn
from .alerts import Finding, Thresholds


def in_probe(readings: Mapping[str, Reading], t: Thresholds) -> list[Finding]:
    """Causes before what follows from them: a dead layer lets no gradient through."""
    return [_alike(readings), _dead(readings, t), _saturated(readings, t), *_on_the_way_back(readings, t)]


def _alike(readings: Mapping[str, Reading]) -> Finding:
    """Of layers with weights: a relu whose inputs are all negative is dead, not alike."""
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
    """Norms of dy against the one that the loss hands in. A scalar output is a loss itself: its dy is 1, whatever happens."""
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
