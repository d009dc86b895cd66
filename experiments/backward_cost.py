"""Does the backward pass cost about twice the forward, and training three times inference?

Rows      K1
Command   python experiments/backward_cost.py [--seed N] [--quick] [--out DIR]
Expected  counted, the rules of a net's layers cost 1.8 to 2.3 times their forwards in every model (attention makes its scores
          again), a dense layer's exactly once for dx and once for dw; measured, loss and gradients take about three times the
          loss alone: 2 to 4 times in the geometric mean over the models
Time      about 90 s on two cores; --quick 5 s

FLOPs are counted in the jaxpr, layer by layer: forward, dx alone, dparams alone. The chain as a whole costs less than the sum
of its layers where the first layer's dx is nobody's. Time is that of the jitted loss against jitted loss and gradients; single
models lie between 2 and 5, for on a CPU a convolution's dw is slower than its forward, and a loss alone stores nothing.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import numpy as np
from lab import Lab, main

from fbackprop import (
    convnet,
    count_flops,
    data,
    gpt,
    lstm_classifier,
    mlp,
    objective,
    resnet,
    softmax_cross_entropy,
    value_and_grad,
)
from fbackprop.comparison.costs import calls, flops_of, take_turns, value_of

Work = tuple[Any, Any, Any]  # net, loss, batch


def works(lab: Lab) -> dict[str, Work]:
    """Real digits, and real text for gpt."""
    images, labels = (part[:64] for part in data.digits().train)
    loss, pictures = softmax_cross_entropy(), images[..., None]
    found: dict[str, Work] = {"mlp": (mlp((512, 512)), loss, (images, labels))}
    if not lab.quick:
        text = data.text()
        found |= {
            "convnet": (convnet((32, 64)), loss, (pictures, labels)),
            "resnet": (resnet((16, 32), blocks=1), loss, (pictures, labels)),
            "lstm": (lstm_classifier(128), loss, (images, labels)),
            "gpt": (gpt(len(text.vocabulary), 64, features=128, heads=4, blocks=4), None,
                    data.windows(text.train, 64, 16)(lab.seed, 0))}
    return found


def experiment(lab: Lab) -> None:
    summary, bars = [], {}
    for name, (net, loss, batch) in works(lab).items():
        batch = jax.tree.map(jax.numpy.asarray, batch)
        params = objective(net, loss).init(jax.random.key(lab.seed), batch)
        rows = [(f"{path} {call.layer.name}", *flops_of(call)) for path, call in calls(net, loss, params, batch).items()]
        print(f"{name}: FLOPs by layer")
        lab.table(("layer", "forward", "dx", "dparams", "backward / forward"),
                  [(*row, (row[2] + row[3]) / row[1] if row[1] else float("nan")) for row in rows], name)
        bars[name] = forward, dx, dparams = np.sum([row[1:] for row in rows], axis=0)
        by_hand = value_and_grad(net, loss)
        chain = (count_flops(by_hand, params, batch) - forward) / forward
        infer, train = jax.jit(partial(value_of, net, loss)), jax.jit(by_hand)
        given = params, batch
        spent = take_turns({"infer": lambda f=infer, g=given: f(*g), "train": lambda f=train, g=given: f(*g)}, lab.pick(15, 1))
        summary.append((name, (dx + dparams) / forward, chain, float(np.median(spent["train"] / spent["infer"]))))
        if name == "mlp":
            dense = [row for row in rows if "dense" in row[0]]
            same = all(row[2] == row[3] - batch[0].shape[0] * int(row[0].split("(")[1][:-1]) for row in dense)
            lab.expect("a dense layer's dx costs what its dw does, to the FLOP (db apart)", same, same)
    lab.table(("model", "rules / forwards, counted", "in the chain", "gradients / inference, time"), summary, "summary")
    for name, rules, _, _ in summary:
        lab.expect(f"{name}: FLOPs of the rules over those of the forwards, 1.8 to 2.3", rules, 1.8 <= rules <= 2.3)
    mean = float(np.exp(np.mean(np.log([ratio for *_, ratio in summary]))))
    lab.expect("time of loss and gradients over that of the loss, geometric mean, 2 to 4", mean, 2 <= mean <= 4, timed=True)
    if lab.figure() is not None:
        draw(lab, bars, summary)


def draw(lab: Lab, bars: dict[str, np.ndarray], summary: list[tuple]) -> None:
    (ax,) = lab.drawn.axes
    left = np.zeros(len(bars))
    for i, (label, colour) in enumerate((("forward", "#bbbbbb"), ("dx", "#0072B2"), ("dparams", "#56B4E9"))):
        widths = np.array([flops[i] / flops[0] for flops in bars.values()])
        ax.barh(list(bars), widths, left=left, color=colour, label=label)
        left += widths
    ax.plot([ratio for *_, ratio in summary], list(bars), "D", color="#D55E00", label="time of loss and gradients")
    ax.invert_yaxis()
    ax.set(xlabel="over the forward (FLOPs counted; time over that of the loss alone)",
           title="the backward costs about two forwards: one for dx, one for dparams")
    ax.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main(experiment))
