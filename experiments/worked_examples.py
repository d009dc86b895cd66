"""Are the chain's gradients the products a person works out on a whiteboard, every factor of the chain rule by name?

Rows      W1 W2 W3 W4 W5 W6 W7 W8 W9 C8
Command   python experiments/worked_examples.py [ID ...] [--out DIR]
Expected  every stated figure as printed, every gradient equal to the chain's to 1e-12; W4 writes DIR/w4.csv
Time      about 5 s on two cores, all rows; --quick leaves nothing out

The figure shows W9: what a gradient foretells of a step, against the truth. Nothing here is drawn by chance from --seed.
Exit code 0, 1 if a figure does not come out, 2 for an unknown id, 74 if DIR cannot be written.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Callable, Sequence
from inspect import getdoc
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main

from fbackprop import (
    chain,
    dense,
    init_opt_state,
    make_step,
    mse,
    relu,
    sigmoid,
    softmax_cross_entropy,
    tanh,
    update,
    value_and_grad,
    vjp,
)
from fbackprop.layer import Layer

Values: TypeAlias = dict[str, Any]  # name -> float or array; "chain NAME" and "difference NAME" are checked against NAME
ORACLES = {"chain ": 1e-12, "difference ": 1e-7}  # largest relative disagreement
FIGURES: dict[str, dict[str, float | str]] = {  # a number is exact (to 1e-12), a text is right to its last digit
    "W1": {"w": 2.0, "gradient": 0.5, "rate": 0.1, "step": 0.05, "w after": 1.95},
    "W2": {"z": 7.0, "a": 7.0, "L": 4.0, "dL/da": 4.0, "da/dz": 1.0, "dz/dw": 2.0, "dL/dw": 8.0, "dL/db": 4.0,
           "w + 1: rise foretold": 8.0, "w + 1: rise": 12.0, "w + 0.01: rise foretold": 0.08, "w + 0.01: rise": 0.0804},
    "W3": {"z": 1.1, "a": ".75026", "L": ".06237", "dL/da": "-.49948", "da/dz": ".18737", "dL/dw": "-.18717",
           "dL/db": "-.09359", "w after 1 step": ".51872", "b after 1 step": ".10936", "w after 1000 steps": "1.55497",
           "b after 1000 steps": ".62749", "a after 1000 steps": ".97674", "L after 1000 steps": ".000541",
           "a = .75: L": 0.0625, "a = .75: dL/da": -0.5, "a = .75: da/dz": 0.1875, "a = .75: dL/dw": -0.1875,
           "a = .75: w after 1 step": 0.51875},
    "W9": {"steep: order of error": "2.0", "gentle: order of error": "2.0", "minimum: order of error": "2.0",
           "minimum: gradient": 0.0},
    "C8": {"report card, big: share": 0.75, "report card, small: share": 0.2, "report card, tiny: share": 0.05,
           "factory, steel: share": 0.5, "factory, engine: share": 0.25, "factory, paint: share": 0.125,
           "factory, car: share": 0.125, "report card: sum of shares": 1.0, "factory: sum of shares": 1.0},
}


def logistic(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def affine(W: Any, b: Any = None) -> dict[str, np.ndarray]:
    """Params of a dense from W (O, I) as on a whiteboard: dense keeps w as (I, O)."""
    return {"w": np.array(W).T} if b is None else {"w": np.array(W).T, "b": np.array(b)}


def draw(rng: np.random.Generator, widths: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random weights (O, I) and biases (O,), one each per layer."""
    return [rng.normal(size=(o, i)) for i, o in pairwise(widths)], [rng.normal(size=o) for o in widths[1:]]


def by_chain(net: Layer, loss: Layer | None = None) -> Callable[[Any, Any, Any], tuple[float, Any]]:
    """`(params, x, y) -> (value, gradients)` by the hand-written chain, mse unless told otherwise."""
    run = jax.jit(value_and_grad(net, loss or mse()))

    def at(params: Any, x: Any, y: Any) -> tuple[float, Any]:
        value, grads = run(params, (np.array(x), np.array(y)))
        return value.item(), jax.tree.map(np.asarray, grads)

    return at


