"""Does a net with a wrong backward rule still learn, and does the checker see what the loss curve hides?

Rows      G2
Command   python experiments/wrong_gradients.py [--seed N] [--quick] [--out DIR]
Expected  each of six wrong rules learns real digits to within 1.5 points of the right rule's test accuracy (a test of 1000
          digits is good to 0.7 points); the checker calls each WRONG, names the layer and the mistake
Time      about 60 s on two cores; --quick, one wrong rule on a small net, 5 s

Four dense layers on 4000 digits of 14 x 14 pixels, 15 epochs of Adam at 0.002 down a cosine. Each of the six runs differs from
the right one in one rule of one layer; weights and batches are the same. The mistakes are those people make: a factor, a batch
that is not summed, a wrong derivative, an index that is off by one, a missing transpose. Where a mistake sits matters: Adam
forgives a factor altogether, and a wrong derivative in a net of one hidden layer costs two points or more.
The checker sees the weights of the start and 8 digits. The figure: curves that say nothing, a check that says it all. On a log
axis the worst of them end at four times the loss of the right rule; who has no right rule beside the wrong one cannot see that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import accuracy, order, small_digits, start, trained
from lab import Lab, main

from fbackprop import Layer, check_layer, check_network, mlp, replace_rules, softmax_cross_entropy, value_and_grad
from fbackprop.report.figures import CYCLE, smooth
from fbackprop.verify.verdict import Report

# ---- six wrong rules, each made from the right layer


def doubled(layer: Layer) -> Layer:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        grads, dx = layer.backward(params, x, dy)
        return {**grads, "w": 2 * grads["w"]}, dx

    return replace(layer, backward=backward)


def not_summed(layer: Layer) -> Layer:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        grads, dx = layer.backward(params, x, dy)
        return {**grads, "b": dy[0]}, dx

    return replace(layer, backward=backward)


def off_by_one(layer: Layer) -> Layer:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        grads, dx = layer.backward(params, x, dy)
        return {**grads, "w": jnp.roll(grads["w"], 1, axis=0)}, dx

    return replace(layer, backward=backward)


def not_transposed(layer: Layer) -> Layer:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        return layer.backward(params, x, dy)[0], dy @ params["w"]

    return replace(layer, backward=backward)


def without_mask(layer: Layer) -> Layer:
    return replace(layer, backward=lambda params, y, dy: ((), dy))


def slope_of_sigmoid(layer: Layer) -> Layer:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        s = jax.nn.sigmoid(x)
        return (), s * (1 - s) * dy

    return replace(layer, forward=lambda params, x: (layer.forward(params, x)[0], x), backward=backward)


@dataclass(frozen=True)
class Bug:
    words: str
    where: str  # path of the layer
    plant: Callable[[Layer], Layer]
    named: str  # in the checker's hint


BUGS = (
    Bug("dW of layer 1 doubled", "1", doubled, "twice the right one"),
    Bug("batch not summed in db", "1", not_summed, "sum over the batch is missing"),
    Bug("dW shifted by one pixel", "1", off_by_one, "shifted by one along the first axis"),
    Bug("W not transposed in dx", "3", not_transposed, "where its transpose belongs"),
    Bug("relu without its mask", "4", without_mask, "the derivative of identity"),
    Bug("sigmoid's slope for relu's", "4", slope_of_sigmoid, "the derivative of sigmoid"),
)


# ---- training and checking


@dataclass(frozen=True)
class Run:
    words: str
    losses: np.ndarray
    accuracy: float
    report: Report
    bug: Bug | None

    @property
    def error(self) -> float:
        """The largest error of a gradient over the largest number in it."""
        return max(finding.error / finding.scale for finding in self.report.findings if finding.oracle == "jax.vjp")


def run(lab: Lab, bug: Bug | None) -> Run:
    net, loss = mlp(lab.pick((128,) * 3, (8,) * 3)), softmax_cross_entropy()
    steps, params = lab.pick(1200, 80), start(net, lab.seed)
    if bug is not None:
        net = replace_rules(net, bug.where, bug.plant)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    after, losses = trained(value_and_grad(net, loss), tx, params, order(lab.seed, steps))
    return Run(bug.words if bug else "the right rule", losses, accuracy(net, after), check(lab, net, params, bug), bug)


def check(lab: Lab, net: Layer, params: Any, bug: Bug | None) -> Report:
    """Of the whole net; in a quick run of the one layer, for a net's layers are compiled one by one."""
    x, y = small_digits().train
    if not lab.quick:
        return check_network(net, softmax_cross_entropy(), params, (x[:8], y[:8]), dtypes=("float64",))
    layer = net.parts[int(bug.where if bug else "4")]
    found = check_layer(layer, jax.ShapeDtypeStruct((3, 8), jnp.float32), dtypes=("float64",))
    return Report(tuple(replace(finding, layer=f"4 {finding.layer}") for finding in found.findings))


