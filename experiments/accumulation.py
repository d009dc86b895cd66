"""Is a gradient summed over parts the gradient of the whole batch, and what does the mean of the parts' means do instead?

Rows      C3 C2
Command   python experiments/accumulation.py [--seed N] [--quick] [--out DIR]
Expected  every split of 24 padded sequences of real text, ragged ones and sequences one by one included, gives the whole
          batch's gradient to 1e-6 of its largest entry. The mean of the parts' means is off by .01 to .9 of it, and as exact
          only where all parts are as long. Of parts by length it ends a training .2 nats a byte and more above the sums, where
          the model knows only how often a byte comes; .01 and more where it knows the byte before
Time      about 40 s on two busy cores; --quick 10 s

Sequences of very different length, as the plays have them: names of speakers, and what they say (cut at 128 bytes). The loss
is the mean over all bytes of a batch that are no padding. Parts of like length need least padding, and there the mean of the
means gives the names, an eighth of the bytes, half of the weight. The gradients are those of a GRU that predicts each byte from
those before; what is trained predicts it from nothing, and from the one byte before it.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import (
    Layer,
    accumulate,
    chain,
    dense,
    embedding,
    gru,
    paths,
    softmax_cross_entropy,
    token_weight,
    value_and_grad,
)
from fbackprop.data import text, windows
from fbackprop.data.text import TextSet

IGNORED, LONGEST, ROWS, PARTS = -1, 128, 24, 8
LOSS = softmax_cross_entropy(ignore_index=IGNORED)
WHOLE, SUM, MEAN = "one large batch", "sums over parts", "mean of the means"
RUNS, SORTED, ALIKE = (WHOLE, SUM, MEAN), "8, by length", "8, all as long"
WEIGHT = {SUM: token_weight(ignore_index=IGNORED), MEAN: lambda batch: 1.0}


def sequences(plays: TextSet, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, target), each (N, LONGEST): names and what is said, in turn; targets IGNORED behind the end of a sequence."""
    said = [paragraph.split(b"\n", 1) for paragraph in plays.decode(ids).split(b"\n\n")]
    pieces = [b"\n" + piece + b"\n" for pair in said if len(pair) == 2 and pair[0].endswith(b".") for piece in pair]
    x, target = np.zeros((len(pieces), LONGEST), np.int32), np.full((len(pieces), LONGEST), IGNORED, np.int32)
    for i, piece in enumerate(pieces):
        row = plays.encode(piece[:LONGEST + 1])
        x[i, :len(row) - 1], target[i, :len(row) - 1] = row[:-1], row[1:]
    return x, target


def by_length(batch: Any) -> Any:
    order = np.argsort(np.sum(batch[1] != IGNORED, axis=1), kind="stable")
    return tuple(a[order] for a in batch)


def cut(batch: Any, edges: list[int]) -> list[Any]:
    """Parts, each filled up to the size of the batch with rows that are all padding: one program for any split."""
    fill = lambda a, value: np.pad(a, ((0, ROWS - len(a)), (0, 0)), constant_values=value)
    return [(fill(batch[0][a:b], 0), fill(batch[1][a:b], IGNORED)) for a, b in pairwise(edges)]


