"""Calls of makers: options go by name, a call that does not fit is told what to write."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import compose, layers, losses, models
from fbackprop.layer import Layer
from fbackprop.layers.elementwise import TABLE, Activation

MAKERS = {name: getattr(home, name) for home in (layers, losses, models) for name in home.__all__}
MAKERS |= {name: getattr(compose, name) for name in ("chain", "skip", "objective")}
del MAKERS["batch_size"]


def make(call, **names):
    """Returns what a call makes, written as in a user's program."""
    return eval(call, {"jnp": jnp, **MAKERS, **names})


MISREAD = {  # a call as another framework has it -> what to write here
    "dense(10, 8)": "dense(8): the number of inputs is taken from x",
    "dense(10, 8, False)": "dense(8, bias=False): the number of inputs is taken from x",
    "dense(in_features=10, out_features=8)": "dense(8): the number of inputs is taken from x",
    "dense(8, use_bias=False)": "dense(8, bias=False)",
    "dense(10, False)": "dense(10, bias=False)",
    "conv1d(3, 16, 5)": "conv1d(16, 5): the number of channels is taken from x",
    "conv2d(3, 16, 3)": "conv2d(16, 3): the number of channels is taken from x",
    "conv2d(3, 16, 3, 2)": "conv2d(16, 3, stride=2): the number of channels is taken from x",
    "conv2d(16, 3, strides=2)": "conv2d(16, 3, stride=2)",
    "rnn(10, 20)": "rnn(20): the number of inputs is taken from x",
    "lstm(10, 20)": "lstm(20): the number of inputs is taken from x",
    "lstm(10, 20, 2)":
        "lstm(20): the number of inputs is taken from x, and several layers are a chain of them",
    "gru(10, 20)": "gru(20): the number of inputs is taken from x",
    "lstm_cell(10, 20)": "lstm_cell(20): the number of inputs is taken from x",
    "layer_norm(64)": "layer_norm(): the width is taken from x",
    "layer_norm((3, 4))": "layer_norm(): the width is taken from x",
    "layer_norm(64, 1e-06)": "layer_norm(eps=1e-06): the width is taken from x",
    "layer_norm(1e-06)": "layer_norm(eps=1e-06)",
    "rms_norm(64)": "rms_norm(): the width is taken from x",
    "group_norm(2, 6)": "group_norm(2): the number of channels is taken from x",
    "batch_norm(64)": "batch_norm(): the number of channels is taken from x",
    "batch_norm(0.5)": "batch_norm(momentum=0.5)",
    "rotary(64)": "rotary(): the width is taken from x",
    "attention(512, 8)": "attention(8): the width is taken from x",
    "swiglu(64, 256)": "swiglu(256): the number of inputs is taken from x",
    "geglu(64, 256)": "geglu(256): the number of inputs is taken from x",
    "softmax(-1)": "softmax(): it runs over the last axis",
    "log_softmax(dim=-1)": "log_softmax(): it runs over the last axis",
    "flatten(1)": "flatten(): every axis behind the batch axis is joined",
    "max_pool(2, 2)": "max_pool(2, stride=2)",
    "avg_pool(2, 2, 'SAME')": "avg_pool(2, stride=2, padding='SAME')",
    "gelu(False)": "gelu(approximate=False)",
    "huber(0.5)": "huber(delta=0.5)",
    "linear_cross_entropy(10, 20)": "linear_cross_entropy(10, chunk=20)",
    "token_weight(-100)": "token_weight(ignore_index=-100)",
    "repeat(dense(3), 2, True)": "repeat(dense(3), 2, unroll=True)",
    "mlp((512,), 10)": "mlp((512,), outputs=10)",
    "resnet((4, 8), 1)": "resnet((4, 8), blocks=1)",
    "gpt(64, 32, 16, 2)": "gpt(64, 32, features=16, heads=2)",
    "recommender(5, 7, 3)": "recommender(5, 7, rank=3)",
}


@pytest.mark.parametrize("call", MISREAD)
def test_a_call_of_another_framework_is_told_what_to_write(call):
    with pytest.raises(TypeError) as error:
        make(call)
    maker = call.partition("(")[0]
    said = str(error.value)
    assert said.startswith(f"{maker}: expected {maker}(")
    assert f", got {call}. Write {MISREAD[call]}" in said
    assert isinstance(make(MISREAD[call].partition(": ")[0]), Layer) or maker == "token_weight"


REFUSED = {  # a call that no other call stands for -> words of the error
    "dense()": "dense: expected dense(features, bias=..., w_init=..., b_init=...), got dense()",
    "dense(8, colour=3)": "dense: expected dense(features, bias=..., w_init=..., b_init=...), got "
                          "dense(8, colour=3)",
    "dense(8, features=9)": "b_init=...), got dense(8, features=9)",
    "relu(True)": "relu: expected relu(), got relu(True)",
    "dropout(0.5, True)": "dropout: expected dropout(rate), got dropout(0.5, True)",
    "checkpoint(dense(3), relu())": "expected checkpoint(layer), got checkpoint(dense(3), relu())",
    "relu(jnp.ones(3))": "relu: expected relu(), got relu(float32[3]). It makes a Layer,",
    "mse(jnp.ones(3), jnp.ones(3))": "got mse(float32[3], float32[3]). It makes a Layer, and",
    "gelu('none')": "gelu: expected gelu(approximate=...), got gelu('none'). "
                    "gelu approximate: expected True or False, got 'none'. "
                    "Write gelu(approximate=False), or leave it out for True",
    "gelu(approximate='none')": "expected True or False, got 'none'. Write gelu(approximate=False)",
    "dense(8, bias='zeros')": "expected True or False, got 'zeros'. Write dense(8, bias=False)",
    "conv2d(3, 16, 3, 2, 1)": "got conv2d(3, 16, 3, 2, 1). conv2d padding: expected 'SAME'",
    "embedding(1000, 64, 0)": "got embedding(1000, 64, 0). embedding w_init: expected an init",
    "dense(8, w_init=0.1)": "dense w_init: expected an initializer of jax.nn.initializers, or None",
    "layer_norm(eps='small')": "layer_norm eps: expected a number, got 'small'",
    "layer_norm(eps=(3, 4))": "layer_norm eps: expected a number, got (3, 4)",
    "dropout('half')": "dropout rate: expected a number, got 'half'",
    "mlp(128)": "mlp hidden: expected a tuple of whole numbers, got 128. Write (128,) for one",
    "convnet('wide')": "convnet channels: expected a tuple of whole numbers, got 'wide'",
}


