"""Cases and mistakes of the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import losses
from ...dtypes import is_floating
from ...layer import Layer
from ...params import Tree
from ...transform import inference
from .case import Bugs, Case, Draw, Wrong, options_of, right


def with_classes(*sizes: int, scale: float = 1.0) -> Draw:
    """(logits, class numbers)."""
    return lambda rng: (scale * rng.standard_normal(sizes), rng.integers(0, sizes[-1], sizes[:-1]).astype(np.int32))


def with_probabilities(*sizes: int) -> Draw:
    """(logits, rows that are positive but do not sum to 1: the rule may not rely on it)."""
    return lambda rng: (rng.standard_normal(sizes), rng.random(sizes))


def pair(*sizes: int) -> Draw:
    """(y, target) of one shape."""
    return lambda rng: (rng.standard_normal(sizes), rng.standard_normal(sizes))


def with_weights(*sizes: int, probabilities: bool = False) -> Draw:
    """(logits, target, positive weights, one of them 0)."""
    def draw(rng: np.random.Generator) -> Any:
        logits, target = (with_probabilities if probabilities else with_classes)(*sizes)(rng)
        weights = rng.random(sizes[:-1]) + 0.5
        weights.flat[1] = 0
        return logits, target, weights

    return draw


def with_ignored(draw: Draw, index: int = -1) -> Draw:
    """Two rows' class is `index`."""
    def drawn(rng: np.random.Generator) -> Any:
        y, target, *rest = draw(rng)
        target.flat[:2] = index
        return y, target, *rest

    return drawn


def hidden(classes: int, *sizes: int) -> Draw:
    """(h, class numbers)."""
    return lambda rng: (rng.standard_normal(sizes), rng.integers(0, classes, sizes[:-1]).astype(np.int32))


def with_shares(*sizes: int) -> Draw:
    """(logits, targets between 0 and 1)."""
    return lambda rng: (rng.standard_normal(sizes), rng.random(sizes))


_WEIGHTS = (0.5, 2.0, 1.0, 0.25, 3.0)
_entropy, _linear = losses.softmax_cross_entropy, losses.linear_cross_entropy

CASES: tuple[Case, ...] = (
    Case("mse", losses.mse(), pair(3, 5)),
    Case("half_squared_error", losses.half_squared_error(), pair(3, 5)),
    Case("huber", losses.huber(), pair(3, 5)),
    Case("huber", losses.huber(0.3), pair(2, 3, 5)),
    Case("binary_cross_entropy_with_logits", losses.binary_cross_entropy_with_logits(), with_shares(3, 5)),
    Case("softmax_cross_entropy", _entropy(), with_classes(3, 5)),
    Case("softmax_cross_entropy", _entropy(), with_classes(2, 3, 7, scale=10), "large logits"),
    Case("softmax_cross_entropy", _entropy(), with_probabilities(3, 5), "probabilities"),
    Case("softmax_cross_entropy", _entropy(), with_weights(7, 5), "weights"),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.1), with_classes(7, 5)),
    Case("softmax_cross_entropy", _entropy(ignore_index=-1), with_ignored(with_classes(7, 5))),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.2, class_weights=_WEIGHTS, ignore_index=2),
         with_ignored(with_weights(2, 3, 5), 2), "weights"),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.2, class_weights=_WEIGHTS),
         with_weights(3, 5, probabilities=True), "probabilities and weights"),
    Case("linear_cross_entropy", _linear(7), hidden(7, 3, 5)),
    Case("linear_cross_entropy", _linear(7, chunk=2, bias=True), hidden(7, 5, 3), "chunk does not divide"),
    Case("linear_cross_entropy", _linear(5, chunk=3, axis="vocabulary", bias=True), hidden(5, 2, 3, 7),
         "chunk does not divide"),
    Case("linear_cross_entropy", _linear(7, chunk=4, bias=True, label_smoothing=0.1, ignore_index=-1),
         with_ignored(hidden(7, 2, 5, 3))),
    Case("linear_cross_entropy", _linear(7, chunk=2, axis="vocabulary", label_smoothing=0.1, ignore_index=-1),
         with_ignored(hidden(7, 5, 3))),
    Case("linear_cross_entropy", inference(_linear(7, bias=True)), hidden(7, 2, 5, 3)),
)


