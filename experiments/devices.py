"""Is the gradient on N devices the gradient on one, and are bigger batches faster per example?

Rows      K5
Command   python experiments/devices.py [--seed N] [--quick] [--out DIR]
Expected  on 2, 4 and 8 devices, ragged batches too, every gradient equals that of one device: to 1e-6 in float32, to 1e-12 in
          float64; one batch of 256 takes at most half the time per example that batches of 1 take
Time      about 60 s on two cores; --quick 8 s

A CPU is divided into eight devices before jax begins, in a process of its own; they share its cores, so their time says nothing
and is not told. Nets: dense with batch norm (its statistics stay those of the whole batch), and an LSTM, on real digits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from lab import Lab, main

from fbackprop import (
    batch_norm,
    chain,
    data,
    dense,
    flatten,
    lstm_classifier,
    mlp,
    relu,
    softmax_cross_entropy,
    split,
    value_and_grad,
)
from fbackprop.comparison.costs import take_turns
from fbackprop.distributed import ask_for, data_parallel, devices, replicate, shard

COUNTS, BATCHES, SIZES = (2, 4, 8), (64, 61), (1, 4, 16, 64, 256)
LOSS = softmax_cross_entropy()


def nets() -> dict:
    return {"dense with batch norm": chain(flatten(), dense(32), batch_norm(), relu(), dense(10)),
            "lstm": lstm_classifier(16)}


def on_devices(seed: int, quick: bool) -> list[dict]:
    """Of each net, dtype, batch and number of devices, how far the gradients are from one device's. In the divided process."""
    ask_for(max(COUNTS))
    images, labels = data.digits().train
    found = []
    for dtype in ("float32", "float64")[: 1 if quick else 2]:
        with jax.enable_x64(dtype == "float64"):
            for name, net in list(nets().items())[: 1 if quick else 2]:
                x = images.astype(dtype)
                params = net.init(jax.random.key(seed), x[:1])  # in the dtype of x
                for size in BATCHES[1:] if quick else BATCHES:
                    rows = np.random.default_rng(seed).permutation(len(x))[:size]
                    batch, by_hand = (x[rows], labels[rows]), value_and_grad(net, LOSS)
                    alone = gradients(jax.jit(by_hand)(params, batch))
                    for count in COUNTS[2:] if quick else COUNTS:
                        mesh = devices(count)
                        together = jax.jit(data_parallel(by_hand, mesh))(replicate(params, mesh), shard(batch, mesh))
                        found.append({"net": name, "dtype": dtype, "batch": size, "devices": count,
                                      "apart": apart(gradients(together), alone)})
    return found


def gradients(result: tuple) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(split(result[1])[0])]


def apart(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest number of all gradients."""
    return max(float(np.max(np.abs(a - b))) for a, b in zip(got, wanted)) / max(float(np.max(np.abs(b))) for b in wanted)


def per_example(seed: int, rounds: int, sizes: tuple[int, ...]) -> dict[int, float]:
    """Milliseconds an example of loss and gradients, by batch size, on one device."""
    images, labels = data.digits().train
    net = mlp((512,))
    params, step = net.init(jax.random.key(seed), images[:1]), jax.jit(value_and_grad(net, LOSS))
    batches = {size: (jnp.asarray(images[:size]), jnp.asarray(labels[:size])) for size in sizes}
    spent = take_turns({str(size): lambda b=batch: step(params, b) for size, batch in batches.items()}, rounds)
    return {size: float(np.median(spent[str(size)])) / size for size in sizes}


def experiment(lab: Lab) -> None:
    child = [sys.executable, str(Path(__file__)), "--child", str(lab.seed), str(int(lab.quick))]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    lab.table(tuple(found[0]), [tuple(row.values()) for row in found], "devices")
    for dtype, bound in (("float32", 1e-6), ("float64", 1e-12)):
        off = [row["apart"] for row in found if row["dtype"] == dtype]
        if off:
            lab.expect(f"{dtype}: several devices apart from one, at most {bound:g}", max(off), max(off) <= bound)
    times = per_example(lab.seed, lab.pick(100, 3), lab.pick(SIZES, (1, 256)))
    lab.table(("batch", "ms an example"), list(times.items()), "per_example")
    ratio = times[256] / times[1]
    lab.expect("time an example in a batch of 256 over that of 1, at most .5", ratio, ratio <= 0.5, timed=True)
    if lab.figure() is not None:
        (ax,) = lab.drawn.axes
        ax.loglog(list(times), [1e3 / ms for ms in times.values()], "o-")
        ax.set(xlabel="examples in a batch", ylabel="examples a second", title="784-512-10: bigger batches are faster")
        ax.set_xticks(list(times), map(str, times))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(on_devices(int(sys.argv[2]), sys.argv[3] == "1")))
    else:
        sys.exit(main(experiment))