def w1() -> Values:
    """One weight, one step: w - rate * gradient. The loss is (w - 1.75)^2."""
    w, y, rate = 2.0, 1.75, 0.1
    gradient = 2 * (w - y)
    params, tx = affine([[w]]), optax.sgd(rate)
    _, grads = by_chain(dense(1, bias=False))(params, [1.0], [y])
    moved, _ = update(tx, params, grads, init_opt_state(tx, params))
    return {"w": w, "gradient": gradient, "rate": rate, "step": rate * gradient, "w after": w - rate * gradient,
            "chain gradient": grads["w"].item(), "chain w after": moved["w"].item()}


def w2() -> Values:
    """ReLU neuron: z = w x + b, a = max(z, 0), L = (a - y)^2; then w nudged, b held."""
    x, w, b, y = 2.0, 3.0, 1.0, 5.0
    z = w * x + b
    a = max(z, 0.0)
    da, slope = 2 * (a - y), float(z > 0)
    run = by_chain(chain(dense(1), relu()))
    loss, (grads, _) = run((affine([[w]], [b]), ()), [x], [y])
    values = {"z": z, "a": a, "L": (a - y) ** 2, "dL/da": da, "da/dz": slope, "dz/dw": x, "dz/db": 1.0,
              "dL/dw": da * slope * x, "dL/db": da * slope * 1.0,
              "chain L": loss, "chain dL/dw": grads["w"].item(), "chain dL/db": grads["b"].item()}
    for step in (1.0, 0.01):
        nudged, _ = run((affine([[w + step]], [b]), ()), [x], [y])
        values |= {f"w + {step:g}: rise foretold": values["dL/dw"] * step, f"w + {step:g}: rise": nudged - loss}
    return values


def w3() -> Values:
    """Sigmoid neuron: z = w x + b, a = 1 / (1 + exp(-z)), L = (y - a)^2; trained at rate .1. Last: with a rounded to .75."""
    x, w, b, y, rate = 2.0, 0.5, 0.1, 1.0, 0.1
    z = w * x + b

    def factors(a: float) -> Values:
        da, slope = -2 * (y - a), a * (1 - a)
        dw, db = da * slope * x, da * slope * 1.0
        return {"z": z, "a": a, "L": (y - a) ** 2, "dL/da": da, "da/dz": slope, "dz/dw": x, "dz/db": 1.0,
                "dL/dw": dw, "dL/db": db, "w after 1 step": w - rate * dw, "b after 1 step": b - rate * db}

    net, tx, params = chain(dense(1), sigmoid()), optax.sgd(rate), (affine([[w]], [b]), ())
    loss, (grads, _) = by_chain(net)(params, [x], [y])
    values = factors(logistic(z)) | {"chain L": loss, "chain dL/dw": grads["w"].item(), "chain dL/db": grads["b"].item()}
    step, opt_state = make_step(value_and_grad(net, mse()), tx), init_opt_state(tx, params)
    batch = np.array([x]), np.array([y])
    for n in range(1, 1001):
        params, opt_state, _ = step(params, opt_state, batch)
        if n == 1:
            values |= {f"chain {k} after 1 step": params[0][k].item() for k in "wb"}
    end = {name: params[0][name].item() for name in "wb"}
    end["a"] = logistic(end["w"] * x + end["b"])
    end["L"] = (y - end["a"]) ** 2
    return (values | {f"{name} after 1000 steps": value for name, value in end.items()}
            | {f"a = .75: {name}": value for name, value in factors(0.75).items() if name not in "za"})


GIVEN = {"x1": 0.5, "x2": 0.3, "y": 1.0, "w1": 0.4, "w2": -0.6, "b1": 0.1, "w3": 0.7, "b2": -0.2}
SHEET = (  # what w4 computes, once more as a spreadsheet's formulas: each name becomes its cell
    ("z1", "w1*x1 + w2*x2 + b1", "hidden neuron"),
    ("a1", "1/(1 + EXP(-z1))", "its sigmoid"),
    ("z2", "w3*a1 + b2", "output neuron"),
    ("a2", "1/(1 + EXP(-z2))", "its sigmoid"),
    ("L", "(y - a2)^2", "loss"),
    ("dL/da2", "2*(a2 - y)", "factor 1 of dL/dw1"),
    ("da2/dz2", "a2*(1 - a2)", "factor 2"),
    ("dz2/da1", "w3", "factor 3"),
    ("da1/dz1", "a1*(1 - a1)", "factor 4"),
    ("dz1/dw1", "x1", "factor 5"),
    ("dz1/dw2", "x2", "factor 5 of dL/dw2"),
    ("dz2/dw3", "a1", "factor 3 of dL/dw3"),
    ("dL/dw1", "dL/da2*da2/dz2*dz2/da1*da1/dz1*dz1/dw1", "the five factors"),
    ("dL/dw2", "dL/da2*da2/dz2*dz2/da1*da1/dz1*dz1/dw2", "four of them are those of dL/dw1"),
    ("dL/db1", "dL/da2*da2/dz2*dz2/da1*da1/dz1", "dz1/db1 = 1"),
    ("dL/dw3", "dL/da2*da2/dz2*dz2/dw3", "the path ends earlier"),
    ("dL/db2", "dL/da2*da2/dz2", "dz2/db2 = 1"),
)


