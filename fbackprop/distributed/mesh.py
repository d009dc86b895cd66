"""parallel: one step on several devices of one host, each with its share of the batch.

Nothing is averaged by hand. The step stays the program it is, on the whole batch; the batch's leading axis is declared to lie
split over the devices, and XLA divides the work and puts the sums in. So the mean of a loss, the statistics of batch norm, a
dropout mask and a clipped norm are those of the whole batch by construction, whatever the network.
"""

from __future__ import annotations

from functools import wraps
from numbers import Integral
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..checks import expect, show
from ..errors import Problem
from ..gradients import ValueAndGrad
from ..params import Tree

AXIS = "batch"
CPUS = "jax_num_cpu_devices"


def ask_for(n: int) -> None:
    """Makes sure of n devices: before jax's first computation a CPU may be divided into any number of them.

    Raises Problem when there are fewer.
    """
    _expect_count(n)
    try:
        if n > getattr(jax.config, CPUS):
            jax.config.update(CPUS, n)
    except RuntimeError:  # jax has begun: there are as many as there are
        pass
    _expect_there(n)


def devices(n: int | None = None) -> Mesh:
    """The first n devices of this host, all unless given. Raises Problem when there are fewer."""
    n = jax.local_device_count() if n is None else n
    _expect_count(n)
    _expect_there(n)
    return jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:n])


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """`tree` (params, opt_state) whole on every device."""
    return jax.device_put(tree, whole_on(mesh))


def shard(batch: Tree, mesh: Mesh) -> Tree:
    """`batch` with the leading axis of every leaf split over the devices: each is sent its share alone.

    A batch that the devices do not divide is sent whole to each, for jax has no array in unequal parts; `data_parallel` divides
    it inside the step. Raises ValueError for a leaf without axes.
    """
    leaves = jax.tree.leaves(batch)
    for leaf in leaves:
        expect(leaf.ndim > 0, "batch", "leaves whose first axis counts examples", show(batch), "A scalar cannot be shared out")
    even = all(len(leaf) % mesh.size == 0 for leaf in leaves)
    return jax.device_put(batch, split_over(mesh) if even else whole_on(mesh))


def data_parallel(value_and_grad: ValueAndGrad, mesh: Mesh) -> ValueAndGrad:
    """`value_and_grad` with its batch split over `mesh` and its gradients whole on every device; for use under jit.

    Any number of examples: XLA fills the last share up and leaves what it filled in out of every sum.
    """

    @wraps(value_and_grad)
    def run(params: Tree, batch: Tree, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        value, grads = value_and_grad(params, jax.lax.with_sharding_constraint(batch, split_over(mesh)), seed)
        return jax.lax.with_sharding_constraint((value, grads), whole_on(mesh))

    return run


def whole_on(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what lies whole on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch whose leading axis is split over `mesh`."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def _expect_count(n: Any) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise Problem(f"devices: expected a whole number of at least 1, got {n!r}")


def _expect_there(n: int) -> None:
    have = jax.local_device_count()
    if n > have:
        kind = jax.local_devices()[0].platform
        hint = "; on a CPU, ask_for() has to run before jax's first computation" * (kind == "cpu")
        raise Problem(f"devices: expected {n} of them, got {have} ({kind}). Ask for at most {have}{hint}")
