"""The works of the benchmark as users of Flax write them: NNX modules, split and merged at the edge of one jitted function.

`program(name, trained, carried) -> (fn, state)`: fn(state, batch) -> (value, grads), to be jitted; sizes are read from
`trained`, which with `carried` is what `bench.baselines` makes of params. state is (trainable, rest);
so is grads, where the rest is what it becomes. `gradients` gives the structure of `trained`.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .layout import named, sizes, statistics


class MLP(nnx.Module):
    def __init__(self, widths, *, rngs):
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(widths)])

    def __call__(self, x):
        *hidden, head = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return head(x)


class CNN(nnx.Module):
    def __init__(self, channels, head, *, rngs):
        self.convs = nnx.List([nnx.Conv(i, o, kernel_size=(3, 3), rngs=rngs) for i, o in pairwise(channels)])
        self.head = nnx.Linear(*head, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), window_shape=(2, 2), strides=(2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class ConvNorm(nnx.Module):
    def __init__(self, i, o, kernel=3, stride=1, *, rngs):
        self.conv = nnx.Conv(i, o, kernel_size=(kernel, kernel), strides=stride, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(o, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Block(nnx.Module):
    def __init__(self, i, o, *, rngs):
        stride = 1 if i == o else 2
        self.first = ConvNorm(i, o, stride=stride, rngs=rngs)
        self.second = ConvNorm(o, o, rngs=rngs)
        self.shortcut = None if i == o else ConvNorm(i, o, 1, stride, rngs=rngs)

    def __call__(self, x):
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (self.shortcut(x) if self.shortcut else x))


class ResNet(nnx.Module):
    def __init__(self, stem, blocks, head, *, rngs):
        self.stem = ConvNorm(*stem, rngs=rngs)
        self.blocks = nnx.List([Block(i, o, rngs=rngs) for i, o in blocks])
        self.head = nnx.Linear(*head, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class LSTM(nnx.Module):
    def __init__(self, inputs, head, *, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(inputs, head[0], rngs=rngs), return_carry=True, rngs=False)
        self.head = nnx.Linear(*head, rngs=rngs)

    def __call__(self, x):
        start = self.rnn.cell.initialize_carry(x[:, 0].shape, nnx.Rngs(0))  # zeros
        (_, h), _ = self.rnn(x, initial_carry=start)
        return self.head(h)


class GPTBlock(nnx.Module):
    def __init__(self, width, heads, *, dtype, rngs):
        self.heads = heads
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs) for _ in range(2))
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        q, k, v = (a.reshape(*x.shape[:2], self.heads, -1) for a in jnp.split(self.qkv(self.norm1(x)), 3, axis=-1))
        x = x + self.out(nnx.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, vocabulary, length, width, heads, blocks, *, dtype=jnp.float32, rngs):
        self.embedding = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([GPTBlock(width, heads, dtype=dtype, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x)).astype(jnp.float32)


def build(name, p):
    """The module of the sizes of p."""
    modules = {"mlp": MLP, "cnn": CNN, "resnet": ResNet, "lstm": LSTM,
               "gpt2-124m": partial(GPT, dtype=jnp.bfloat16)}
    return modules.get(name, GPT)(*sizes(name, p), rngs=nnx.Rngs(0))


def leaves(name, m):
    """The leaves of m, a module's trainable State, in the structure of `trained`."""
    def cell(m):
        m = m.rnn.cell
        return {"wx": m.dense_i.kernel, "wh": m.dense_h.kernel, "b": m.dense_h.bias}

    return named(name, m, cell, "kernel", "scale", "embedding")


def load(variables, values):
    """Into Variables, which stand in a tree of the structure of `values`."""
    jax.tree.map(lambda value, variable: variable.set_value(value), values, variables)


def program(name, trained, carried):
    graph, trainable, rest = nnx.split(nnx.eval_shape(lambda: build(name, trained)), nnx.Param, ...)
    load(leaves(name, trainable), trained)
    for one, stats in statistics(rest, carried) if carried else ():
        load({part: one.norm[part] for part in stats}, stats)

    def fn(state, batch):
        x, target = batch
        model = nnx.merge(graph, *state)

        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), target).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        return value, (grads, nnx.state(model, nnx.Not(nnx.Param)))

    return fn, (trainable, rest)


def gradients(name, grads):
    tree = leaves(name, grads[0])
    return jax.tree.map(lambda leaf: leaf.get_value(), tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