def w4(**changes: float) -> Values:
    """Two inputs, a hidden and an output sigmoid neuron, L = (y - a2)^2; any input or weight may be changed."""
    given = GIVEN | changes
    x1, x2, y, w1, w2, b1, w3, b2 = (given[name] for name in GIVEN)
    a1 = logistic(z1 := w1 * x1 + w2 * x2 + b1)
    a2 = logistic(z2 := w3 * a1 + b2)
    f1, f2, f3, f4 = 2 * (a2 - y), a2 * (1 - a2), w3, a1 * (1 - a1)
    values = given | {"z1": z1, "a1": a1, "z2": z2, "a2": a2, "L": (y - a2) ** 2, "dL/da2": f1, "da2/dz2": f2,
                      "dz2/da1": f3, "da1/dz1": f4, "dz1/dw1": x1, "dz1/dw2": x2, "dz2/dw3": a1,
                      "dL/dw1": f1 * f2 * f3 * f4 * x1, "dL/dw2": f1 * f2 * f3 * f4 * x2, "dL/db1": f1 * f2 * f3 * f4,
                      "dL/dw3": f1 * f2 * a1, "dL/db2": f1 * f2}
    net, params = chain(dense(1), sigmoid(), dense(1), sigmoid()), (affine([[w1, w2]], [b1]), (), affine([[w3]], [b2]), ())
    loss, (hidden, _, out, _) = by_chain(net)(params, [x1, x2], [y])
    (dw1,), (dw2,) = hidden["w"]
    return values | {"chain L": loss, "chain dL/dw1": dw1, "chain dL/dw2": dw2, "chain dL/db1": hidden["b"].item(),
                     "chain dL/dw3": out["w"].item(), "chain dL/db2": out["b"].item()}


def write_sheet(path: Path) -> None:
    """W4 as a CSV whose formulas point at cells: change a value in column B and every factor follows."""
    rows = [*((name, value, "change me") for name, value in GIVEN.items()), *SHEET]
    cell = {name: f"B{n}" for n, (name, _, _) in enumerate(rows, 2)}
    names = re.compile("|".join(map(re.escape, cell)))  # no name begins another
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "value", "what it is (LibreOffice: tick Evaluate formulas on opening)"))
        for name, value, text in rows:
            table.writerow((name, "=" + names.sub(lambda m: cell[m[0]], value) if isinstance(value, str) else value, text))


MAKERS = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}
SLOPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {  # f and f', both of z
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (logistic, lambda z: logistic(z) * (1 - logistic(z))),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
}


def equations(weights: Sequence[Any], biases: Sequence[Any], hidden: Sequence[str], x: Any, label: int) -> Values:
    """The general equations for one example, literally; layers count from 1."""
    L, W, b, f = len(weights), dict(enumerate(weights, 1)), dict(enumerate(biases, 1)), dict(enumerate(hidden, 1))
    z, a, delta = {}, {0: x}, {}
    for k in range(1, L + 1):
        z[k] = W[k] @ a[k - 1] + b[k]
        a[k] = SLOPES[f[k]][0](z[k]) if k < L else np.exp(z[k]) / np.sum(np.exp(z[k]))  # the last is p
    delta[L] = a[L] - np.eye(len(a[L]))[label]
    for k in range(L - 1, 0, -1):
        delta[k] = (W[k + 1].T @ delta[k + 1]) * SLOPES[f[k]][1](z[k])
    values: Values = {f"a_{k}": a[k] for k in a} | {"p": a[L], "loss": -np.log(a[L][label])}
    values |= {f"delta_{k}": delta[k] for k in delta}
    return values | {f"{d}_{k}": v for k in delta for d, v in (("dW", np.outer(delta[k], a[k - 1])), ("db", delta[k]))}


