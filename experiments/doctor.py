"""In "the doctor ate the ___", what does one wrong word (banana, where the model says apple) send back to every weight?

Rows      U2
Command   python experiments/doctor.py [--seed N] [--quick] [--out DIR]
Expected  p - y is negative at banana alone and sums to 0; it is the gradient on the logits to 1e-6; the gradient of every
          attention weight equals jax.grad's to 1e-6; after one step banana is likelier and apple less likely
Time      about 20 s on two cores; --quick 6 s

A gpt of two blocks with two heads learns the last word of sentences from a grammar: the PERSON VERB the THING. The verb decides
the kind of thing (ate: fruits, drank: drinks, read: papers, wore: clothes); each person has a favourite of each kind, taken 7
times of 10, else one of the others. The doctor's fruit is the apple. So the last word follows from two words that attention has
to fetch.

The gradient of an attention weight p[i, j] is that of the loss if this one number could be moved and all else stayed, so
without the softmax: dy_i . v_j of its head. It is read off inside the hand-written rule as it runs. Figure: where each head
looks and that gradient (blue: the loss falls if the weight grows), and the probabilities before and after the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import (
    auto_value_and_grad,
    from_function,
    gpt,
    graft,
    inference,
    replace_rules,
    softmax_cross_entropy,
    split,
    value_and_grad,
)
from fbackprop.observe.record import beside_records, recording, records

PEOPLE = ("doctor", "nurse", "sailor", "child", "king")
THINGS = {"ate": ("apple", "banana", "pear", "plum", "cherry"), "drank": ("tea", "milk", "water", "juice"),
          "read": ("book", "letter", "poster", "map"), "wore": ("hat", "coat", "scarf", "boots")}
WORDS = ("the", *PEOPLE, *THINGS, *(thing for kind in THINGS.values() for thing in kind))
NUMBER = {word: i for i, word in enumerate(WORDS)}
FAVOURITE = 0.7  # how often it is taken
SENTENCE = ("the", "doctor", "ate", "the")
HEADS, FEATURES, STEPS, RATE = 2, 32, 400, 0.02
LARGER = 3  # weights at the start, times the gpt's own 0.02, which is for hundreds of features
ATTENTION = "0/0/2/0/0/0/1"  # its layer's path
IGNORED = -1  # the target of every word but the last


def training_batches(seed: int, steps: int, size: int) -> Any:
    rng = np.random.default_rng(seed)
    person, verb = rng.integers(len(PEOPLE), size=(steps, size)), rng.integers(len(THINGS), size=(steps, size))
    sizes = np.array([len(kind) for kind in THINGS.values()])[verb]
    other = person + rng.integers(1, sizes)
    chosen = np.where(rng.random((steps, size)) < FAVOURITE, person, other) % sizes
    kinds = [[NUMBER[kind[i % len(kind)]] for i in range(sizes.max())] for kind in THINGS.values()]
    the = np.full((steps, size), NUMBER["the"])
    verbs = np.array([NUMBER[name] for name in THINGS])[verb]
    tokens = np.stack([the, person + NUMBER[PEOPLE[0]], verbs, the], axis=-1)
    return (tokens, None), last_word(np.array(kinds)[verb, chosen])


def last_word(words: Any) -> np.ndarray:
    """Targets (..., T) of which the last alone counts."""
    target = np.full((*np.shape(words), len(SENTENCE)), IGNORED)
    target[..., -1] = words
    return target


def heads_of(qkv: jax.Array) -> list[jax.Array]:
    """q, k, v, each (..., heads, T, C)."""
    return [jnp.moveaxis(part.reshape(*part.shape[:-1], HEADS, -1), -2, -3) for part in jnp.split(qkv, 3, axis=-1)]


def softmaxed(q: jax.Array, k: jax.Array) -> jax.Array:
    s = q @ jnp.swapaxes(k, -1, -2) / sqrt(q.shape[-1])
    return jax.nn.softmax(jnp.where(jnp.tri(s.shape[-1], dtype=bool), s, -jnp.inf))


def with_eyes(net: Any) -> Any:
    """`net` that writes down logits and their gradient, and of each block's attention p and dp = dy v^T, (heads, T, T)."""

    def of_attention(params: Any, noted: Any, residuals: Any, dy: Any, dparams: Any, dx: Any) -> Any:
        q, k, v = heads_of(residuals[0])
        dy = jnp.moveaxis(dy.reshape(*dy.shape[:-1], HEADS, -1), -2, -3)
        return {"p": softmaxed(q, k)[0], "dp": (dy @ jnp.swapaxes(v, -1, -2))[0]}

    def of_logits(params: Any, noted: Any, residuals: Any, dy: Any, dparams: Any, dx: Any) -> Any:
        return {"logits": noted[0, -1], "dlogits": dy[0, -1]}

    net = replace_rules(net, ATTENTION, lambda layer: recording(layer, "attention", jnp.zeros(()), of_attention))
    return replace_rules(net, "", lambda layer: recording(layer, "logits", jnp.zeros(()), of_logits, note=lambda x, y: y))