@pytest.mark.parametrize("call", REFUSED)
def test_a_call_that_means_nothing_here_is_refused(call):
    with pytest.raises((TypeError, ValueError), match=re.escape(REFUSED[call])):
        make(call)


WHOLE = [  # every place where a maker expects a whole number
    "dense(n)", "conv1d(n, 3)", "conv1d(4, n)", "conv2d(n, 3)", "conv2d(4, n)",
    "conv2d(4, 3, stride=n)", "conv2d(4, 3, dilation=n)", "conv2d(4, 3, groups=n)", "max_pool(n)",
    "max_pool(3, stride=n)", "avg_pool(n)", "embedding(n, 4)", "embedding(4, n)",
    "learned_positions(n)", "attention(n)", "attention(4, kv_heads=n)", "attention(4, block=n)",
    "group_norm(n)", "swiglu(n)", "geglu(n)", "repeat(dense(4), n)", "rnn(n)", "lstm(n)",
    "gru(n)", "lstm(4, segment=n)", "rnn_cell(n)", "lstm_cell(n)", "gru_cell(n)",
    "recurrent(rnn_cell(4), truncate=n)", "reshape(n, 4)", "linear_cross_entropy(n)",
    "linear_cross_entropy(4, chunk=n)", "softmax_cross_entropy(ignore_index=n)", "mlp((n, 4))",
    "mlp((4,), outputs=n)", "convnet((n,))", "convnet((4,), hidden=(n,))",
    "convnet((4,), outputs=n)", "resnet((n,))", "resnet((4,), blocks=n)", "resnet((4,), stem=n)",
    "resnet((4,), outputs=n)", "lstm_classifier(n)", "lstm_classifier(4, outputs=n)", "gpt(n, 4)",
    "gpt(4, n)", "gpt(4, 4, features=n)", "gpt(4, 4, heads=n)", "gpt(4, 4, blocks=n)",
    "gpt(4, 4, block=n)", "gpt(4, 4, chunk=n)", "recommender(n, 4)", "recommender(4, n)",
    "recommender(4, 4, rank=n)",
]


@pytest.mark.parametrize("call", WHOLE)
def test_numpy_integers_are_whole_numbers(call):
    assert repr(make(call, n=np.int64(2))) == repr(make(call, n=2))
    assert repr(make(call, n=np.uint8(2))) == repr(make(call, n=2))


@pytest.mark.parametrize("wrong", [True, 2.0, "2", np.float32(2), np.bool_(True)], ids=repr)
@pytest.mark.parametrize("call", WHOLE)
def test_nothing_else_is_a_whole_number(call, wrong):
    with pytest.raises(ValueError, match=rf"expected .*, got .*{re.escape(repr(wrong))}"):
        make(call, n=wrong)


@pytest.mark.parametrize(("call", "text"), [
    ("transpose(0, True)", "transpose axes: expected each of 0, 1, ... once"),
    ("concat(1.0)", "concat axis: expected a whole number, got 1.0"),
    ("token_weight(ignore_index=1.0)", "ignore_index: expected a whole number or None, got 1.0"),
])
def test_axes_and_class_numbers_are_whole_numbers_too(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make(call)


# ---- signatures


@pytest.mark.parametrize("name", MAKERS)
def test_every_argument_has_a_type_and_none_is_any(name):
    signature = inspect.signature(MAKERS[name])
    types = {each.name: each.annotation for each in signature.parameters.values()}
    assert {name: t for name, t in types.items() if t in (inspect.Parameter.empty, "Any", "str")} == {}
    assert signature.return_annotation in ("Layer", "Weight")


@pytest.mark.parametrize("name", MAKERS)
def test_what_may_be_left_out_goes_by_name(name):
    """But for a first argument, and an initializer of from_function or the loss of an objective."""
    parameters = list(inspect.signature(MAKERS[name]).parameters.values())
    positional = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 2
    behind = [each.name for each in positional[1:] if each.default is not each.empty]
    assert behind in ([], ["init"], ["loss"])


def test_activations_are_the_elementwise_table():
    assert get_args(Activation) == tuple(TABLE)


@pytest.mark.parametrize("name", MAKERS)
def test_every_maker_of_few_arguments_checks_its_calls(name):
    maker = MAKERS[name]
    kinds = {each.kind for each in inspect.signature(maker).parameters.values()}
    assert hasattr(maker, "__wrapped__") != (inspect.Parameter.VAR_POSITIONAL in kinds)


def test_a_checked_maker_looks_like_the_one_that_was_written():
    dense = MAKERS["dense"]
    assert dense.__name__ == "dense"
    assert "He normal" in dense.__doc__
    assert list(inspect.signature(dense).parameters) == ["features", "bias", "w_init", "b_init"]
    assert inspect.signature(dense).parameters["bias"].kind is inspect.Parameter.KEYWORD_ONLY