def layered(widths: Sequence[int], hidden: Sequence[str], examples: int = 3, seed: int = 0) -> Values:
    """`equations` per example, their mean over a batch beside the chain's; printed: the first example, then the means."""
    rng = np.random.default_rng(seed)
    weights, biases = draw(rng, widths)
    x, labels = rng.normal(size=(examples, widths[0])), rng.integers(widths[-1], size=examples)
    each = [equations(weights, biases, hidden, *example) for example in zip(x, labels)]
    layers = [layer for name, o in zip(hidden, widths[1:]) for layer in (dense(o), MAKERS[name]())]
    params = tuple(p for W, b in zip(weights, biases) for p in (affine(W, b), ()))[:-1]  # no activation on the logits
    loss, grads = by_chain(chain(*layers, dense(widths[-1])), softmax_cross_entropy())(params, x, labels)
    found: Values = {"chain mean loss": loss}
    for k, grad in enumerate(grads[::2], 1):
        found |= {f"chain mean dW_{k}": grad["w"].T, f"chain mean db_{k}": grad["b"]}
    means = {name[6:]: np.mean([values[name[11:]] for values in each], axis=0) for name in found}
    return each[0] | means | found


def w5() -> Values:
    """An L-layer network with softmax and cross-entropy, here L = 4: relu, sigmoid, tanh; example 1, then the batch.

    forward    a_0 = x;  z_l = W_l a_{l-1} + b_l;  a_l = f_l(z_l);  p = softmax(z_L)
    loss       -log p of the label
    deltas     delta_L = p - y;  delta_l = (W_{l+1}^T delta_{l+1}) * f_l'(z_l)
    gradients  dW_l = delta_l a_{l-1}^T;  db_l = delta_l;  a batch takes the mean
    """
    return layered((2, 5, 4, 3, 2), ("relu", "sigmoid", "tanh"))


Stage: TypeAlias = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]  # name, f, f'
STAGES: tuple[Stage, ...] = (
    ("triple", lambda x: 3 * x, lambda x: 3.0),
    ("square", lambda x: x**2, lambda x: 2 * x),
    ("muffle", lambda x: jnp.tanh(x), lambda x: 1 - jnp.tanh(x) ** 2),
    ("negate", lambda x: -x, lambda x: -1.0),
    ("exp", lambda x: jnp.exp(x), lambda x: jnp.exp(x)),
)


def w6(stages: Sequence[Stage] = STAGES, x: float = 0.5) -> Values:
    """Telephone: each stage passes its input on, changed; the product of the local sensitivities is the whole derivative."""

    def stage_layer(name: str, f: Callable[[Any], Any], df: Callable[[Any], Any]) -> Layer:
        return Layer(name, lambda key, x: (), lambda params, x: (f(x), x), lambda params, x, dy: ((), df(x) * dy))

    values, out, product = {"x": x}, x, 1.0
    for n, (name, f, df) in enumerate(stages, 1):
        product *= (local := float(df(out)))
        out = float(f(out))
        values |= {f"{n} {name}: y": out, f"{n} {name}: sensitivity": local, f"{n} {name}: product so far": product}
    net, eps = chain(*(stage_layer(*stage) for stage in stages)), 1e-6
    params = ((),) * len(stages)
    y, pullback = vjp(net, params, jnp.array(x))
    ends = [net.forward(params, jnp.array(x + e))[0].item() for e in (eps, -eps)]
    return values | {"y": out, "dy/dx": product, "chain y": y.item(), "chain dy/dx": pullback(jnp.ones(()))[1].item(),
                     "difference dy/dx": (ends[0] - ends[1]) / (2 * eps)}


def w7() -> Values:
    """Credit of every weight, from output to input, in a net x -> h1 -> h2 -> y of sigmoid neurons; L = (y - 1)^2.

    A neuron's dL/dz gathers what the neurons after it send back; a weight's credit is dL/dz of its head times a of its tail.
    """
    names, widths, rng = ("x", "h1", "h2", "y"), (2, 3, 2, 1), np.random.default_rng(7)
    W, b = draw(rng, widths)
    a = [[0.5, -0.3]]
    for rows, shifts in zip(W, b):
        a.append([logistic(sum(w * v for w, v in zip(row, a[-1])) + shift) for row, shift in zip(rows, shifts)])
    net = chain(*(layer for o in widths[1:] for layer in (dense(o), sigmoid())))
    params = tuple(p for layer in zip(W, b) for p in (affine(*layer), ()))
    loss, grads = by_chain(net)(params, a[0], [1.0])
    values = {"L": (a[3][0] - 1) ** 2, "chain L": loss}
    sent = [2 * (a[3][0] - 1)]  # dL/da of the layer at hand
    for k in (3, 2, 1):
        dz = [da * v * (1 - v) for da, v in zip(sent, a[k])]
        for j, d in enumerate(dz):
            head = f"{names[k]}[{j}]"
            values |= {f"dL/dz {head}": d, f"dL/db {head}": d, f"chain dL/db {head}": grads[2 * k - 2]["b"][j]}
            for i, v in enumerate(a[k - 1]):
                arrow = f"dL/dw {names[k - 1]}[{i}] -> {head}"
                values |= {arrow: d * v, f"chain {arrow}": grads[2 * k - 2]["w"][i, j]}
        sent = [sum(W[k - 1][j][i] * d for j, d in enumerate(dz)) for i in range(widths[k - 1])]
    return values