def weights_by_jax(net: Any, loss: Any, params: Any, batch: Any) -> jax.Array:
    """The same dp: attention written out in jax.numpy, a zero added to every weight, and jax.grad by those zeros."""

    def attend(nudge: Any, qkv: jax.Array) -> jax.Array:
        q, k, v = heads_of(qkv)
        y = (softmaxed(q, k) + nudge["nudge"]) @ v
        return jnp.moveaxis(y, -3, -2).reshape(*qkv.shape[:-1], -1)

    def init(key: jax.Array, x: Any) -> Any:
        return {"nudge": jnp.zeros((HEADS, x.shape[-2], x.shape[-2]))}

    written_out = replace_rules(net, ATTENTION, lambda layer: from_function(attend, init))
    spec = jax.eval_shape(written_out.init, jax.random.key(0), batch[0])
    nudged = graft(params, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec))
    _, grads = compiled(auto_value_and_grad(written_out, loss))(nudged, batch)
    return next(leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if "nudge" in str(path))


def below_diagonal(dp: Any) -> np.ndarray:
    """A weight the mask forbids is no number that could move."""
    return np.where(np.tri(len(SENTENCE), dtype=bool), dp, np.nan)


@dataclass
class Seen:
    """What one pass over SENTENCE shows: of every word p and the signal p - y; of every attention weight p and dp."""

    says: np.ndarray
    signal: np.ndarray
    logits: np.ndarray
    dlogits: np.ndarray
    by_jax: np.ndarray  # the same by jax.grad
    p: np.ndarray
    dp: np.ndarray
    stepped: Any  # the params after a step on it


def looker(net: Any, loss: Any) -> Callable[[Any, Any], Seen]:
    watched = with_eyes(net)

    @compiled
    def run(params: Any, batch: Any) -> Any:
        _, grads = value_and_grad(watched, loss)(beside_records(watched, loss, params, batch), batch)
        seen = {kind: records(grads, kind).popitem()[1].value for kind in ("logits", "attention")}
        of_word = lambda logits: -jax.nn.log_softmax(logits)[batch[1][0, -1]]
        seen["logits"]["by_jax"] = jax.grad(of_word)(seen["logits"]["logits"])
        return seen, jax.tree.map(lambda p, g: p - RATE * g, params, graft(split(grads)[0], params))

    def look(params: Any, batch: Any) -> Seen:
        seen, stepped = run(params, batch)
        words, attention = (jax.tree.map(np.asarray, seen[kind]) for kind in ("logits", "attention"))
        says = np.exp(words["logits"] - np.logaddexp.reduce(words["logits"]))
        signal = says - np.eye(len(WORDS))[batch[1][0, -1]]
        return Seen(says, signal, **words, p=attention["p"], dp=below_diagonal(attention["dp"]), stepped=stepped)

    return look


def experiment(lab: Lab) -> None:
    blocks = lab.pick(2, 1)
    # its twin gives logits, and learns as well
    net = inference(gpt(len(WORDS), len(SENTENCE), features=FEATURES, heads=HEADS, blocks=blocks))
    loss = softmax_cross_entropy(ignore_index=IGNORED)
    batches = training_batches(lab.seed, STEPS, 64)
    params = start(net, lab.seed, jax.tree.map(lambda a: a[0], batches[0]))
    params = jax.tree.map(lambda p: LARGER * p if p.ndim > 1 else p, params)
    tx = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
    params, losses, _ = train(value_and_grad(net, loss), tx, params, batches)
    print(f"trained: loss {losses[0]:.3f} -> {losses[-20:].mean():.3f}\n\n{' '.join(SENTENCE)} ___, said to be: banana\n")

    batch = (np.array([[NUMBER[word] for word in SENTENCE]]), None), last_word([NUMBER["banana"]])
    look = looker(net, loss)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(np.float64), params)
        before = look(params, batch)
        after = look(before.stepped, batch)
        by_jax = weights_by_jax(net, loss, params, batch)
    show_words(lab, before, after)
    show_weights(lab, before, after)
    judge(lab, before, after)
    judge_weights(lab, before, by_jax)
    draw(lab, before, after)


def show_words(lab: Lab, before: Seen, after: Seen) -> None:
    rows = [(word, *(float(a[i]) for a in (before.says, before.signal, after.says, after.signal)))
            for i, word in sorted(enumerate(WORDS), key=lambda pair: -before.says[pair[0]])]
    lab.table(("word", "p before", "p - y before", "p after", "p - y after"), rows, "words")


def show_weights(lab: Lab, before: Seen, after: Seen) -> None:
    rows = []
    for block, head, i, j in zip(*np.nonzero(np.isfinite(before.dp))):
        at = (block, head, i, j)
        rows.append((f"block {block} head {head}: {SENTENCE[i]} ({i}) -> {SENTENCE[j]} ({j})",
                     *(float(a[at]) for a in (before.p, before.dp, after.p, after.dp))))
    lab.table(("attention", "weight before", "gradient before", "weight after", "gradient after"), rows, "attention")


