"""The works of the benchmark as users of Equinox write them: modules for one example, channels first, under jax.vmap.

`program(name, trained, carried) -> (fn, state)`: fn(state, batch) -> (value, grads), to be jitted; sizes are read from
`trained`, which with `carried` is what `bench.baselines` makes of params. state is (trainable, rest);
so is grads, where the rest is what it becomes. `gradients` gives the structure and layout of `trained`.
Batches come channels last: fn turns images round, which is part of what it costs.
"""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .layout import named, outputs_first, outputs_last, sizes, statistics


class MLP(eqx.Module):
    layers: list

    def __init__(self, widths, *, key):
        self.layers = [eqx.nn.Linear(i, o, key=key) for i, o in pairwise(widths)]

    def __call__(self, x):
        *hidden, head = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return head(x)


class CNN(eqx.Module):
    convs: list
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.Linear

    def __init__(self, channels, head, *, key):
        self.convs = [eqx.nn.Conv2d(i, o, kernel_size=3, padding="SAME", key=key) for i, o in pairwise(channels)]
        self.pool = eqx.nn.MaxPool2d(kernel_size=2, stride=2)
        self.head = eqx.nn.Linear(*head, key=key)

    def __call__(self, x):
        for conv in self.convs:
            x = self.pool(jax.nn.relu(conv(x)))
        return self.head(x.ravel())


class ConvNorm(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, i, o, kernel=3, stride=1, *, key):
        self.conv = eqx.nn.Conv2d(i, o, kernel, stride, padding="SAME", use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(o, axis_name="batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        return self.norm(self.conv(x), state)


class Block(eqx.Module):
    first: ConvNorm
    second: ConvNorm
    shortcut: ConvNorm | None

    def __init__(self, i, o, *, key):
        stride = 1 if i == o else 2
        self.first = ConvNorm(i, o, stride=stride, key=key)
        self.second = ConvNorm(o, o, key=key)
        self.shortcut = None if i == o else ConvNorm(i, o, 1, stride, key=key)

    def __call__(self, x, state):
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return jax.nn.relu(y + x), state


class ResNet(eqx.Module):
    stem: ConvNorm
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, stem, blocks, head, *, key):
        self.stem = ConvNorm(*stem, key=key)
        self.blocks = [Block(i, o, key=key) for i, o in blocks]
        self.head = eqx.nn.Linear(*head, key=key)

    def __call__(self, x, state):
        x, state = self.stem(x, state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


class LSTM(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, inputs, head, *, key):
        self.cell = eqx.nn.LSTMCell(inputs, head[0], key=key)
        self.head = eqx.nn.Linear(*head, key=key)

    def __call__(self, xs):
        zeros = jnp.zeros(self.cell.hidden_size)
        (h, _), _ = jax.lax.scan(lambda hidden, x: (self.cell(x, hidden), None), (zeros, zeros), xs)
        return self.head(h)


class GPTBlock(eqx.Module):
    norm1: eqx.nn.LayerNorm
    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width, heads, *, key):
        self.heads = heads
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.qkv, self.out = eqx.nn.Linear(width, 3 * width, key=key), eqx.nn.Linear(width, width, key=key)
        self.up, self.down = eqx.nn.Linear(width, 4 * width, key=key), eqx.nn.Linear(4 * width, width, key=key)

    def __call__(self, x):
        qkv = jax.vmap(self.qkv)(jax.vmap(self.norm1)(x))
        q, k, v = (a.reshape(len(x), self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
        x = x + jax.vmap(self.out)(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x))))


class GPT(eqx.Module):
    embedding: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: list
    norm: eqx.nn.LayerNorm

    def __init__(self, vocabulary, length, width, heads, blocks, *, key):
        self.embedding = eqx.nn.Embedding(vocabulary, width, key=key)
        self.positions = eqx.nn.Embedding(length, width, key=key)
        self.blocks = [GPTBlock(width, heads, key=key) for _ in range(blocks)]
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens) + jax.vmap(self.positions)(jnp.arange(len(tokens)))
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.embedding.weight.T


def build(name, p):
    """The module of the sizes of p, and its state."""
    module = {"mlp": MLP, "cnn": CNN, "resnet": ResNet, "lstm": LSTM}.get(name, GPT)
    return eqx.nn.make_with_state(module)(*sizes(name, p), key=jax.random.key(0))


def leaves(name, m):
    """The leaves of the module m in the structure of `trained`."""
    return named(name, m, lambda m: {
        "wx": m.cell.weight_ih, "wh": m.cell.weight_hh, "b": m.cell.bias})


def load(name, model, trained):
    """The module with the weights of `trained`."""
    values = jax.tree.map(lambda a, like: a.reshape(like.shape),
                          outputs_first(name, trained), leaves(name, model))
    return eqx.tree_at(lambda m: jax.tree.leaves(leaves(name, m)), model, jax.tree.leaves(values))


def program(name, trained, carried):
    model, rest = eqx.filter_eval_shape(build, name, trained)
    rest = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), rest)
    for one, stats in statistics(model, carried) if carried else ():
        rest = rest.set(one.norm.batch_state_index, (stats["mean"], stats["var"]))
    trainable, static = eqx.partition(load(name, model, trained), eqx.is_inexact_array)

    def loss(trainable, rest, x, target):
        if name == "gpt2-124m":
            trainable = jax.tree.map(lambda a: a.astype(jnp.bfloat16), trainable)
        model = eqx.combine(trainable, static)
        if name == "resnet":
            logits, rest = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, rest)
        else:
            logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target).mean(), rest

    def fn(state, batch):
        x, target = batch
        x = jnp.moveaxis(x, -1, 1) if name in ("cnn", "resnet") else x
        (value, rest), grads = eqx.filter_value_and_grad(loss, has_aux=True)(*state, x, target)
        return value, (grads, rest)

    return fn, (trainable, rest)


def gradients(name, grads):
    return outputs_last(name, leaves(name, grads[0]))