def w8() -> Values:
    """dL/dW1 of a two-layer net as five Jacobians: tanh(W1 x + b1), sigmoid(W2 a1 + b2), L = mean (a2 - y)^2 over 2 outputs."""
    (W1, W2), (b1, b2) = draw(np.random.default_rng(8), (2, 3, 2))
    x, y = np.array([0.5, -0.3]), np.array([1.0, 0.0])
    a1 = np.tanh(W1 @ x + b1)
    a2 = logistic(W2 @ a1 + b2)
    factors = {"dL/da2": (a2 - y)[None], "da2/dz2": np.diag(a2 * (1 - a2)), "dz2/da1": W2, "da1/dz1": np.diag(1 - a1**2),
               "dz1/dW1": np.kron(np.eye(3), x)}  # column 2 j + i is W1[j, i]
    net, params = chain(dense(3), tanh(), dense(2), sigmoid()), (affine(W1, b1), (), affine(W2, b2), ())
    _, grads = by_chain(net)(params, x, y)
    product = np.linalg.multi_dot(list(factors.values()))  # (1, 6)
    return factors | {"dL/dW1": product.reshape(3, 2), "chain dL/dW1": grads[0]["w"].T}


def w9() -> Values:
    """One weight w of a sigmoid neuron is nudged, the rest held: gradient * step foretells the rise, its error falls as step^2.

    z = 2 w + .5 + .5, L = (sigmoid(z) - .5)^2: lowest at w = -.5. The sign says which way is up, the size how steep.
    """
    values: Values = {}
    run, steps = by_chain(chain(dense(1), sigmoid())), np.array([1, 0.1, 0.01, 0.001])

    def at(w: float) -> tuple[float, Any]:
        return run((affine([[w, 0.5]], [0.5]), ()), [2.0, 1.0], [0.5])

    for place, w in {"steep": -1.0, "gentle": -0.4, "minimum": -0.5}.items():
        a = logistic(2 * w + 1)
        loss, (grads, _) = at(w)
        gradient = 2 * (a - 0.5) * a * (1 - a) * 2
        truth = np.array([at(w + step)[0] - loss for step in steps])
        error = np.abs(truth - gradient * steps)
        found = {"w": w, "L": loss, "gradient": gradient, "step": steps, "rise foretold": gradient * steps,
                 "rise": truth, "error": error, "order of error": math.log10(error[2] / error[3])}
        values |= {f"{place}: {name}": value for name, value in found.items()}
        values[f"chain {place}: gradient"] = grads["w"][0, 0]
    return values


def blame(case: str, net: Layer, params: Any, x: Sequence[float], names: Sequence[str], gradients: Sequence[float]) -> Values:
    """Each weight's share of the gradient, and its step at rate .01: the same share of all movement."""
    tx = optax.sgd(0.01)
    _, grads = by_chain(net)(params, x, [2.0])
    moved, _ = update(tx, params, grads, init_opt_state(tx, params))
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    values: Values = {}
    for name, hand, theirs, step in zip(names, gradients, flat(grads), flat(moved) - flat(params)):
        values |= {f"{case}, {name}: gradient": hand, f"chain {case}, {name}: gradient": float(theirs),
                   f"{case}, {name}: share": abs(hand) / sum(map(abs, gradients)), f"{case}, {name}: step": float(step)}
    return values | {f"{case}: sum of shares": sum(values[f"{case}, {name}: share"] for name in names)}