def judge(lab: Lab, before: Seen, after: Seen) -> None:
    apple, banana = NUMBER["apple"], NUMBER["banana"]
    lab.expect("before, the model says apple", WORDS[int(before.says.argmax())], before.says.argmax() == apple)
    lab.expect(f"and about as often as the doctor eats one ({FAVOURITE})", float(before.says[apple]),
               abs(before.says[apple] - FAVOURITE) < 0.15)
    negative = [WORDS[i] for i in np.flatnonzero(before.signal < 0)]
    lab.expect("p - y is negative at banana alone", negative, negative == ["banana"])
    lab.expect("p - y sums to 0", float(before.signal.sum()), abs(before.signal.sum()) < 1e-6)
    for name, gradient in (("the chain's", before.dlogits), ("jax.grad's", before.by_jax)):
        apart = float(np.abs(gradient - before.signal).max())
        lab.expect(f"p - y is {name} gradient on the logits, to 1e-6", apart, apart < 1e-6)
    lab.expect("one step: banana is likelier", (float(before.says[banana]), float(after.says[banana])),
               after.says[banana] > before.says[banana])
    lab.expect("one step: apple is less likely", (float(before.says[apple]), float(after.says[apple])),
               after.says[apple] < before.says[apple])
    lab.expect("one step: the signal at banana is smaller", (float(before.signal[banana]), float(after.signal[banana])),
               abs(after.signal[banana]) < abs(before.signal[banana]))


def judge_weights(lab: Lab, seen: Seen, by_jax: Any) -> None:
    theirs = below_diagonal(by_jax)
    apart = float(np.nanmax(np.abs(seen.dp - theirs)) / np.nanmax(np.abs(theirs)))
    lab.expect("the gradient of every attention weight is jax.grad's, to 1e-6 of the largest", apart, apart < 1e-6)
    unused = float(np.nanmax(np.abs(seen.dp[-1, :, :-1])))
    lab.expect("in the last block it is 0 where no word is judged", unused, unused == 0)


def draw(lab: Lab, before: Seen, after: Seen) -> None:
    figure = lab.figure(12, 5.6, 2, 2 * HEADS + 2, width_ratios=[1] * 2 * HEADS + [1.1, 1.1])
    if figure is None:
        return
    axes = np.array(figure.axes).reshape(2, -1)
    figure.suptitle("What one word sends back: the doctor ate the banana, where the model said apple")
    scale = float(np.nanmax(np.abs(before.dp)))
    for column, (block, head) in enumerate(np.ndindex(before.p.shape[:2])):
        weights, gradient = below_diagonal(before.p[block, head]), before.dp[block, head]
        top = axes[0, column].imshow(weights, cmap="Greys", vmin=0, vmax=1)
        low = axes[1, column].imshow(gradient, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes[0, column].set_title(f"block {block}, head {head}", fontsize=10)
        for ax, numbers, form in ((axes[0, column], weights, ".2f"), (axes[1, column], gradient, "+.2f")):
            ax.grid(False)
            ax.set_xticks(range(len(SENTENCE)), SENTENCE, rotation=45, fontsize=9)
            ax.set_yticks(range(len(SENTENCE)), SENTENCE if column == 0 else [], fontsize=9)
            for (i, j), number in np.ndenumerate(numbers):
                dark = abs(number) > 0.6 * (1 if ax is axes[0, column] else scale)
                if np.isfinite(number):
                    ax.text(j, i, format(number, form), ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axes[0, 0].set_ylabel("weight\nword that looks")
    axes[1, 0].set_ylabel("gradient of the loss by it\nword that looks")
    figure.colorbar(top, ax=list(axes[0, :2 * HEADS]), shrink=0.8, label="attention weight")
    figure.colorbar(low, ax=list(axes[1, :2 * HEADS]), shrink=0.8, label="nats per unit of weight")
    grid = axes[0, -1].get_gridspec()
    for ax in axes[:, -2:].ravel():
        ax.remove()
    bars = figure.add_subplot(grid[:, -2:])
    fruits = [word for word in sorted(THINGS["ate"], key=lambda word: before.says[NUMBER[word]])]
    at, rows = [NUMBER[word] for word in fruits], np.arange(len(fruits))
    for shift, seen, color, name in ((0.2, before, "#9ecae1", "before"), (-0.2, after, "#0072B2", "after one step")):
        drawn = bars.barh(rows + shift, seen.says[at], 0.38, color=color, label=name)
        bars.bar_label(drawn, fmt="%.3f", padding=2, fontsize=8)
    bars.set_yticks(rows, fruits)
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability of the next word")
    bars.set_title("banana up, apple down", fontsize=11)
    bars.spines[["top", "right"]].set_visible(False)
    bars.legend(frameon=False, loc="center right")


if __name__ == "__main__":
    sys.exit(main(experiment))
