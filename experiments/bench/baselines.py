"""The same losses as JAX's own users write them, for jax.grad; and every setting of it that an expert would try.

A Baseline's `loss(trained, carried, batch) -> (value, carried)` knows nothing of layers. `adapt`
converts the hand-written net's params, or its gradients, to the trees of this loss. The first of
`points` is the idiomatic one, the others are tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fbackprop.params import Next, State, Tree

Loss = Callable[[Tree, Tree, Any], tuple[jax.Array, Tree]]
KEPT = jax.checkpoint_policies
REMAT: dict[str, Any] = {"wrap": jax.checkpoint}
DOTS = {"wrap": partial(jax.checkpoint, policy=KEPT.dots_with_no_batch_dims_saveable)}
SAVED_DOTS = {"wrap": partial(jax.checkpoint, policy=KEPT.dots_saveable)}


@dataclass(frozen=True)
class Baseline:
    """`adapt(params) -> (trained, carried)`; points: by name, the first as users write it."""

    adapt: Callable[[Tree], tuple[Tree, Tree]]
    points: dict[str, Loss]


def points(loss: Loss, **tuned: dict[str, Any]) -> dict[str, Loss]:
    """`loss` as it is, and under every setting, by the setting's name in words."""
    return {"idiomatic": loss, **{name.replace("_", " ").strip(): partial(loss, **options) for name, options in tuned.items()}}


def plainly(fn: Callable) -> Callable:
    return fn


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def affine(p: Tree, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


# ---- mlp


def mlp(trained: Tree, carried: Tree, batch: Any, wrap: Callable = plainly) -> tuple[jax.Array, Tree]:
    @wrap
    def hidden(p: Tree, x: jax.Array) -> jax.Array:
        return jax.nn.relu(affine(p, x))

    x, target = batch
    *body, head = trained
    for p in body:
        x = hidden(p, x)
    return cross_entropy(affine(head, x), target), carried


def of_mlp(params: Tree) -> tuple[Tree, Tree]:
    return [p for p in params if p], ()


# ---- cnn


def window_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pool_of_four(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def pool_of_slices(x: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2]), jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]))