def judge(lab: Lab, right: Run, wrong: Run) -> None:
    bug, report = wrong.bug, wrong.report
    gap = 100 * (right.accuracy - wrong.accuracy)
    if not lab.quick:
        lab.expect(f"{bug.words}: within 1.5 points of the right rule", gap, gap <= 1.5)
        share = np.mean(wrong.losses[-80:]) / wrong.losses[0]
        lab.expect(f"{bug.words}: the loss falls below a tenth of where it began", share, share < 0.1)
    blamed = {finding.layer.partition(" ")[0] for finding in report.findings}
    lab.expect(f"{bug.words}: the checker says WRONG, of layer {bug.where} alone", f"{report.verdict} {sorted(blamed)}",
               report.verdict == "WRONG" and blamed == {bug.where})
    lab.expect(f"{bug.words}: it names the mistake", report.worst.hint, bug.named in report.worst.hint)
    lab.expect(f"{bug.words}: relative error above 1e-3, where a bug is a bug", wrong.error, wrong.error > 1e-3)


def experiment(lab: Lab) -> None:
    runs = [run(lab, bug) for bug in (None, *lab.pick(BUGS, BUGS[4:5]))]
    lab.table(["rule", "loss, last epoch", "test accuracy", "checker", "layer", "relative error"],
              [[r.words, float(np.mean(r.losses[-80:])), r.accuracy, r.report.verdict, r.report.worst.layer if r.bug else "all",
                r.error] for r in runs], name="runs")
    right, *wrongs = runs
    lab.expect("the right rule: the checker says OK", right.report.verdict, right.report.verdict == "OK")
    lab.expect("the right rule: relative error below 1e-7, where gradients match", right.error, right.error < 1e-7)
    for wrong in wrongs:
        judge(lab, right, wrong)
    lab.keep(losses={r.words: r.losses for r in runs})
    draw(lab, runs)


# ---- the figure


def draw(lab: Lab, runs: list[Run]) -> None:
    figure = lab.figure(12.0, 4.5, columns=2, width_ratios=[1, 1.35])
    if figure is None:
        return
    curves, errors = figure.axes
    colors = ("#bbbbbb", *CYCLE)
    for r, color in zip(runs, colors):
        epochs = (np.arange(len(r.losses)) + 1) / 80
        curves.plot(epochs, smooth(r.losses.tolist(), 40), color=color, linewidth=1.2 if r.bug else 7)
    curves.set(xlabel="epoch", ylabel="training loss (nats)", xlim=(0, len(runs[0].losses) / 80), ylim=(0, None),
               title="Six wrong backward rules learn like the right one ...")
    curves.annotate("grey: the right rule\ncolours: six wrong ones", (0.45, 0.5), xycoords="axes fraction", fontsize=11)

    for row, (r, color) in enumerate(zip(runs, colors)):
        color, error = color if r.bug else "#000000", max(r.error, 1e-17)
        errors.plot([1e-17, error], [row, row], color=color, linewidth=1.2, alpha=0.5)
        errors.plot(error, row, "o", color=color, markersize=9)
        errors.annotate(r.report.verdict, (error, row), xytext=(10, 0), textcoords="offset points", va="center",
                        fontweight="bold", color=color)
        if r.bug:
            hint = r.report.worst.hint.removeprefix("Nearest known mistake: ").partition(":")[0]
            errors.annotate(f"layer {r.bug.where}: {hint}", (1.5e-17, row), xytext=(0, 4), textcoords="offset points",
                            fontsize=8.5, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8})
    for at, words, side, shift in ((1e-7, "below: gradients match", "right", -5), (1e-3, "above: a bug", "left", 5)):
        errors.axvline(at, color="#777777", linewidth=1, linestyle="--", zorder=0)
        errors.annotate(words, (at, 1), xycoords=("data", "axes fraction"), xytext=(shift, -4), textcoords="offset points",
                        ha=side, va="top", color="#777777", fontsize=9)
    errors.set(xscale="log", xlim=(1e-17, 1e3), ylim=(len(runs) - 0.5, -0.9), xlabel="relative error of the gradient",
               title="... and the checker names layer and mistake of each")
    errors.set_yticks(range(len(runs)), [f"{r.words}\n{100 * r.accuracy:.1f} % of test digits right" for r in runs])
    errors.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    errors.grid(False)


if __name__ == "__main__":
    sys.exit(main(experiment))
