"""Do the first kernels of a net that looks for tumour-like discs become discs and edges?

Rows      U6
Command   python experiments/vision.py [--seed N] [--quick] [--out DIR]
Expected  the kernels' similarity to the nearest template rises from that of random kernels (0.24) to above 0.6 on average; most
          become discs, and not in every run some of them edges; what is marked overlaps the discs by 0.75
Time      about 30 s on two cores; --quick 10 s

Images of 24 x 24: noise of standard deviation 0.3 on a random level, and in half of them a disc 1 bright with a soft edge, its
radius 2 to 7. A net of twelve 9 x 9 kernels, relu and a dense layer on each pixel learns to mark the disc, and on its four
sides the two pixels within its rim. Templates: discs of radius 2, 2.5 and 3 and edges in eight directions. Similarity: the
largest |cosine| of a kernel, its mean taken off, with a template shifted by up to two pixels. Figure: the kernels before and
after, the templates nearest to them, and the mean similarity over time.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import optax
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import binary_cross_entropy_with_logits, chain, conv2d, dense, predict, relu, value_and_grad

SIDE, KERNEL, KERNELS, NOISE, BATCH = 24, 9, 12, 0.3, 16
NET = chain(conv2d(KERNELS, KERNEL), relu(), dense(5))
SMALLER = 0.2  # weights at the start, times the usual: what is not learned stays as it was
LOSS = binary_cross_entropy_with_logits()


def disc(side: int, y: Any, x: Any, radius: Any) -> np.ndarray:
    """1 inside, 0 outside, an edge about a pixel wide; y, x, radius may be arrays."""
    rows, columns = np.mgrid[:side, :side]
    away = np.hypot(rows - np.asarray(y)[..., None, None], columns - np.asarray(x)[..., None, None])
    return 1 / (1 + np.exp((away - np.asarray(radius)[..., None, None]) / 0.3))


def images(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 24, 24, 1) and (N, 24, 24, 5): 1 inside the disc, and on each of four sides 1 within two pixels of its rim."""
    places = rng.uniform(3, SIDE - 4, size=(2, count))
    discs = disc(SIDE, *places, rng.uniform(2, 7, count)) * rng.integers(2, size=count)[:, None, None]
    noisy = discs + NOISE * rng.normal(size=discs.shape) + rng.normal(0, 0.2, count)[:, None, None]
    inside = discs > 0.5
    sides = [inside & ~np.roll(inside, shift, axis) for axis in (1, 2) for shift in (-2, 2)]
    return noisy[..., None].astype(np.float32), np.stack([inside, *sides], axis=-1).astype(np.float32)


def templates() -> dict[str, np.ndarray]:
    """By name, each shifted by -2 to 2 pixels: (shifts, 81), without their mean and of norm 1."""
    middle, shifts = KERNEL // 2, range(-2, 3)
    found = {f"disc {radius:g}": [disc(KERNEL, middle + dy, middle + dx, radius) for dy in shifts for dx in shifts]
             for radius in (2, 2.5, 3)}
    rows, columns = np.mgrid[-middle:middle + 1, -middle:middle + 1]
    for angle in range(0, 360, 45):
        along = np.cos(np.radians(angle)) * columns + np.sin(np.radians(angle)) * rows
        found[f"edge {angle}°"] = [1 / (1 + np.exp(-(along - shift) / 0.3)) for shift in shifts]
    return {name: normed(np.array(shifted)) for name, shifted in found.items()}


