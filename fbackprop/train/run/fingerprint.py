"""The fingerprint of a run: what its numbers depend on beside its configuration. A run that goes on compares it."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ... import __version__
from ...jaxprs.walk import constants
from ..task.task import Task

FLAGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision",
         "jax_disable_jit", "jax_numpy_dtype_promotion")
SAMPLED = 64  # the first batches, and later ones at powers of two, are kept as digests


def fingerprint(task: Task, step: Callable[..., Any], training: Any, batch: Any) -> dict[str, Any]:
    """Returns the SHA-256 of the traced step and of the data, and the flags of JAX that change bits, ready for JSON."""
    flags = {name.upper(): getattr(jax.config, name) for name in FLAGS}
    return {"code": _code_digest(step, training, batch), "data": digest([task.held_out, _arrays_of(task.batches)]),
            "flags": {**flags, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}, "fbackprop": __version__}


def digest(tree: Any) -> str:
    """Returns the SHA-256 of every array of a pytree, its shape and dtype included."""
    sha = hashlib.sha256()
    for array in map(np.asarray, jax.tree.leaves(tree)):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def is_sampled(number: int) -> bool:
    """Returns whether the batch of this number is kept as a digest."""
    return number < SAMPLED or number & (number - 1) == 0


def differences(had: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns (what makes it another run, what may change its bits) between two headers of checkpoints, in words."""
    then, here = had["fingerprint"], now["fingerprint"]
    versions = [{**header["versions"], "fbackprop": header["fingerprint"]["fbackprop"], "backend": header["backend"]}
                for header in (had, now)]
    noted = [f"{name} was {before.get(name)}, now {after.get(name)}"
             for before, after in ((then["flags"], here["flags"]), versions)
             for name in {**before, **after} if before.get(name) != after.get(name)]
    changed = [name for name in ("code", "data") if then[name] != here[name]]
    if "code" in changed and noted:  # another version or flag traces the same code otherwise
        changed.remove("code")
        noted.append("the traced step is another one, so its code cannot be compared")
    return changed, noted


def _code_digest(step: Callable[..., Any], training: Any, batch: Any) -> str:
    traced = jax.make_jaxpr(step)(training, batch)
    text = re.sub(r"0x[0-9a-f]+", "", str(traced))  # the addresses of functions
    return hashlib.sha256((text + digest(list(constants(traced)))).encode()).hexdigest()


def _arrays_of(batches: Callable[..., Any]) -> list[Any]:
    """Returns the arrays that a function of batches holds: its fields, its closure and its globals."""
    source = inspect.unwrap(batches)
    if inspect.isfunction(source):
        variables = inspect.getclosurevars(source)
        held = {**variables.globals, **variables.nonlocals}
    else:
        held = getattr(source, "__dict__", {})
    leaves = jax.tree.leaves([held[name] for name in sorted(held)])
    return [leaf for leaf in leaves if isinstance(leaf, (np.ndarray, jax.Array)) and leaf.dtype != object]
