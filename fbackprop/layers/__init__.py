"""Layers with their hand-written rules. Imports gradients, precision, tuning and below."""

from .attention import attention
from .branch import add, concat, dot, fan_out, parallel
from .conv import conv1d, conv2d
from .dense import dense
from .dropout import dropout
from .elementwise import elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softplus, tanh
from .embedding import embedding, learned_positions, rotary
from .function import from_function
from .glu import geglu, swiglu
from .norm import batch_norm, group_norm, layer_norm, rms_norm
from .pool import avg_pool, global_avg_pool, global_max_pool, max_pool
from .recurrent.cells import gru_cell, lstm_cell, rnn_cell
from .recurrent.recurrent import recurrent
from .recurrent.rnn import gru, lstm, rnn
from .repeat import repeat
from .rewire import checkpoint, frozen, tied
from .shape import flatten, reshape, scale, take_last, transpose
from .softmax import log_softmax, softmax

__all__ = [
    "add",
    "attention",
    "avg_pool",
    "batch_norm",
    "checkpoint",
    "concat",
    "conv1d",
    "conv2d",
    "dense",
    "dot",
    "dropout",
    "elu",
    "embedding",
    "fan_out",
    "flatten",
    "from_function",
    "frozen",
    "geglu",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "gru",
    "gru_cell",
    "identity",
    "layer_norm",
    "leaky_relu",
    "learned_positions",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "max_pool",
    "parallel",
    "recurrent",
    "relu",
    "repeat",
    "reshape",
    "rms_norm",
    "rnn",
    "rnn_cell",
    "rotary",
    "scale",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "swiglu",
    "take_last",
    "tanh",
    "tied",
    "transpose",
]
