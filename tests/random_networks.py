"""Networks drawn by a seed, all of them with right rules: what the checker may not accuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fbackprop as fb
from fbackprop import Layer, chain, checkpoint, dense, inference, objective, parallel, repeat, skip
from fbackprop.transform import layers_by_path

SMOOTH = ("tanh", "sigmoid", "gelu", "silu", "softplus", "identity")
KINKED = ("relu", "leaky_relu", "elu")
KINKS = {*KINKED, "max_pool", "global_max_pool", "huber"}  # kinds of layers


def has_kinks(net: Layer) -> bool:
    return any(layer.kind in KINKS for layer in layers_by_path(net).values())


def _activation(rng: np.random.Generator) -> Layer:
    return getattr(fb, str(rng.choice(SMOOTH + KINKED)))()


def _row_norm(rng: np.random.Generator) -> Layer:
    return [fb.layer_norm(), fb.rms_norm(), fb.layer_norm(scale=False)][rng.integers(3)]


def _same(rng: np.random.Generator, width: int, *more: Callable[[], Layer]) -> Layer:
    """Returns a layer from (..., width) to (..., width)."""
    makers = [
        lambda: _activation(rng),
        lambda: _row_norm(rng),
        lambda: fb.scale(0.5),
        lambda: dense(width, bias=bool(rng.integers(2))),
        lambda: chain(dense(width), _activation(rng)),
        lambda: skip(chain(_row_norm(rng), dense(width), _activation(rng))),
        lambda: repeat(chain(dense(width), _activation(rng)), 2),
        lambda: repeat(skip(chain(dense(width), fb.tanh())), 3, unroll=True),
        lambda: chain(fb.fan_out(dense(width), chain(dense(width), _activation(rng))), fb.add()),
        lambda: chain(fb.fan_out(dense(2), fb.identity()), fb.concat(), dense(width)),
        lambda: chain(
            fb.fan_out(fb.identity(), fb.identity()),
            parallel(_activation(rng), dense(width)),
            fb.add(),
        ),
        lambda: inference(fb.dropout(0.5)),
        lambda: checkpoint(chain(dense(width), _activation(rng))),
        lambda: fb.tied(chain(dense(width), _activation(rng), dense(width)), {"2/w": "0/w"}),
        lambda: fb.frozen(dense(width)),
        lambda: fb.swiglu(3),
        lambda: fb.geglu(2),
        lambda: fb.softmax(),
        lambda: fb.log_softmax(),
        *more,
        *more,
    ]
    return makers[rng.integers(len(makers))]()


def _loss(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> tuple[Layer, Callable[[np.random.Generator], Any]]:
    """Returns a loss of predictions of `shape` and a drawing of its targets."""
    classes = lambda rng: rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    numbers = lambda rng: rng.standard_normal(shape)
    return [
        (fb.softmax_cross_entropy(), classes),
        (fb.softmax_cross_entropy(label_smoothing=0.1), classes),
        (fb.softmax_cross_entropy(class_weights=tuple(np.linspace(0.5, 2, shape[-1]))), classes),
        (fb.softmax_cross_entropy(), lambda rng: rng.dirichlet(np.ones(shape[-1]), shape[:-1])),
        (fb.mse(), numbers),
        (fb.half_squared_error(), numbers),
        (fb.huber(delta=0.7), numbers),
        (fb.binary_cross_entropy_with_logits(), lambda rng: rng.uniform(0, 1, shape)),
        (fb.linear_cross_entropy(5), lambda rng: rng.integers(0, 5, shape[:-1]).astype(np.int32)),
    ][rng.integers(9)]


def _rows(rng: np.random.Generator) -> tuple[list[Layer], Callable, tuple[int, ...]]:
    norms = [fb.batch_norm] if rng.integers(2) else [lambda: inference(fb.batch_norm())]
    body = [_same(rng, 5, *norms) for _ in range(rng.integers(1, 4))]
    return [*body, dense(3)], lambda rng: rng.standard_normal((4, 5)), (4, 3)


def _sequences(rng: np.random.Generator) -> tuple[list[Layer], Callable, tuple[int, ...]]:
    over_time = [
        lambda: chain(dense(12), fb.attention(2, causal=bool(rng.integers(2)))),
        lambda: fb.learned_positions(3),
        fb.rotary,
        lambda: chain(dense(8), fb.attention(2, kv_heads=1)),
        lambda: fb.lstm(4),
        lambda: fb.gru(4),
        lambda: fb.rnn(4),
        lambda: chain(dense(12), fb.recurrent(fb.gru_cell(4), reverse=True)),
        lambda: fb.conv1d(4, 2),
    ]
    body = [_same(rng, 4, *over_time) for _ in range(rng.integers(1, 3))]
    tokens = rng.integers(2)
    first = [fb.embedding(6, 4)] if tokens else []
    x = (
        (lambda rng: rng.integers(0, 6, (2, 3)).astype(np.int32))
        if tokens
        else lambda rng: rng.standard_normal((2, 3, 4))
    )
    if rng.integers(2):
        return [*first, *body, fb.take_last(), dense(3)], x, (2, 3)
    return [*first, *body, dense(3)], x, (2, 3, 3)


def _images(rng: np.random.Generator) -> tuple[list[Layer], Callable, tuple[int, ...]]:
    over_space = [
        lambda: fb.conv2d(4, 2),
        lambda: fb.group_norm(2),
        lambda: fb.batch_norm(),
        lambda: skip(chain(fb.conv2d(4, 3), _activation(rng))),
        lambda: fb.conv2d(4, 2, groups=2),
    ]
    pools = [fb.max_pool(), fb.avg_pool(), fb.max_pool(2, stride=1)]
    ends = [
        chain(fb.flatten(), dense(3)),
        chain(fb.global_avg_pool(), dense(3)),
        chain(fb.global_max_pool(), dense(3)),
    ]
    body = [
        _same(rng, 4, *over_space),
        pools[rng.integers(3)],
        *(_same(rng, 4, *over_space) for _ in range(rng.integers(0, 2))),
    ]
    return (
        [fb.conv2d(4, 2, bias=False), *body, ends[rng.integers(3)]],
        lambda rng: rng.standard_normal((2, 4, 4, 2)),
        (2, 3),
    )


def network(seed: int) -> tuple[Layer, Callable[[np.random.Generator], Any]]:
    """Returns a network that ends in its loss, and a drawing of its batches."""
    rng = np.random.default_rng(seed)
    layers, x, shape = [_rows, _sequences, _images][rng.integers(3)](rng)
    loss, target = _loss(rng, shape)
    if loss.kind == "linear_cross_entropy":  # it has params: it is a layer of the net
        net = chain(parallel(chain(*layers), fb.identity()), loss)
    else:
        net = objective(chain(*layers), loss)
    return net, lambda rng: (x(rng), target(rng))
