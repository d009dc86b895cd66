"""What do bfloat16 and float16 cost a gradient, what do they save, and when does float16 need a scaled loss?

Rows      C4
Command   python experiments/precision.py [--seed N] [--quick] [--out DIR]
Expected  against float64 every layer's gradient is off by at most 1e-5 in float32, .03 in bfloat16, .005 in float16; half the
          bytes are kept for the backward pass. Behind twelve sigmoids float16 loses nine tenths and more of the first layer's
          gradient to zero, and a loss scaled by 2^15 keeps all but a hundredth. Digits are learned in each as in float32:
          last loss within a tenth, accuracy within 1.5 points
Time      about 30 s on two busy cores; --quick 12 s

Real digits of 14 x 14 pixels. The weights stay float32, each layer computes narrow (Micikevicius et al. 2018, Mixed precision
training, sections 3.1 and 3.2). float16 ends at 2^-24 = 6e-8, and a cotangent below half of that is 0; the scale goes in as the
seed of the backward pass and is divided out of the float32 gradients. Errors are Euclidean norms over a layer's gradient.
The claims on them are of a net of tanhs; with relus they are 7 to 100 times as large in the narrow dtypes, told and not
claimed.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import accuracy, order, small_digits
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import (
    PRECISIONS,
    Layer,
    chain,
    convnet,
    dense,
    flatten,
    gpt,
    mlp,
    objective,
    paths,
    sigmoid,
    softmax_cross_entropy,
    value_and_grad,
    with_precision,
)
from fbackprop.gradients import ValueAndGrad
from fbackprop.observe.summary import summarize
from fbackprop.train import LossScale, unscale

Gradient = dict[str, np.ndarray]
LOSS, SCALE = softmax_cross_entropy(), LossScale()  # 2^15
WAYS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "float16, scaled": "float16"}
WITHIN = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.005, "float16, scaled": 0.005}
RELUS, TANHS = mlp((64,) * 4), mlp((64,) * 4, activation="tanh")
SIGMOIDS = chain(flatten(), *(layer for _ in range(12) for layer in (dense(64), sigmoid())), dense(10))


def by_hand(net: Layer, way: str) -> ValueAndGrad:
    """As `value_and_grad`, in one of WAYS; a scale is put in as the seed and divided out."""
    narrow = value_and_grad(with_precision(net, PRECISIONS[WAYS[way]]), LOSS)

    def scaled(params: Any, batch: Any, seed: Any = 1.0) -> tuple[jax.Array, Any]:
        value, grads = narrow(params, batch, seed * SCALE.scale)
        return value, unscale(grads, SCALE)

    return scaled if "scaled" in way else narrow


def weights(grads: Any) -> Gradient:
    return {path: np.asarray(leaf, np.float64) for path, leaf in paths(grads).items() if path.endswith("w")}


def gradients(net: Layer, seed: int, ways: tuple[str, ...] = tuple(WAYS)) -> tuple[Gradient, dict[str, Gradient]]:
    """({path: gradient in float64}, {way: {path: gradient}}) of the weights of every layer, at the start, of 50 digits."""
    batch = tuple(a[order(seed, 1)[0]] for a in small_digits().train)
    params = start(net, seed, batch[0])
    every = compiled(lambda params, batch: {way: by_hand(net, way)(params, batch)[1] for way in ways})(params, batch)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        true = compiled(value_and_grad(net, LOSS))(wide, (np.asarray(batch[0], np.float64), batch[1]))[1]
        return weights(true), {way: weights(every[way]) for way in ways}


def far(got: Gradient, true: Gradient) -> list[float]:
    """The error of each layer's gradient, relative to its norm."""
    return [float(np.linalg.norm(got[path] - leaf) / np.linalg.norm(leaf)) for path, leaf in true.items()]


def kept(net: Layer, loss: Layer | None, way: str, batch: Any) -> int:
    """Bytes that the layers of the net keep for the backward pass; shapes alone are traced."""
    narrow = with_precision(net, PRECISIONS[way])
    params = jax.eval_shape(lambda: objective(narrow, loss).init(jax.random.key(0), batch))
    return sum(row.kept_bytes for row in summarize(narrow, loss, params, batch) if row.path != "loss")


def halved(lab: Lab) -> None:
    spec = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
    digits = lambda *shape: (spec(50, *shape), spec(50, dtype=np.int32))
    tokens = spec(4, 128, dtype=np.int32)
    nets = {"mlp": (RELUS, LOSS, digits(14, 14)), "convnet": (convnet((8, 16)), LOSS, digits(28, 28, 1)),
            "gpt": (gpt(80, 128, features=64, heads=4, blocks=2), None, (tokens, tokens))}
    rows = [(name, *(kept(*net[:2], way, net[2]) for way in PRECISIONS)) for name, net in list(nets.items())[:lab.pick(3, 1)]]
    lab.table(("bytes kept", *PRECISIONS), rows, "kept")
    shares = [narrow / wide for _, wide, *narrows in rows for narrow in narrows]
    lab.expect("bytes kept, narrow over float32: .5 to .53", (min(shares), max(shares)),
               0.5 <= min(shares) <= max(shares) <= 0.53)