def _p_alone(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, (dlogits, *others) = right(layer, params, x, dy)
    logits, target = x[:2]
    rows = logits.size // logits.shape[-1]
    one_hot = target if is_floating(target) else jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return dparams, (dlogits + one_hot * dy / rows, *others)


def _unless(option: str) -> Wrong:
    """The rule of the same cross-entropy without an option."""
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        options = options_of(layer)
        return right(losses.softmax_cross_entropy(**{name: o for name, o in options.items() if name != option}), params, x, dy)

    return wrong


def _over_all_rows(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    """Divided by the number of rows, ignored ones and those of weight 0 counted in full."""
    options = options_of(layer)
    _, target, *weights = x
    kept = jnp.ones(jnp.shape(x[0])[:-1], x[0].dtype)
    if "ignore_index" in options:
        kept = jnp.where(target == options["ignore_index"], 0, kept)
    return jax.tree.map(lambda g: g * jnp.mean(kept * weights[0] if weights else kept), right(layer, params, x, dy))


@dataclass(frozen=True)
class _Linear:
    """The rule of linear_cross_entropy with its logits in full, and where it may go wrong."""

    target: bool = True
    smoothed: bool = True
    all_counted: bool = False
    bias_sum: bool = True
    last_dropped: bool = False
    last_alone: bool = False

    def __call__(self, layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        options = options_of(layer)
        vocabulary = options["vocabulary"]
        h, labels = x[0].reshape(-1, x[0].shape[-1]), x[1].reshape(-1)
        logits = h @ params["w"].T
        if "b" in params:
            logits = logits + jnp.broadcast_to(params["b"], logits.shape)
        smoothing = options.get("label_smoothing", 0) * self.smoothed
        t = (1 - smoothing) * jax.nn.one_hot(labels, vocabulary, dtype=h.dtype) + smoothing / vocabulary
        counted = labels != options["ignore_index"] if "ignore_index" in options else labels == labels
        g = jax.nn.softmax(logits) - t * self.target
        g = jnp.where(jnp.broadcast_to(counted[:, None], g.shape), g, 0) * dy
        g = g / (len(labels) if self.all_counted else jnp.sum(counted, dtype=g.dtype))
        axis = ["tokens", "vocabulary"].index(options.get("axis", "tokens"))
        chunk = min(options.get("chunk", g.shape[axis]), g.shape[axis])
        last = jax.lax.broadcasted_iota(int, g.shape, axis) // chunk == (g.shape[axis] - 1) // chunk
        g = jnp.where(last, 0, g) if self.last_dropped else g
        dw = (jnp.where(last, g, 0) if self.last_alone else g).T @ h
        db = jnp.sum(g, axis=0) if self.bias_sum else g[0]
        return {"w": dw, "b": db} if "b" in params else {"w": dw}, ((g @ params["w"]).reshape(x[0].shape), None)


BUGS: Bugs = {
    "softmax_cross_entropy": {
        "p, without the - t": _p_alone,
        "without the label smoothing in the backward": _unless("label_smoothing"),
        "without the class weights in the backward": _unless("class_weights"),
        "with the ignored rows in the divisor": _over_all_rows,
    },
    "linear_cross_entropy": {
        "p, without the - t": _Linear(target=False),
        "without the label smoothing in the backward": _Linear(smoothed=False),
        "with the ignored rows in the divisor": _Linear(all_counted=True),
        "db of the first row alone: its sum is missing": _Linear(bias_sum=False),
        "without the last chunk": _Linear(last_dropped=True),
        "dw of the last chunk alone": _Linear(last_alone=True),
    },
    "binary_cross_entropy_with_logits": {
        "p, without the - t": lambda layer, params, x, dy: (
            (), (jax.nn.sigmoid(x[0]) * dy / x[0].size, -x[0] * dy / x[0].size)),
    },
    "huber": {
        "never clipped: the cotangent of half the squared error": lambda layer, params, x, dy: (
            (), ((x[0] - x[1]) * dy / x[0].size, (x[1] - x[0]) * dy / x[0].size)),
        "clipped to delta = 1": lambda layer, params, x, dy: right(losses.huber(), params, x, dy),
    },
}
