"""The one table of public names: the module that each name is written in.

experiments/make_stubs.py writes the `.pyi` files from this table. Imports nothing of this package,
and no jax.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

# Module -> its names at the top level. The package of the module has them too: fbackprop.dense is
# fbackprop.layers.dense.
TOP = {
    "layer": "Layer",
    "params": "State Next Static split merge paths graft",
    "facts": "CellRule Scan Tuning",
    "compose": "chain skip objective",
    "transform": "map_layers map_layers_with_path replace_rules inference",
    "gradients": "predict vjp value_and_grad auto_value_and_grad as_custom_vjp",
    "precision": "Precision PRECISIONS with_precision",
    "layers.dense": "dense",
    "layers.elementwise": "identity relu leaky_relu sigmoid tanh gelu silu softplus elu",
    "layers.softmax": "softmax log_softmax",
    "layers.attention": "attention",
    "layers.shape": "flatten reshape transpose take_last scale",
    "layers.norm": "layer_norm rms_norm group_norm batch_norm",
    "layers.embedding": "embedding learned_positions rotary",
    "layers.dropout": "dropout",
    "layers.glu": "swiglu geglu",
    "layers.conv": "conv1d conv2d",
    "layers.pool": "max_pool avg_pool global_avg_pool global_max_pool",
    "layers.function": "from_function",
    "layers.branch": "parallel fan_out add concat dot",
    "layers.repeat": "repeat",
    "layers.rewire": "checkpoint frozen tied",
    "layers.recurrent.cells": "rnn_cell lstm_cell gru_cell",
    "layers.recurrent.recurrent": "recurrent",
    "layers.recurrent.rnn": "rnn lstm gru",
    "losses": "mse half_squared_error huber binary_cross_entropy_with_logits "
              "softmax_cross_entropy linear_cross_entropy",
    "losses.weight": "batch_size token_weight",
    "observe.taps": "tap",
    "observe.probes": "watch probe",
    "observe.reading": "readings",
    "observe.record": "activation_gradients",
    "observe.origin": "first_bad",
    "memory.planner": "plan Plan",
    "verify.check": "check_layer check_network check_loss check_gradient assert_rule",
    "models.mlp": "mlp",
    "models.convnet": "convnet",
    "models.resnet": "resnet",
    "models.lstm": "lstm_classifier",
    "models.gpt": "gpt",
    "models.recommender": "recommender",
    "train.step.step": "make_step update",
    "train.step.transformation": "init_opt_state",
    "train.step.accumulation": "accumulate microbatches",
    "comparison.costs": "compare",
    "jaxprs.flops": "count_flops",
}
# Package -> module -> names that this package has beside those of TOP.
FAMILIES = {
    "distributed": {"distributed.mesh": "ask_for devices replicate shard data_parallel"},
    "memory": {
        "memory.schedule": "scheduled with_schedules every root binomial recomputed",
        "tuning": "with_settings",
        "facts": "Tuning",
    },
    "train": {
        "train.step.scaling": "LossScale adjust unscale all_finite",
        "train.task.task": "Task",
        "train.monitor.monitor": "Monitor",
        "train.monitor.alerts": "Alert Thresholds",
    },
}
# What `import fbackprop` makes reachable as fbackprop.NAME without an import of its own.
PACKAGES = ("data", "distributed", "layers", "losses", "memory",
            "models", "observe", "precision", "train", "verify")


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: module for module, names in table.items() for name in names.split()}


_TOP = _by_name(TOP)
# Name that is not at the top level -> the package that has it.
PACKAGE_OF = {name: package for package, table in FAMILIES.items() for name in _by_name(table)
              if name not in _TOP}


def names_of(package: str) -> dict[str, str]:
    """Returns the module of each public name of a package; "" stands for the top level."""
    inside = f"{package}." if package else ""
    of_top = {name: module for name, module in _TOP.items() if f"{module}.".startswith(inside)}
    return of_top | _by_name(FAMILIES.get(package, {}))


Lazy = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def lazy_names(package: str) -> Lazy:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package that loads names on first use."""
    library, _, inside = package.partition(".")
    names = names_of(inside)

    def load(name: str) -> Any:
        if name in names:
            return getattr(import_module(f"{library}.{names[name]}"), name)
        if not inside and name in PACKAGES:
            return import_module(f"{library}.{name}")
        moved = not inside and name in PACKAGE_OF
        place = f": it is {library}.{PACKAGE_OF[name]}.{name} now" if moved else ""
        near = [] if moved else get_close_matches(name, names, 1, cutoff=0.8)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{place}{hint}")

    def directory() -> list[str]:
        return [*vars(sys.modules[package]), *names, *(() if inside else PACKAGES)]

    return load, directory, sorted(names)
