"""What does one thumbs-down for one film do to the same person's scores of all other films?

Rows      U3
Command   python experiments/thumbs_down.py [--seed N] [--quick] [--out DIR]
Expected  that film's score falls; films with vectors like its fall too, by v . w of the two vectors (correlation above 0.999),
          those with vectors at right angles stay where they are, those opposed rise
Time      about 5 s on two cores; --quick 4 s

A recommender learns vectors and biases of 600 people and 400 films from 86,400 generated ratings whose noise is 0.5 stars. A
person then gives one star to the film that the model thinks they would like best: one gradient step on this rating alone, on
the vectors alone (the biases are frozen). The person's vector moves along the film's vector v, so the score of a film with
vector w moves by v . w times one number. With the person's bias moving as well, every score falls by one amount more. Figure:
the change of every film's score against the cosine of its vector with the disliked film's.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import optax
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import frozen, graft, init_opt_state, mse, predict, recommender, replace_rules, update, value_and_grad
from fbackprop.data import RatingSet, ratings, shuffled_batches

RANK, BATCH, RATE, STARS = 4, 512, 0.02, 1.0
BIASES = "0/1"  # their layer's path
ALIKE, RIGHT_ANGLE = 0.5, 0.05  # cosines


def learned(lab: Lab, net: Any, data: RatingSet) -> Any:
    pairs, stars = data.train
    batches = shuffled_batches(pairs, stars, BATCH)
    steps = lab.pick(6, 3) * batches.steps_per_epoch
    x, y = (np.stack(part) for part in zip(*(batches(lab.seed, step) for step in range(steps))))
    x = (x[..., 0], x[..., 1])
    params = start(net, lab.seed, jax.tree.map(lambda a: a[0], x))
    tx = optax.adam(optax.cosine_decay_schedule(2e-2, steps))
    return train(value_and_grad(net, mse()), tx, params, (x, y))[0]


def changed(net: Any, params: Any, user: int, film: int) -> np.ndarray:
    """By how much the person's score of every film moves with one gradient step on one rating."""
    tx, batch = optax.sgd(RATE), ((np.array([user]), np.array([film])), np.array([STARS], np.float32))

    @compiled
    def run(params: Any) -> jax.Array:
        _, grads = value_and_grad(net, mse())(params, batch)
        moved, _ = update(tx, params, grads, init_opt_state(tx, params))
        return scores(net, moved, user) - scores(net, params, user)

    return np.asarray(run(params))


def scores(net: Any, params: Any, user: int) -> jax.Array:
    """The person's, of every film."""
    films = np.arange(len(params[0][0][0][1]["w"]))
    return predict(net)(params, (np.full_like(films, user), films))


def experiment(lab: Lab) -> None:
    data = ratings()
    net = recommender(data.users, data.items, rank=RANK, mean=data.mean)
    params = learned(lab, net, data)
    pairs, stars = data.test
    error = float(np.sqrt(np.mean((predict(net)(params, tuple(pairs.T)) - stars) ** 2)))
    lab.expect("ratings kept apart are foretold nearly as well as their noise of 0.5 stars allows", error, error < 0.56)

    user = int(np.random.default_rng(lab.seed).integers(data.users))
    before = np.asarray(scores(net, params, user))
    film = int(before.argmax())
    frozen_biases = replace_rules(net, BIASES, frozen)
    change = changed(frozen_biases, graft(params, start(frozen_biases, 0, tuple(pairs.T))), user, film)
    with_biases = changed(net, params, user, film)

    vectors = np.asarray(params[0][0][0][1]["w"])
    product = vectors @ vectors[film]
    cosine = product / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[film])
    show(lab, film, before, change, cosine, user)
    judge(lab, film, change, with_biases, product, cosine)
    draw(lab, film, change, cosine, user)


def show(lab: Lab, film: int, before: np.ndarray, change: np.ndarray, cosine: np.ndarray, user: int) -> None:
    order = np.argsort(-cosine)
    middle = np.argsort(np.abs(cosine))[:4]
    rows = [(f"film {i}" + " (the disliked one)" * bool(i == film), float(cosine[i]), float(before[i]), float(change[i]))
            for i in (*order[:5], *middle, *order[-4:])]
    print(f"person {user} gives film {film} one star; foretold were {before[film]:.2f}\n")
    lab.table(("film", "cosine with it", "score before", "change"), rows, "films")


def judge(lab: Lab, film: int, change: np.ndarray, with_biases: np.ndarray, product: np.ndarray, cosine: np.ndarray) -> None:
    others = np.arange(len(change)) != film
    alike, opposed = others & (cosine > ALIKE), others & (cosine < -ALIKE)
    apart = others & (np.abs(cosine) < RIGHT_ANGLE)
    lab.keep(alike=int(alike.sum()), opposed=int(opposed.sum()), at_right_angles=int(apart.sum()))
    lab.expect("the disliked film's score falls", float(change[film]), change[film] < 0)
    lab.expect(f"all films like it (cosine above {ALIKE}) fall: the one that falls least", float(change[alike].max()),
               alike.sum() >= 10 and change[alike].max() < 0)
    lab.expect(f"all films opposed to it (cosine below -{ALIKE}) rise: the one that rises least", float(change[opposed].min()),
               opposed.sum() >= 10 and change[opposed].min() > 0)
    share = np.abs(change[apart]).max() / -change[film]
    lab.expect(f"films at right angles (cosine within {RIGHT_ANGLE}) stay: the largest change, as a share of its fall",
               float(share), apart.sum() >= 3 and share < 0.1)
    by_product = np.corrcoef(-change[others], product[others])[0, 1]
    lab.expect("fall and product of the vectors: correlation", float(by_product), by_product > 0.999)
    by_cosine = np.corrcoef(-change[others], cosine[others])[0, 1]
    lab.expect("fall and cosine of the vectors: correlation", float(by_cosine), by_cosine > 0.9)
    more = (with_biases - change)[others]
    lab.expect("with biases moving, every other score falls by one amount more: least and most", (more.min(), more.max()),
               more.max() < 0 and np.ptp(more) < 1e-4 * -more.mean())


def draw(lab: Lab, film: int, change: np.ndarray, cosine: np.ndarray, user: int) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    others = np.arange(len(change)) != film
    ax.axhline(0, color="black", linewidth=0.8)
    ax.scatter(cosine[others], change[others], s=12, label="other films")
    ax.scatter(cosine[film], change[film], s=60, color="#D55E00")
    ax.annotate("the disliked film", (cosine[film], change[film]), xytext=(-10, 0), textcoords="offset points", ha="right",
                va="center", color="#D55E00")
    ax.annotate("unlike: scores rise", (0.02, 0.42), xycoords="axes fraction", color="#444444")
    ax.annotate("alike: scores fall", (0.98, 0.68), xycoords="axes fraction", color="#444444", ha="right")
    ax.set_xlabel("cosine of a film's vector with the disliked film's")
    ax.set_ylabel("change of the score (stars)")
    ax.set_title(f"One thumbs-down of person {user} lowers the films like it and raises those unlike it")


if __name__ == "__main__":
    sys.exit(main(experiment))