def flushed(got: Gradient, true: Gradient) -> list[float]:
    """Share of each layer's gradient that is 0 though it is not in float64."""
    return [float(np.mean(got[path][leaf != 0] == 0)) for path, leaf in true.items()]


def experiment(lab: Lab) -> None:
    true, found = gradients(TANHS, lab.seed)
    off = {way: far(got, true) for way, got in found.items()}
    lab.table(("error of a gradient", *(path.removesuffix("/w") for path in true)), [(w, *e) for w, e in off.items()], "errors")
    for way, most in WITHIN.items():
        lab.expect(f"{way}: a layer's gradient is off by at most {most:g}", max(off[way]), max(off[way]) <= most)
    lab.expect("bfloat16's error over float16's, worst layers: 4 to 16 (3 bits)", max(off["bfloat16"]) / max(off["float16"]),
               4 <= max(off["bfloat16"]) / max(off["float16"]) <= 16)
    if not lab.quick:
        true, found = gradients(RELUS, lab.seed)
        lab.table(("worst layer", "with tanhs", "with relus"),
                  [(way, max(off[way]), max(far(got, true))) for way, got in found.items()], "relus")
    halved(lab)

    true, found = gradients(SIGMOIDS, lab.seed, lab.pick(tuple(WAYS), tuple(WAYS)[2:]))
    zeros = {way: flushed(got, true) for way, got in found.items()}
    lab.table(("share of zeros, twelve sigmoids", "first layer", "its error", "last layer"),
              [(way, share[0], far(found[way], true)[0], share[-1]) for way, share in zeros.items()], "zeros")
    lab.expect("float16: share of the first layer's gradient that is 0, at least .9", zeros["float16"][0],
               zeros["float16"][0] >= 0.9)
    for way in lab.pick(("float16, scaled", "bfloat16"), ("float16, scaled",)):
        lab.expect(f"{way}: at most .01", zeros[way][0], zeros[way][0] <= 0.01)
    again = far(found["float16, scaled"], true)[0]
    lab.expect("float16, scaled: its error is at most .02", again, again <= 0.02)

    runs = training(lab)
    draw(lab, off, zeros, runs)


def training(lab: Lab) -> dict[str, np.ndarray]:
    """{way: losses}; the same start and the same batches."""
    batches = tuple(a[order(lab.seed, lab.pick(400, 40))] for a in small_digits().train)
    begin = start(RELUS, lab.seed, batches[0][0])
    ways = lab.pick(tuple(WAYS), ("float32", "bfloat16"))
    found = {way: train(by_hand(RELUS, way), optax.adam(0.001), begin, batches) for way in ways}
    runs = {way: np.asarray(losses) for way, (_, losses, _) in found.items()}
    last = {way: float(np.mean(losses[-30:])) for way, losses in runs.items()}
    right = {way: accuracy(RELUS, params) for way, (params, _, _) in found.items()}
    lab.table(("training", "first loss", "last loss", "accuracy"),
              [(way, runs[way][0], last[way], right[way]) for way in ways], "training")
    least = lab.pick(0.8, 0.4)
    lab.expect(f"float32 learns: accuracy, at least {least}", right["float32"], right["float32"] >= least)
    for way in ways[1:]:
        factor, points = last[way] / last["float32"], 100 * (right[way] - right["float32"])
        lab.expect(f"{way}: last loss over float32's, .9 to 1.1", factor, 0.9 <= factor <= 1.1)
        lab.expect(f"{way}: accuracy within {lab.pick(1.5, 3)} points of float32's", points, abs(points) <= lab.pick(1.5, 3))
    return runs


def draw(lab: Lab, off: dict[str, list[float]], zeros: dict[str, list[float]], runs: dict[str, np.ndarray]) -> None:
    figure = lab.figure(13, 4.5, 1, 3)
    if figure is None:
        return
    near, lost, curve = figure.axes
    looks = dict(zip(WAYS, ("#777777", "#0072B2", "#D55E00", "#009E73")))
    for way, color in looks.items():
        dashed = {"color": color, "linestyle": "--" if "scaled" in way else "-", "label": way}
        near.semilogy(np.arange(len(off[way])) + 1, off[way], marker="o", **dashed)
        if way in zeros:
            lost.plot(np.arange(len(zeros[way])) + 1, 100 * np.array(zeros[way]), marker="o", **dashed)
        if way in runs:
            smooth = np.convolve(runs[way], np.ones(15) / 15, "valid")
            curve.semilogy(np.arange(len(smooth)) + 8, smooth, **dashed)
    near.set(xlabel="layer, from the input", ylabel="error of its gradient / its norm", ylim=(1e-8, 1e-1),
             title="Errors are those of the dtype")
    lost.set(xlabel="layer, from the input (twelve sigmoids)", ylabel="gradient flushed to zero (%)",
             title="float16 needs a scaled loss")
    curve.set(xlabel="step", ylabel="loss, mean of 15 steps", title="All learn alike")
    near.legend(frameon=False, fontsize=8, loc="center")


if __name__ == "__main__":
    sys.exit(main(experiment))
