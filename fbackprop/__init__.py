"""fbackprop: backpropagation you can read, check and change.

Public names are loaded on first use (PEP 562), so that `fbackprop --help` never imports jax.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .moved import Moved

__version__ = "0.1.0"

_HOME = {
    "layer": "Layer",
    "params": "State Next Static split merge paths graft",
    "facts": "CellRule Scan Tuning",
    "compose": "chain skip objective",
    "transform": "map_layers map_layers_with_path replace_rules inference",
    "gradients": "predict vjp value_and_grad auto_value_and_grad as_custom_vjp",
    "precision": "Precision PRECISIONS with_precision",
    "tuning": "with_settings",
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
    "losses": "mse half_squared_error huber binary_cross_entropy_with_logits softmax_cross_entropy linear_cross_entropy",
    "losses.weight": "batch_size token_weight",
    "distributed.mesh": "ask_for devices replicate shard data_parallel",
    "observe.taps": "tap",
    "observe.probes": "watch probe",
    "observe.reading": "readings",
    "observe.record": "activation_gradients",
    "observe.origin": "first_bad",
    "memory.schedule": "scheduled with_schedules every root binomial recomputed",
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
    "train.step.scaling": "LossScale adjust unscale all_finite",
    "train.monitor.monitor": "Monitor",
    "train.monitor.alerts": "Alert Thresholds",
    "comparison.costs": "compare",
    "jaxprs.flops": "count_flops",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def lazy_names(package: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package of this library: each of its public names is loaded on first use."""
    inside = package.removeprefix(__name__)[1:]

    def load(name: str) -> Any:
        module = _MODULE_OF.get(name, "")
        if not module or not f"{module}.".startswith(f"{inside}." if inside else ""):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{module}"), name)

    return load


__getattr__ = lazy_names(__name__)
sys.meta_path.append(Moved())


def __dir__() -> list[str]:
    return [*globals(), *__all__]
