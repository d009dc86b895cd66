# Generated from fbackprop/names.py by experiments/make_stubs.py. Do not edit.

from . import data as data
from . import distributed as distributed
from . import layers as layers
from . import losses as losses
from . import memory as memory
from . import models as models
from . import observe as observe
from . import precision as precision
from . import train as train
from . import verify as verify
from .comparison.costs import compare as compare
from .compose import chain as chain
from .compose import objective as objective
from .compose import skip as skip
from .facts import CellRule as CellRule
from .facts import Scan as Scan
from .facts import Tuning as Tuning
from .gradients import as_custom_vjp as as_custom_vjp
from .gradients import auto_value_and_grad as auto_value_and_grad
from .gradients import predict as predict
from .gradients import value_and_grad as value_and_grad
from .gradients import vjp as vjp
from .jaxprs.flops import count_flops as count_flops
from .layer import Layer as Layer
from .layers.attention import attention as attention
from .layers.branch import add as add
from .layers.branch import concat as concat
from .layers.branch import dot as dot
from .layers.branch import fan_out as fan_out
from .layers.branch import parallel as parallel
from .layers.conv import conv1d as conv1d
from .layers.conv import conv2d as conv2d
from .layers.dense import dense as dense
from .layers.dropout import dropout as dropout
from .layers.elementwise import elu as elu
from .layers.elementwise import gelu as gelu
from .layers.elementwise import identity as identity
from .layers.elementwise import leaky_relu as leaky_relu
from .layers.elementwise import relu as relu
from .layers.elementwise import sigmoid as sigmoid
from .layers.elementwise import silu as silu
from .layers.elementwise import softplus as softplus
from .layers.elementwise import tanh as tanh
from .layers.embedding import embedding as embedding
from .layers.embedding import learned_positions as learned_positions
from .layers.embedding import rotary as rotary
from .layers.function import from_function as from_function
from .layers.glu import geglu as geglu
from .layers.glu import swiglu as swiglu
from .layers.norm import batch_norm as batch_norm
from .layers.norm import group_norm as group_norm
from .layers.norm import layer_norm as layer_norm
from .layers.norm import rms_norm as rms_norm
from .layers.pool import avg_pool as avg_pool
from .layers.pool import global_avg_pool as global_avg_pool
from .layers.pool import global_max_pool as global_max_pool
from .layers.pool import max_pool as max_pool
from .layers.recurrent.cells import gru_cell as gru_cell
from .layers.recurrent.cells import lstm_cell as lstm_cell
from .layers.recurrent.cells import rnn_cell as rnn_cell
from .layers.recurrent.recurrent import recurrent as recurrent
from .layers.recurrent.rnn import gru as gru
from .layers.recurrent.rnn import lstm as lstm
from .layers.recurrent.rnn import rnn as rnn
from .layers.repeat import repeat as repeat
from .layers.rewire import checkpoint as checkpoint
from .layers.rewire import frozen as frozen
from .layers.rewire import tied as tied
from .layers.shape import flatten as flatten
from .layers.shape import reshape as reshape
from .layers.shape import scale as scale
from .layers.shape import take_last as take_last
from .layers.shape import transpose as transpose
from .layers.softmax import log_softmax as log_softmax
from .layers.softmax import softmax as softmax
from .losses import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from .losses import half_squared_error as half_squared_error
from .losses import huber as huber
from .losses import linear_cross_entropy as linear_cross_entropy
from .losses import mse as mse
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .losses.weight import batch_size as batch_size
from .losses.weight import token_weight as token_weight
from .memory.planner import Plan as Plan
from .memory.planner import plan as plan
from .models.convnet import convnet as convnet
from .models.gpt import gpt as gpt
from .models.lstm import lstm_classifier as lstm_classifier
from .models.mlp import mlp as mlp
from .models.recommender import recommender as recommender
from .models.resnet import resnet as resnet
from .observe.origin import first_bad as first_bad
from .observe.probes import probe as probe
from .observe.probes import watch as watch
from .observe.reading import readings as readings
from .observe.record import activation_gradients as activation_gradients
from .observe.taps import tap as tap
from .params import Next as Next
from .params import State as State
from .params import Static as Static
from .params import graft as graft
from .params import merge as merge
from .params import paths as paths
from .params import split as split
from .precision import PRECISIONS as PRECISIONS
from .precision import Precision as Precision
from .precision import with_precision as with_precision
from .train.step.accumulation import accumulate as accumulate
from .train.step.accumulation import microbatches as microbatches
from .train.step.step import make_step as make_step
from .train.step.step import update as update
from .train.step.transformation import init_opt_state as init_opt_state
from .transform import inference as inference
from .transform import map_layers as map_layers
from .transform import map_layers_with_path as map_layers_with_path
from .transform import replace_rules as replace_rules
from .verify.check import assert_rule as assert_rule
from .verify.check import check_gradient as check_gradient
from .verify.check import check_layer as check_layer
from .verify.check import check_loss as check_loss
from .verify.check import check_network as check_network

__version__: str

__all__ = [
    "CellRule",
    "Layer",
    "Next",
    "PRECISIONS",
    "Plan",
    "Precision",
    "Scan",
    "State",
    "Static",
    "Tuning",
    "accumulate",
    "activation_gradients",
    "add",
    "as_custom_vjp",
    "assert_rule",
    "attention",
    "auto_value_and_grad",
    "avg_pool",
    "batch_norm",
    "batch_size",
    "binary_cross_entropy_with_logits",
    "chain",
    "check_gradient",
    "check_layer",
    "check_loss",
    "check_network",
    "checkpoint",
    "compare",
    "concat",
    "conv1d",
    "conv2d",
    "convnet",
    "count_flops",
    "dense",
    "dot",
    "dropout",
    "elu",
    "embedding",
    "fan_out",
    "first_bad",
    "flatten",
    "from_function",
    "frozen",
    "geglu",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "gpt",
    "graft",
    "group_norm",
    "gru",
    "gru_cell",
    "half_squared_error",
    "huber",
    "identity",
    "inference",
    "init_opt_state",
    "layer_norm",
    "leaky_relu",
    "learned_positions",
    "linear_cross_entropy",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "lstm_classifier",
    "make_step",
    "map_layers",
    "map_layers_with_path",
    "max_pool",
    "merge",
    "microbatches",
    "mlp",
    "mse",
    "objective",
    "parallel",
    "paths",
    "plan",
    "predict",
    "probe",
    "readings",
    "recommender",
    "recurrent",
    "relu",
    "repeat",
    "replace_rules",
    "reshape",
    "resnet",
    "rms_norm",
    "rnn",
    "rnn_cell",
    "rotary",
    "scale",
    "sigmoid",
    "silu",
    "skip",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "split",
    "swiglu",
    "take_last",
    "tanh",
    "tap",
    "tied",
    "token_weight",
    "transpose",
    "update",
    "value_and_grad",
    "vjp",
    "watch",
    "with_precision",
]
