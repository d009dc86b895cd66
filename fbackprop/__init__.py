"""fbackprop: backpropagation you can read, check and change.

Public names are loaded on first use (PEP 562), so that `fbackprop --help` never imports jax.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "layer": "Layer State Next Static split merge paths graft",
    "facts": "CellRule Scan Tuning",
    "compose": "chain skip objective map_layers map_layers_with_path replace_rules inference predict"
               " vjp value_and_grad auto_value_and_grad as_custom_vjp",
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
    "layers.cells": "rnn_cell lstm_cell gru_cell",
    "layers.recurrent": "recurrent",
    "layers.rnn": "rnn lstm gru",
    "losses": "mse half_squared_error huber binary_cross_entropy_with_logits softmax_cross_entropy linear_cross_entropy",
    "losses.weight": "batch_size token_weight",
    "rewrite.precision": "Precision PRECISIONS with_precision",
    "rewrite.schedule": "scheduled with_schedules every root binomial recomputed",
    "rewrite.plan": "plan planned Plan",
    "adjustable": "with_settings",
    "rewrite.tap": "tap",
    "rewrite.watch": "watch probe",
    "rewrite.reading": "readings",
    "rewrite.record": "activation_gradients",
    "rewrite.first_bad": "first_bad",
    "verify.check": "check_layer check_network check_loss check_gradient assert_rule",
    "explain.compare": "compare",
    "flops": "count_flops",
    "models.mlp": "mlp",
    "models.convnet": "convnet",
    "models.resnet": "resnet",
    "models.lstm": "lstm_classifier",
    "models.gpt": "gpt",
    "models.recommender": "recommender",
    "train.step": "make_step update",
    "train.accumulate": "accumulate microbatches",
    "train.parallel": "ask_for devices replicate shard data_parallel",
    "train.scaling": "LossScale adjust unscale all_finite",
    "train.monitor": "Monitor",
    "train.alerts": "Alert Thresholds",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fbackprop' has no attribute {name!r}")
    return getattr(import_module(f"fbackprop.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