def c8() -> Values:
    """Shares of blame, |gradient| over their sum, for a result of 1 where 2 was wanted: L = (result - 2)^2, dL/dresult = -2.

    report card  grade = sum of w x, three subjects side by side: who put in more is blamed more
    factory      8 -> steel -> engine -> paint -> car, weights in a row: blame passes through all, the weakest has most
    """
    x, w = [0.75, 0.2, 0.05], [0.25, 0.5, 1.0, 1.0]
    card = blame("report card", dense(1, bias=False), affine([[1.0] * 3]), x, ("big", "small", "tiny"), [-2 * v for v in x])
    line, params = chain(*(dense(1, bias=False) for _ in w)), tuple(affine([[v]]) for v in w)
    factors = [-2 * 8 * math.prod(w) / v for v in w]
    return card | blame("factory", line, params, [8.0], ("steel", "engine", "paint", "car"), factors)


ROWS: dict[str, Callable[[], Values]] = {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W6": w6, "W7": w7, "W8": w8,
                                         "W9": w9, "C8": c8}


def missed(row: str, values: Values) -> list[str]:
    """What did not come out: stated figures, and hand-made values against the chain and central differences."""
    wrong = []
    for name, stated in FIGURES.get(row, {}).items():
        near = 10.0 ** -len(stated.partition(".")[2]) / 2 if isinstance(stated, str) else 1e-12
        if not abs(values[name] - float(stated)) <= near:  # written so that NaN is a miss
            wrong.append(f"{name} = {values[name]:.12g}, expected {stated}")
    for oracle, bound in ORACLES.items():
        for full in (name for name in values if name.startswith(oracle)):
            hand = np.asarray(values[name := full.removeprefix(oracle)])
            if not np.max(np.abs(hand - values[full])) <= bound * np.max(np.abs(hand)):
                wrong.append(f"{name} = {hand}, {oracle.strip()}: {values[full]}")
    return wrong


def show(values: Values) -> str:
    """One line a name, `name = value`; behind it the oracle's figure, or how far an array is from the oracle's."""
    def text(value: Any) -> str:
        if np.ndim(value) == 0:
            return f"{value:.6g}"
        digits: Any = {"float": lambda v: f"{v + 0.0:11.5g}"}  # + 0.0: no -0
        return np.array2string(value, formatter=digits, prefix=" " * (width + 5), max_line_width=128)

    width, lines = max(len(name) for name in values), []
    for name, value in values.items():
        if not name.startswith(tuple(ORACLES)):
            beside = {oracle.strip(): values[oracle + name] for oracle in ORACLES if oracle + name in values}
            apart = {o: text(v) if np.ndim(v) == 0 else f"within {np.max(np.abs(v - value)):.0e}" for o, v in beside.items()}
            lines.append(f"  {name:{width}} = {text(value)}" + "".join(f"   ({o} {figure})" for o, figure in apart.items()))
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", type=known, help=f"{' '.join(ROWS)}; all unless given")


def known(name: str) -> str:
    if name.upper() not in ROWS:
        raise argparse.ArgumentTypeError(f"unknown id {name}: expected some of {' '.join(ROWS)}")
    return name.upper()


def experiment(lab: Lab) -> None:
    ids = list(dict.fromkeys(lab.options.ids)) or list(ROWS)
    for name in ids:
        with jax.enable_x64(True):
            values = ROWS[name]()
        wrong = missed(name, values)
        print(f"{name}  {getdoc(ROWS[name])}\n\n{show(values)}\n" + "".join(f"  MISSED {line}\n" for line in wrong))
        lab.expect(f"{name}: every figure comes out, every gradient is the chain's", f"{len(wrong)} missed", not wrong)
        lab.keep(**{name: values})
        print()
        if name == "W9":
            draw_errors(lab, values)
    if "W4" in ids:
        write_sheet(lab.out / "w4.csv")
        print(f"W4 as a spreadsheet: {lab.out / 'w4.csv'}")


def draw_errors(lab: Lab, values: Values) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    for place, mark in (("steep", "o-"), ("gentle", "s-"), ("minimum", "^-")):
        slope, order = values[f"{place}: gradient"], values[f"{place}: order of error"]
        words = f"{place}: gradient {slope:+.3f}, order {order:.2f}"
        ax.loglog(values[f"{place}: step"], values[f"{place}: error"], mark, label=words)
    ax.set_xlabel("step of the weight")
    ax.set_ylabel("error of what gradient times step foretells")
    ax.set_title("A gradient foretells small steps: the error falls as the step squared")
    ax.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(main(experiment, add_options=add_options))
