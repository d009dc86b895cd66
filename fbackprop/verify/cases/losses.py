"""Cases and mistakes of the losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import losses
from ...dtypes import is_floating
from ...params import Tree
from ...transform import inference
from .case import Bugs, Case, Draw, Right, Wrong, several


def with_classes(*sizes: int, classes: int | None = None, scale: float = 1.0) -> Draw:
    """Draws logits and class numbers, or hidden units and one of so many `classes`."""
    return lambda rng: (scale * rng.standard_normal(sizes),
                        rng.integers(0, classes or sizes[-1], sizes[:-1]).astype(np.int32))


def with_shares(*sizes: int) -> Draw:
    """Draws logits and targets between 0 and 1, whose rows need not sum to 1."""
    return lambda rng: (rng.standard_normal(sizes), rng.random(sizes))


def with_weights(draw: Draw) -> Draw:
    """Adds positive weights, one of them 0, to logits and target."""
    def drawn(rng: np.random.Generator) -> Any:
        logits, target = draw(rng)
        weights = rng.random(logits.shape[:-1]) + 0.5
        weights.flat[1] = 0
        return logits, target, weights

    return drawn


def with_ignored(draw: Draw, index: int = -1) -> Draw:
    """Makes `index` the class of two rows."""
    def drawn(rng: np.random.Generator) -> Any:
        y, target, *rest = draw(rng)
        target.flat[:2] = index
        return y, target, *rest

    return drawn


_pair = several((3, 5), (3, 5))
_WEIGHTS = (0.5, 2.0, 1.0, 0.25, 3.0)
_entropy, _linear = losses.softmax_cross_entropy, losses.linear_cross_entropy

CASES: tuple[Case, ...] = (
    Case("mse", losses.mse(), _pair),
    Case("half_squared_error", losses.half_squared_error(), _pair),
    Case("huber", losses.huber(), _pair),
    Case("huber", losses.huber(delta=0.3), several((2, 3, 5), (2, 3, 5))),
    Case("binary_cross_entropy_with_logits", losses.binary_cross_entropy_with_logits(), with_shares(3, 5)),
    Case("softmax_cross_entropy", _entropy(), with_classes(3, 5)),
    Case("softmax_cross_entropy", _entropy(), with_classes(2, 3, 7, scale=10), "large logits"),
    Case("softmax_cross_entropy", _entropy(), with_shares(3, 5), "probabilities"),
    Case("softmax_cross_entropy", _entropy(), with_weights(with_classes(7, 5)), "weights"),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.1), with_classes(7, 5)),
    Case("softmax_cross_entropy", _entropy(ignore_index=-1), with_ignored(with_classes(7, 5))),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.2, class_weights=_WEIGHTS, ignore_index=2),
         with_ignored(with_weights(with_classes(2, 3, 5)), 2), "weights"),
    Case("softmax_cross_entropy", _entropy(label_smoothing=0.2, class_weights=_WEIGHTS),
         with_weights(with_shares(3, 5)), "probabilities and weights"),
    Case("linear_cross_entropy", _linear(7), with_classes(3, 5, classes=7)),
    Case("linear_cross_entropy", _linear(7, chunk=2, bias=True),
         with_classes(5, 3, classes=7), "chunk does not divide"),
    Case("linear_cross_entropy", _linear(5, chunk=3, axis="vocabulary", bias=True),
         with_classes(2, 3, 7, classes=5), "chunk does not divide"),
    Case("linear_cross_entropy", _linear(7, chunk=4, bias=True, label_smoothing=0.1, ignore_index=-1),
         with_ignored(with_classes(2, 5, 3, classes=7))),
    Case("linear_cross_entropy", _linear(7, chunk=2, axis="vocabulary", label_smoothing=0.1, ignore_index=-1),
         with_ignored(with_classes(5, 3, classes=7))),
    Case("linear_cross_entropy", inference(_linear(7, bias=True)),
         with_classes(2, 5, 3, classes=7)),
)


def _p_alone(right: Right) -> tuple[Tree, Any]:
    logits, target = right.x[:2]
    dlogits, *others = right.dx
    rows = logits.size // logits.shape[-1]
    one_hot = target if is_floating(target) else jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return right.dparams, (dlogits + one_hot * right.dy / rows, *others)


def _without(option: str) -> Wrong:
    """Returns the rule of the same cross-entropy without an option."""
    def wrong(right: Right) -> tuple[Tree, Any]:
        others = {name: value for name, value in right.options.items() if name != option}
        return right.given(layer=_entropy(**others)).gradients

    return wrong


def _over_all_rows(right: Right) -> tuple[Tree, Any]:
    """Divides by the number of rows: ignored ones and those of weight 0 count in full."""
    logits, target, *weights = right.x
    kept = jnp.ones(jnp.shape(logits)[:-1], logits.dtype)
    if "ignore_index" in right.options:
        kept = jnp.where(target == right.options["ignore_index"], 0, kept)
    share = jnp.mean(kept * weights[0] if weights else kept)
    return jax.tree.map(lambda g: g * share, right.gradients)


def _linear_rule(right: Right, *, target: bool = True, smoothed: bool = True,
                 all_counted: bool = False, bias_sum: bool = True, last_dropped: bool = False,
                 last_alone: bool = False) -> tuple[Tree, Any]:
    """Returns the gradients by a rule with the logits in full; every option is a mistake."""
    params, options, (x, labels) = right.params, right.options, right.x
    vocabulary = options["vocabulary"]
    h, labels = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
    logits = h @ params["w"].T
    if "b" in params:
        logits = logits + jnp.broadcast_to(params["b"], logits.shape)
    smoothing = options.get("label_smoothing", 0) * smoothed
    t = (1 - smoothing) * jax.nn.one_hot(labels, vocabulary, dtype=h.dtype) + smoothing / vocabulary
    counted = labels != options["ignore_index"] if "ignore_index" in options else labels == labels
    g = jax.nn.softmax(logits) - t * target
    g = jnp.where(jnp.broadcast_to(counted[:, None], g.shape), g, 0) * right.dy
    g = g / (len(labels) if all_counted else jnp.sum(counted, dtype=g.dtype))
    axis = ["tokens", "vocabulary"].index(options.get("axis", "tokens"))
    chunk = min(options.get("chunk", g.shape[axis]), g.shape[axis])
    last = jax.lax.broadcasted_iota(int, g.shape, axis) // chunk == (g.shape[axis] - 1) // chunk
    g = jnp.where(last, 0, g) if last_dropped else g
    dw = (jnp.where(last, g, 0) if last_alone else g).T @ h
    db = jnp.sum(g, axis=0) if bias_sum else g[0]
    dparams = {"w": dw, "b": db} if "b" in params else {"w": dw}
    return dparams, ((g @ params["w"]).reshape(x.shape), None)


def _never_clipped(right: Right) -> tuple[Tree, Any]:
    y, target = right.x
    dy = (y - target) * right.dy / y.size
    return (), (dy, -dy)


def _sigmoid_alone(right: Right) -> tuple[Tree, Any]:
    logits, _ = right.x
    share = right.dy / logits.size
    return (), (jax.nn.sigmoid(logits) * share, -logits * share)


BUGS: Bugs = {
    "softmax_cross_entropy": {
        "p, without the - t": _p_alone,
        "without the label smoothing in the backward": _without("label_smoothing"),
        "without the class weights in the backward": _without("class_weights"),
        "with the ignored rows in the divisor": _over_all_rows,
    },
    "linear_cross_entropy": {
        "p, without the - t": partial(_linear_rule, target=False),
        "without the label smoothing in the backward": partial(_linear_rule, smoothed=False),
        "with the ignored rows in the divisor": partial(_linear_rule, all_counted=True),
        "db of the first row alone: its sum is missing": partial(_linear_rule, bias_sum=False),
        "without the last chunk": partial(_linear_rule, last_dropped=True),
        "dw of the last chunk alone": partial(_linear_rule, last_alone=True),
    },
    "binary_cross_entropy_with_logits": {"p, without the - t": _sigmoid_alone},
    "huber": {
        "never clipped: the cotangent of half the squared error": _never_clipped,
        "clipped to delta = 1": lambda right: right.given(layer=losses.huber()).gradients,
    },
}
