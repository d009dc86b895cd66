"""The works of the benchmark as users of PyTorch write them: nn modules, channels_last, F.cross_entropy, autocast for bfloat16.

`program(name, trained, carried, batch) -> run`: run() is one loss and its backward pass, and returns the loss; step=True adds a
step of AdamW, compiled="inductor" or another backend runs model and loss by torch.compile. Sizes are read from `trained`,
which with `carried` is what `bench.baselines` makes of params. `gradients` gives what run() found the
structure and layout of `trained`.
Runs on the GPU where there is one. Images have even sides: a stride of 2 then begins where JAX's "SAME" does.
"""

from __future__ import annotations

from itertools import pairwise

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .layout import named, outputs_first, outputs_last, sizes, statistics


class MLP(nn.Sequential):
    def __init__(self, widths):
        layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
        super().__init__(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
        self.layers = layers  # a plain list registers none twice


class CNN(nn.Module):
    def __init__(self, channels, head):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(channels))
        self.head = nn.Linear(*head)

    def forward(self, x):
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.head(x.flatten(1))


class ConvNorm(nn.Module):
    def __init__(self, i, o, kernel=3, stride=1):
        super().__init__()
        self.pad = kernel == 3 and stride == 2  # "SAME" is uneven there: a row and a column at the end alone
        self.conv = nn.Conv2d(i, o, kernel, stride, padding=0 if self.pad else kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(o)

    def forward(self, x):
        return self.norm(self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x))


class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        stride = 1 if i == o else 2
        self.first, self.second = ConvNorm(i, o, stride=stride), ConvNorm(o, o)
        self.shortcut = None if i == o else ConvNorm(i, o, 1, stride)

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        return F.relu(y + (self.shortcut(x) if self.shortcut else x))


class ResNet(nn.Module):
    def __init__(self, stem, blocks, head):
        super().__init__()
        self.stem = ConvNorm(*stem)
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in blocks))
        self.head = nn.Linear(*head)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class LSTM(nn.Module):
    def __init__(self, inputs, head):
        super().__init__()
        self.lstm = nn.LSTM(inputs, head[0], batch_first=True)
        nn.init.zeros_(self.lstm.bias_hh_l0)  # of its two biases the other is loaded
        self.head = nn.Linear(*head)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])


class GPTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary, length, width, heads, blocks):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[-1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def build(name, p):
    """The module of the sizes of p, at random weights."""
    module = {"mlp": MLP, "cnn": CNN, "resnet": ResNet, "lstm": LSTM}.get(name, GPT)
    return module(*sizes(name, p))


def leaves(name, m):
    """The parameters of the module m in the structure of `trained`."""
    return named(name, m, lambda m: {
        "wx": m.lstm.weight_ih_l0, "wh": m.lstm.weight_hh_l0, "b": m.lstm.bias_ih_l0})


def load(name, model, trained, carried):
    """In place."""
    def put(a, parameter):
        parameter.copy_(torch.tensor(np.array(a)))

    with torch.no_grad():
        jax.tree.map(put, outputs_first(name, trained), leaves(name, model))
        for one, stats in statistics(model, carried) if carried else ():
            put(stats["mean"], one.norm.running_mean)
            put(stats["var"], one.norm.running_var)


class Run:
    """One loss and backward pass a call, and a step where there is an optimizer. Returns the loss."""

    def __init__(self, model, loss, optimizer):
        self.model, self.loss, self.optimizer = model, loss, optimizer

    def __call__(self):
        self.model.zero_grad(set_to_none=True)
        value = self.loss()
        value.backward()
        if self.optimizer:
            self.optimizer.step()
        if value.is_cuda:
            torch.cuda.synchronize()
        return value.item()


def program(name, trained, carried, batch, step=False, compiled=None):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
        torch.backends.cudnn.benchmark = True  # the fastest convolution is searched for, as XLA does
    model = build(name, trained)
    load(name, model, trained, carried)
    model.to(device, memory_format=torch.channels_last)
    x, target = (torch.tensor(np.array(a)).to(device) for a in batch)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    x, target = x if x.is_floating_point() else x.long(), target.long()

    def loss():
        with torch.autocast(device, torch.bfloat16, enabled=name == "gpt2-124m"):
            return F.cross_entropy(model(x).flatten(0, -2), target.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) if step else None
    return Run(model, torch.compile(loss, backend=compiled) if compiled else loss, optimizer)


def gradients(name, run):
    found = jax.tree.map(lambda each: each.grad.cpu().numpy(), leaves(name, run.model))
    return outputs_last(name, found)