def errors(lab: Lab, plays: TextSet, batch: Any) -> dict[str, dict[str, float]]:
    """{split: {way: error}}: the largest difference in any leaf of the gradient, relative to the leaf's largest entry."""
    V = len(plays.vocabulary)
    net = chain(embedding(V, 8), gru(16), dense(V))
    gradient, params = compiled(value_and_grad(net, LOSS)), start(net, lab.seed, batch[0][:1])
    even = lambda n: list(range(0, ROWS + 1, ROWS // n))
    ragged = [0, *sorted(np.random.default_rng(lab.seed).choice(np.arange(1, ROWS), 4, replace=False)), ROWS]
    splits = {f"{n} parts": (batch, even(n)) for n in lab.pick((2, 4, 8, 12), ())}
    splits |= {"5 ragged parts": (batch, ragged), "24, one by one": (batch, even(ROWS)),
               SORTED: (by_length(batch), even(8)),
               ALIKE: (windows(plays.train, LONGEST, ROWS)(lab.seed, 0), even(8))}
    found: dict[str, dict[str, float]] = {}
    for name, (of, edges) in splits.items():
        whole, parts, found[name] = paths(gradient(params, of)[1]), cut(of, edges), {}
        for way, weight in WEIGHT.items():
            got = paths(accumulate(gradient, weight)(params, parts)[1])
            found[name][way] = max(float(np.max(np.abs(got[path] - leaf)) / np.max(np.abs(leaf)))
                                   for path, leaf in whole.items())
    return found


def curves(lab: Lab, net: Layer, data: Any, test: Any) -> dict[str, np.ndarray]:
    """{way: loss per byte before each step on sequences never trained on}, of the same batches in parts by length."""
    by_hand = value_and_grad(net, LOSS)
    params = jax.tree.map(np.zeros_like, start(net, lab.seed, data[0][:1]))
    rows = np.random.default_rng(lab.seed).integers(len(data[0]), size=(lab.pick(120, 60), ROWS))
    batches = [by_length(tuple(a[chosen] for a in data)) for chosen in rows]
    stacked = tuple(np.stack(a).reshape(len(rows), PARTS, ROWS // PARTS, LONGEST) for a in zip(*batches))
    whole = lambda params, parts: by_hand(params, jax.tree.map(lambda a: a.reshape(ROWS, LONGEST), parts))
    run = {WHOLE: whole, **{way: accumulate(by_hand, weight) for way, weight in WEIGHT.items()}}
    see = lambda params, grads: by_hand(params, test)[0]
    return {way: np.asarray(train(run[way], optax.adam(0.1), params, stacked, see)[2]) for way in lab.pick(RUNS, RUNS[1:])}


def experiment(lab: Lab) -> None:
    plays = text()
    data, test = sequences(plays, plays.train), sequences(plays, plays.validation)
    chosen = np.random.default_rng(lab.seed).integers(len(data[0]), size=ROWS)
    found = errors(lab, plays, tuple(a[chosen] for a in data))
    lab.table(("parts", SUM, MEAN), [(name, *ways.values()) for name, ways in found.items()], "errors")
    worst = max(ways[SUM] for ways in found.values())
    lab.expect("sums over parts: error of any split, relative to the largest entry, at most 1e-6", worst, worst <= 1e-6)
    equal = found[ALIKE][MEAN]
    lab.expect("mean of the means, parts all as long: at most 1e-6 too", equal, equal <= 1e-6)
    least = min(ways[MEAN] for name, ways in found.items() if name != ALIKE)
    lab.expect("mean of the means, parts that differ: off by at least .01 everywhere", least, least >= 0.01)
    lab.expect("and by at least .3 with parts by length", found[SORTED][MEAN], found[SORTED][MEAN] >= 0.3)

    test, V = tuple(a[:96] for a in test), len(plays.vocabulary)
    nothing = lambda batch: (0 * batch[0], batch[1])
    trained = {"from nothing": curves(lab, embedding(1, V), nothing(data), nothing(test))}
    if not lab.quick:
        trained["from the byte before"] = curves(lab, embedding(V, V), data, test)
    last = {name: {way: float(np.mean(losses[-30:])) for way, losses in ways.items()} for name, ways in trained.items()}
    lab.table(("loss per byte, predicted", *lab.pick(RUNS, RUNS[1:])),
              [(name, *ways.values()) for name, ways in last.items()], "last")
    if not lab.quick:
        same = max(float(np.max(np.abs(ways[SUM] - ways[WHOLE]))) for ways in trained.values())
        lab.expect("training by sums is training on the whole: losses apart by at most 1e-4", same, same <= 1e-4)
    gaps = {name: ways[MEAN] - ways[SUM] for name, ways in last.items()}
    for name, least in (("from nothing", 0.2), ("from the byte before", 0.01)):
        if name in gaps:
            lab.expect(f"mean of the means, {name}: loss higher by at least {least}", gaps[name], gaps[name] >= least)
    draw(lab, found, trained["from nothing"], gaps["from nothing"])


def draw(lab: Lab, found: dict[str, dict[str, float]], losses: dict[str, np.ndarray], gap: float) -> None:
    figure = lab.figure(11, 4.5, 1, 2)
    if figure is None:
        return
    left, right = figure.axes
    for way, color, mark in ((MEAN, "#D55E00", "s"), (SUM, "#0072B2", "o")):
        left.semilogx([ways[way] for ways in found.values()], list(found), mark, color=color, label=way)
    left.axvline(1e-6, color="#777777", linewidth=1, linestyle="--")
    left.text(1.2e-6, 0.02, "1e-6", color="#777777", transform=left.get_xaxis_transform())
    left.set(xlim=(1e-7, 3), xlabel="error of the gradient / its largest entry",
             title="Sums over parts are exact, means are not")
    left.invert_yaxis()
    left.legend(loc="center", frameon=False)
    for way, color, style in ((MEAN, "#D55E00", "-"), (WHOLE, "#bbbbbb", "-"), (SUM, "#0072B2", "--")):
        right.plot(losses.get(way, []), style, color=color, linewidth=4 if way == WHOLE else 1.5, label=way)
    right.set(xlabel="step", ylabel="loss per byte, held-out text (nats)", ylim=(3.3, 4.5),
              title=f"A training by means ends {gap:.2f} nats higher")
    right.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(main(experiment))
