"""Run by test_parallel.py: a process of its own, for a CPU is divided before jax begins. Prints one JSON object.

In float64: what is left between eight devices and one is then the mathematics, not the order of the sums.
"""

from __future__ import annotations

import json

import jax
import numpy as np
import optax

from fbackprop import (
    convnet,
    gpt,
    init_opt_state,
    lstm_classifier,
    make_step,
    mlp,
    resnet,
    softmax_cross_entropy,
    split,
    update,
    value_and_grad,
)
from fbackprop.distributed import ask_for, data_parallel, devices, replicate, shard
from fbackprop.errors import Problem

KEY = jax.random.key
CLIP = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def models():
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((16, 6, 6, 1)), rng.integers(0, 10, 16)
    text = rng.integers(0, 11, (16, 9))
    classes = softmax_cross_entropy()
    return {
        "mlp": (mlp((16,)), classes, (images, labels), (16, 13, 5)),
        "convnet with dropout": (convnet((3,), hidden=(8,), rate=0.5), classes, (images, labels), (16, 13)),
        "resnet": (resnet((4,), blocks=1), classes, (images, labels), (16, 13, 5)),
        "lstm": (lstm_classifier(8), classes, (images[..., 0], labels), (16, 13)),
        "gpt": (gpt(11, 8, features=8, heads=2, blocks=1), None, (text[:, :-1], text[:, 1:]), (16, 13)),
    }


def numbers(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, np.float64)


def furthest(got, wanted):
    """Of all leaves the largest difference, relative to the leaf's largest number."""
    pairs = list(zip(map(numbers, jax.tree.leaves(got)), map(numbers, jax.tree.leaves(wanted)), strict=True))
    return max([float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) or 1)) for a, b in pairs], default=0.0)


def compare(net, loss, batch, mesh):
    by_hand = value_and_grad(net, loss)
    params = net.init(KEY(0), batch if loss is None else batch[0])

    def step(value_and_grad):
        def run(params, opt_state, batch):
            value, grads = value_and_grad(params, batch)
            return value, grads, update(CLIP, params, grads, opt_state)
        return jax.jit(run)

    given = params, init_opt_state(CLIP, params)
    alone = step(by_hand).lower(*given, batch).compile()
    spread = replicate(given, mesh), shard(batch, mesh)
    together = step(data_parallel(by_hand, mesh)).lower(*spread[0], spread[1]).compile()
    value, grads, after = together(*spread[0], spread[1])
    wanted_value, wanted, wanted_after = alone(*given, batch)
    (gradients, successors), (wanted_gradients, wanted_successors) = split(grads), split(wanted)
    text = together.as_text()
    return {
        "value": furthest(value, wanted_value), "gradients": furthest(gradients, wanted_gradients),
        "successors": furthest(successors, wanted_successors), "stepped": furthest(after, wanted_after),
        "whole": all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((grads, after))),
        "work": together.cost_analysis()["flops"] / alone.cost_analysis()["flops"],
        "collectives": {name: text.count(f" {name}(") for name in COLLECTIVES if f" {name}(" in text},
    }


def train(mesh):
    """Losses of a few steps on even and ragged batches, the traces they took, and those of one device."""
    net, loss, (x, labels), _ = models()["mlp"]
    tx, traces = optax.adam(0.01), []
    by_hand = value_and_grad(net, loss)

    def counted(*given):
        traces.append(None)
        return by_hand(*given)

    losses = {}
    for where, run, place in [("alone", by_hand, lambda tree: tree), ("together", data_parallel(counted, mesh), None)]:
        step, params = make_step(run, tx), net.init(KEY(0), x)
        state = params, init_opt_state(tx, params)
        state = place(state) if place else replicate(state, mesh)
        losses[where] = []
        for size in (16, 16, 13, 16, 13, 13):
            batch = x[:size], labels[:size]
            *state, metrics = step(*state, batch if place else shard(batch, mesh))
            losses[where].append(float(metrics["loss"]))
    return {**losses, "traces": len(traces), "programs": step.__wrapped__._cache_size()}


def mistakes():
    said = []
    for wrong in (lambda: ask_for(9), lambda: devices(9), lambda: ask_for(0), lambda: devices(True)):
        try:
            wrong()
        except Problem as problem:
            said.append(str(problem))
    return said


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    ask_for(8)
    mesh = devices()
    cases = {}
    for name, (net, loss, batch, sizes) in models().items():
        for size in sizes:
            cases[f"{name}, {size}"] = compare(net, loss, jax.tree.map(lambda a, size=size: a[:size], batch), mesh)
    half = shard(np.zeros((8, 2)), devices(4))
    print(json.dumps({"cases": cases, "train": train(mesh), "mistakes": mistakes(), "devices": mesh.size,
                      "shares": [shape.data.shape for shape in half.addressable_shards]}))