def normed(kernels: np.ndarray) -> np.ndarray:
    flat = kernels.reshape(len(kernels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def nearest(kernels: np.ndarray, bank: dict[str, np.ndarray]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Of each of kernels (N, 9, 9): its similarity, the template's name, and that template with the kernel's sign."""
    names, rows = zip(*((name, row) for name, shifted in bank.items() for row in shifted))
    cosines = normed(kernels) @ np.array(rows).T
    best = np.abs(cosines).argmax(axis=1)
    got = cosines[np.arange(len(kernels)), best]
    return np.abs(got), [names[i] for i in best], np.array(rows)[best] * np.sign(got)[:, None]


def as_kernels(w: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(w)[..., 0, :], -1, -3)  # (..., 9, 9, 1, kernels) -> (..., kernels, 9, 9)


def experiment(lab: Lab) -> None:
    rng, steps = np.random.default_rng(lab.seed), lab.pick(1000, 250)
    x, y = images(rng, steps * BATCH)
    batches = tuple(part.reshape(steps, BATCH, *part.shape[1:]) for part in (x, y))
    params = jax.tree.map(lambda p: SMALLER * p, start(NET, lab.seed, batches[0][0]))
    tx = optax.adamw(optax.cosine_decay_schedule(8e-3, steps), weight_decay=0.1)
    params, losses, kernels = train(value_and_grad(NET, LOSS), tx, params, batches, lambda params, grads: params[0]["w"])
    x, y = images(rng, 200)
    said, y = np.asarray(compiled(predict(NET))(params, x))[..., 0] > 0, y[..., 0]
    overlap = float(2 * np.sum(said * y) / (said.sum() + y.sum()))

    bank = templates()
    kept = as_kernels(kernels)
    moments = np.unique(np.linspace(0, steps - 1, 40).astype(int))
    over_time = np.array([nearest(kept[moment], bank)[0].mean() for moment in moments])
    before, after = kept[0], as_kernels(params[0]["w"])
    chance = nearest(rng.normal(size=(2000, KERNEL, KERNEL)), bank)[0]
    start_similarity, (similarity, names, shapes) = nearest(before, bank)[0], nearest(after, bank)
    rows = list(zip(range(KERNELS), start_similarity, similarity, names))
    lab.table(("kernel", "before", "after", "looks like"), rows, "kernels")
    lab.keep(chance=float(chance.mean()), over_time=over_time, losses=losses[::20])
    lab.expect("new images: overlap of what is marked with the discs (Dice's)", overlap, overlap > lab.pick(0.75, 0.5))
    lab.expect("mean similarity at the start is chance's, to 0.05", (start_similarity.mean(), chance.mean()),
               abs(start_similarity.mean() - chance.mean()) < 0.05)
    high = float(np.quantile(chance, 0.999))
    lab.expect("mean similarity at the end", float(similarity.mean()), similarity.mean() > lab.pick(0.6, 0.45))
    count = int((similarity > high).sum())
    lab.expect(f"kernels above what 999 of 1000 random ones reach ({high:.2f})", count, count >= lab.pick(10, 4))
    sorts = sorted({name.split()[0] for name, value in zip(names, similarity) if value > high})
    lab.expect("there are discs among those, and in some runs edges", sorts, "disc" in sorts)
    draw(lab, before, after, shapes, names, similarity, moments, over_time, chance)


def draw(lab: Lab, before: np.ndarray, after: np.ndarray, shapes: np.ndarray, names: list[str], similarity: np.ndarray,
         moments: np.ndarray, over_time: np.ndarray, chance: np.ndarray) -> None:
    figure = lab.figure(12, 5, 3, KERNELS + 4)
    if figure is None:
        return
    axes = np.array(figure.axes).reshape(3, -1)
    sorts = sorted({name.split()[0] for name in names})
    figure.suptitle(f"A net that looks for discs makes its first kernels {' and '.join(f'{sort}s' for sort in sorts)}")
    for row, (name, kernels) in enumerate((("before", before), ("after", after), ("nearest template", shapes))):
        for i, kernel in enumerate(kernels):
            ax, image = axes[row, i], kernel.reshape(KERNEL, KERNEL)
            scale = np.abs(image).max()
            ax.imshow(image, cmap="RdBu_r", vmin=-scale, vmax=scale)
            ax.grid(False)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[row, 0].set_ylabel(name)
    for i, (name, value) in enumerate(zip(names, similarity)):
        axes[2, i].set_xlabel(f"{name}\n{value:.2f}", fontsize=8)
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, KERNELS:].ravel():
        ax.remove()
    ax = figure.add_subplot(grid[:, KERNELS:])
    ax.plot(moments, over_time, "o-", color="#0072B2", markersize=3)
    ax.axhspan(*np.quantile(chance, (0.05, 0.95)), color="#bbbbbb", alpha=0.5)
    ax.text(moments[-1], chance.mean(), "random kernels (9 of 10)", ha="right", va="center", fontsize=8)
    ax.set_ylim(0, 1)
    ax.set_xlabel("step")
    ax.set_ylabel("mean similarity to the nearest template")
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(experiment))