def convolve(w: jax.Array, x: jax.Array, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def cnn(trained: Tree, carried: Tree, batch: Any, pool: Callable = window_pool, pool_first: bool = False,
        wrap: Callable = plainly) -> tuple[jax.Array, Tree]:
    @wrap
    def stage(p: Tree, x: jax.Array) -> jax.Array:
        y = convolve(p["w"], x) + p["b"]
        return jax.nn.relu(pool(y)) if pool_first else pool(jax.nn.relu(y))

    x, target = batch
    *stages, head = trained
    for p in stages:
        x = stage(p, x)
    return cross_entropy(affine(head, x.reshape(len(x), -1)), target), carried


# ---- resnet


def batch_norm(p: Tree, stats: Tree, x: jax.Array, momentum: float = 0.9, eps: float = 1e-5) -> tuple[jax.Array, Tree]:
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    moved = {name: momentum * old + (1 - momentum) * new for (name, old), new in zip(stats.items(), (mean, var))}
    return (x - mean) * lax.rsqrt(var + eps) * p["scale"] + p["bias"], moved


def conv_norm(p: Tree, stats: Tree, x: jax.Array, stride: int = 1) -> tuple[jax.Array, Tree]:
    return batch_norm(p, stats, convolve(p["w"], x, stride))


def resnet(trained: Tree, carried: Tree, batch: Any, wrap: Callable = plainly) -> tuple[jax.Array, Tree]:
    def block(p: Tree, stats: Tree, x: jax.Array, stride: int) -> tuple[jax.Array, Tree]:
        y, first = conv_norm(p["first"], stats["first"], x, stride)
        y, second = conv_norm(p["second"], stats["second"], jax.nn.relu(y))
        moved = {"first": first, "second": second}
        if "shortcut" in p:
            x, moved["shortcut"] = conv_norm(p["shortcut"], stats["shortcut"], x, stride)
        return jax.nn.relu(x + y), moved

    x, target = batch
    x, stem = conv_norm(trained["stem"], carried["stem"], x)
    x, blocks = jax.nn.relu(x), []
    for p, stats in zip(trained["blocks"], carried["blocks"]):
        stride = 2 if x.shape[-1] != p["first"]["w"].shape[-1] else 1
        x, moved = wrap(partial(block, stride=stride))(p, stats, x)
        blocks.append(moved)
    return cross_entropy(affine(trained["head"], x.mean((1, 2))), target), {"stem": stem, "blocks": blocks}


def of_resnet(params: Tree) -> tuple[Tree, Tree]:
    stem, _, *blocks, _, head = params

    def conv_norm_of(p: Tree) -> tuple[Tree, Tree]:
        conv, norm = p
        return {**conv, "scale": norm["scale"], "bias": norm["bias"]}, {key: carried(norm[key]) for key in ("mean", "var")}

    def block_of(p: Tree) -> tuple[Tree, Tree]:
        around = p[0]  # of the block's skip, or of fan_out and add
        shortcut = {} if len(around) == 1 else {"shortcut": conv_norm_of(around[0][1])}
        main = around[0] if len(around) == 1 else around[0][0]
        found = {"first": conv_norm_of(main[:2]), "second": conv_norm_of(main[3:]), **shortcut}
        return tuple({key: pair[i] for key, pair in found.items()} for i in range(2))  # type: ignore[return-value]

    stem, halves = conv_norm_of(stem), [block_of(p) for p in blocks]
    trained, stats = ([half[i] for half in halves] for i in range(2))
    return {"stem": stem[0], "blocks": trained, "head": head}, {"stem": stem[1], "blocks": stats}


def carried(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, (State, Next)) else leaf


# ---- lstm


def lstm(trained: Tree, carried: Tree, batch: Any, outside: bool = True, wrap: Callable = plainly, unroll: int = 1,
         segments: int = 1) -> tuple[jax.Array, Tree]:
    """outside: the input's product for all steps at once, in front of the scan. segments: of which only the carry is kept."""
    p, (x, target) = trained["cell"], batch

    @wrap
    def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
        h, c = carry
        a = (x if outside else x @ p["wx"] + p["b"]) + h @ p["wh"]
        i, f, g, o = jnp.split(a, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    xs = jnp.moveaxis(x @ p["wx"] + p["b"] if outside else x, 1, 0)
    zero = jnp.zeros((len(x), p["wh"].shape[0]), x.dtype)
    run = lambda carry, xs: lax.scan(step, carry, xs, unroll=unroll)
    if segments == 1:
        (h, _), _ = run((zero, zero), xs)
    else:
        (h, _), _ = lax.scan(jax.checkpoint(run), (zero, zero), xs.reshape(segments, -1, *xs.shape[1:]))
    return cross_entropy(affine(trained["head"], h), target), carried


def of_lstm(params: Tree) -> tuple[Tree, Tree]:
    (project, (cell,)), head = params
    return {"cell": {"wx": project["w"], "b": project["b"], "wh": cell["w"]}, "head": head}, ()


# ---- gpt


def layer_norm(p: Tree, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    wide = x.astype(jnp.float32)
    h = (wide - wide.mean(-1, keepdims=True)) * lax.rsqrt(wide.var(-1, keepdims=True) + eps)
    return (h * p["scale"] + p["bias"]).astype(x.dtype)


def gpt(trained: Tree, carried: Tree, batch: Any, heads: int, dtype: Any = jnp.float32, wrap: Callable = plainly,
        scan: bool = False, chunks: int = 1, implementation: Any = None) -> tuple[jax.Array, Tree]:
    """wrap: a block; scan: over stacked blocks; chunks: of tokens, whose logits are recomputed; implementation: attention's."""
    def block(x: jax.Array, p: Tree) -> tuple[jax.Array, None]:
        b, t, d = x.shape
        qkv = affine(p["qkv"], layer_norm(p["norm1"], x)).reshape(b, t, 3, heads, d // heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
        x = x + affine(p["out"], y.reshape(b, t, d))
        return x + affine(p["down"], jax.nn.gelu(affine(p["up"], layer_norm(p["norm2"], x)))), None

    tokens, target = batch
    trained = jax.tree.map(lambda a: a.astype(dtype), trained)
    x = trained["embedding"][tokens] + trained["positions"][: tokens.shape[-1]]
    if scan:
        x, _ = lax.scan(wrap(block), x, jax.tree.map(lambda *p: jnp.stack(p), *trained["blocks"]))
    else:
        for p in trained["blocks"]:
            x, _ = wrap(block)(x, p)
    x = layer_norm(trained["norm"], x)

    def head(x: jax.Array, target: jax.Array) -> jax.Array:
        return cross_entropy((x @ trained["embedding"].T).astype(jnp.float32), target)

    if chunks == 1:
        return head(x, target), carried
    cut = lambda a: a.reshape(chunks, -1, *a.shape[2:])
    return lax.map(lambda pair: jax.checkpoint(head)(*pair), (cut(x), cut(target))).mean(), carried


def of_gpt(params: Tree) -> tuple[Tree, Tree]:
    ((embedding, positions, (blocks,), norm), _), _ = params
    count = len(jax.tree.leaves(blocks)[0])

    def block_of(p: Tree) -> Tree:
        ((qkv, _, out),), ((up, down),) = p
        (norm1, qkv), (norm2, up), (_, down) = qkv, up, down
        return {"norm1": norm1, "qkv": qkv, "out": out, "norm2": norm2, "up": up, "down": down}

    each = [block_of(jax.tree.map(lambda a, i=i: a[i], blocks)) for i in range(count)]
    return {"embedding": embedding["w"], "positions": positions["w"], "blocks": each, "norm": norm}, ()


def of_gpts(heads: int, chunks: int, dtype: Any = jnp.float32) -> Baseline:
    scan, chunked = {"scan": True}, {"chunks": chunks}
    settings: dict[str, dict[str, Any]] = {
        "dots_policy": DOTS, "all_dots_policy": SAVED_DOTS, "checkpoint_a_block": REMAT,
        "chunked_head": chunked, "dots,_chunked_head": {**DOTS, **chunked},
        "checkpoint,_chunked_head": {**REMAT, **chunked},
        "scan,_dots": {**scan, **DOTS}, "scan,_checkpoint": {**scan, **REMAT},
        "scan,_dots,_chunked_head": {**scan, **DOTS, **chunked},
        "scan,_checkpoint,_chunked_head": {**scan, **REMAT, **chunked}}
    return Baseline(of_gpt, points(partial(gpt, heads=heads, dtype=dtype), **settings))


INSIDE, FIRST = {"outside": False}, {"pool_first": True}
BASELINES = {
    "mlp": Baseline(of_mlp, points(mlp, checkpoint_a_layer=REMAT, dots_policy=SAVED_DOTS)),
    "cnn": Baseline(of_mlp, points(
        cnn, pool_of_four={"pool": pool_of_four}, pool_of_slices={"pool": pool_of_slices},
        checkpoint_a_stage=REMAT, pool_of_four_checkpoint={"pool": pool_of_four, **REMAT},
        pool_of_slices_checkpoint={"pool": pool_of_slices, **REMAT}, slices_before_relu={"pool": pool_of_slices, **FIRST},
        slices_before_relu_checkpoint={"pool": pool_of_slices, **FIRST, **REMAT})),
    "resnet": Baseline(of_resnet, points(resnet, checkpoint_a_block=REMAT, dots_policy=SAVED_DOTS)),
    "lstm": Baseline(of_lstm, points(
        lstm, product_inside=INSIDE, unroll_4={"unroll": 4}, checkpoint_a_step=REMAT, dots_policy=SAVED_DOTS,
        _8_segments={"segments": 8}, inside_checkpoint={**INSIDE, **REMAT}, inside_dots_policy={**INSIDE, **SAVED_DOTS},
        inside_8_segments={**INSIDE, "segments": 8}, inside_16_segments={**INSIDE, "segments": 16},
        inside_16_segments_checkpoint={**INSIDE, "segments": 16, **REMAT})),
    "gpt": of_gpts(4, 8), "gpt50k": of_gpts(4, 8), "gpt2-124m": of_gpts(12, 32, jnp.bfloat16)}
