"""For every exercise the right end of its backward and typical wrong ones: description -> (the lines, words of the hint).

The words are "" where no known mistake is that one. `filled` puts lines in the place of the blank.
"""

import re
from textwrap import indent

from fbackprop.classroom.exercises import EXERCISES


def filled(name: str, lines: str) -> str:
    """The exercise with its blank replaced."""
    text = EXERCISES[name].file.read_text(encoding="utf-8")
    filled, count = re.subn(r"^ +raise NotImplementedError\(.*\)$", lambda _: indent(lines.strip(), 8 * " "), text, flags=re.M)
    assert count == 1
    return filled


def right(name: str) -> str:
    return filled(name, RIGHT[name])


def changed(name: str, old: str, new: str) -> str:
    assert RIGHT[name].count(old) == 1, (name, old)
    return RIGHT[name].replace(old, new)


RIGHT = {
    "relu": "return (), jnp.where(x > 0, dy, 0)",
    "dense": 'return {"w": x.T @ dy, "b": jnp.sum(dy, axis=0)}, dy @ params["w"].T',
    "cross_entropy": """
t = jax.nn.one_hot(labels, log_p.shape[-1], dtype=log_p.dtype)
return (), (dy * (jnp.exp(log_p) - t) / len(labels), None)
""",
    "chain": """
grads = []
for i in reversed(range(len(layers))):
    dparams, dy = layers[i].backward(params[i], residuals[i], dy)
    grads.append(dparams)
return tuple(reversed(grads)), dy
""",
    "conv": """
w, S = params["w"], dy.shape[1]
dw = jnp.stack([jnp.einsum("nti,nto->io", x[:, k:k + S], dy) for k in range(kernel)])
dx = jnp.zeros_like(x)
for k in range(kernel):
    dx = dx.at[:, k:k + S].add(dy @ w[k].T)
return {"w": dw, "b": jnp.sum(dy, axis=(0, 1))}, dx
""",
    "batch_norm": """
dh = dy * params["scale"]
dx = rstd * (dh - jnp.mean(dh, axis=0) - h * jnp.mean(dh * h, axis=0))
return {"scale": jnp.sum(dy * h, axis=0), "bias": jnp.sum(dy, axis=0)}, dx
""",
    "lstm": """
dh = dh_next + dout
dc = dc_next + dh * o * (1 - t ** 2)
di, df, dg, do = dc * g, dc * c, dc * i, dh * t
da = jnp.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g ** 2), do * o * (1 - o)], axis=-1)
return {"w": h.T @ da}, ((da @ params["w"].T, dc * f), da)
""",
    "attention": """
dv = jnp.einsum("btu,btc->buc", p, dy)
dp = jnp.einsum("btc,buc->btu", dy, v)
ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
dq = jnp.einsum("btu,buc->btc", ds, k)
dk = jnp.einsum("btu,btc->buc", ds, q)
return (), jnp.concatenate([dq, dk, dv], axis=-1)
""",
}

WRONG = {
    "relu": {
        "dy passed on everywhere": ("return (), dy", "the derivative of identity"),
        "the mask forgotten to be times dy": ("return (), jnp.where(x > 0, 1.0, 0.0).astype(x.dtype)", "made without dy"),
        "the mask turned round": ("return (), jnp.where(x > 0, 0, dy)", ""),
        "asked of dy instead of x": ("return (), jnp.where(dy > 0, dy, 0)", ""),
    },
    "dense": {
        "db of one row": (changed("dense", "jnp.sum(dy, axis=0)", "dy[0]"), "the sum over the batch is missing"),
        "w not transposed": (changed("dense", 'params["w"].T', 'params["w"]'), "the square weight where its transpose belongs"),
        "a mean for the sum": (changed("dense", "jnp.sum", "jnp.mean"), "the right one divided by the batch size"),
        "dw transposed": (changed("dense", "x.T @ dy", "(x.T @ dy).T"), "the right one transposed"),
        "the wrong sign": (changed("dense", "x.T @ dy", "-x.T @ dy"), "the wrong sign"),
    },
    "cross_entropy": {
        "p alone": (changed("cross_entropy", "(jnp.exp(log_p) - t)", "jnp.exp(log_p)"), "p, without the - t"),
        "not divided by B": (changed("cross_entropy", " / len(labels)", ""), "the right one times the batch size"),
        "t - p": (changed("cross_entropy", "jnp.exp(log_p) - t", "t - jnp.exp(log_p)"), "the wrong sign"),
        "without dy": (changed("cross_entropy", "dy * ", ""), "made without dy"),
        "divided by V": (changed("cross_entropy", "len(labels)", "log_p.shape[-1]"), ""),
    },
    "chain": {
        "every layer given the chain's dy": (changed("chain", "dparams, dy =", "dparams, dx =")
                                             .replace("grads)), dy", "grads)), dx"), ""),
        "walked forwards": (changed("chain", "reversed(range(len(layers)))", "range(len(layers))")
                            .replace("tuple(reversed(grads))", "tuple(grads)"), ""),
        "the last layer given the first one's residuals": (changed("chain", "residuals[i]", "residuals[i % 3]"), ""),
        "the last layer left out": (changed("chain", "reversed(range(len(layers)))", "reversed(range(len(layers) - 1))")
                                    .replace("grads = []", 'grads = [{"s": jnp.sum(residuals[-1] * dy, 0)}]'), ""),
    },
    "conv": {
        "dx with the kernel not turned round": (changed("conv", "w[k].T", "w[kernel - 1 - k].T"), "the kernel not flipped"),
        "dx with I and O not exchanged": (changed("conv", "w[k].T", "w[k]"), "input and output channels not exchanged"),
        "db of the first time alone": (changed("conv", "jnp.sum(dy, axis=(0, 1))", "jnp.sum(dy[:, 0], axis=0)"), ""),
        "set instead of add": (changed("conv", ".add(", ".set("), ""),
        "dw of the first example": (changed("conv", "x[:, k:k + S], dy)", "x[:1, k:k + S], dy[:1])"),
                                    "the sum over the batch is missing"),
    },
    "batch_norm": {
        "without the mean": (changed("batch_norm", " - jnp.mean(dh, axis=0)", ""), "without the path through the mean"),
        "without the variance": (changed("batch_norm", " - h * jnp.mean(dh * h, axis=0)", ""),
                                 "without the path through the variance"),
        "rstd dh": ("dh = dy * params['scale']\nreturn {'scale': jnp.sum(dy * h, 0), 'bias': jnp.sum(dy, 0)}, rstd * dh",
                    "mean and variance taken for constants"),
        "without the scale": (changed("batch_norm", 'dy * params["scale"]', "dy"), "made without the scale"),
    },
    "lstm": {
        "without dout": (changed("lstm", "dh_next + dout", "dh_next"), "without the output's cotangent"),
        "without the carry": (changed("lstm", "dh_next + dout", "dout").replace("dc_next + ", ""),
                              "without the carry's cotangent"),
        "two gates swapped": (changed("lstm", "di * i * (1 - i), df * f * (1 - f)", "df * f * (1 - f), di * i * (1 - i)"),
                              "input and forget gate swapped"),
        "tanh's derivative forgotten": (changed("lstm", " * (1 - t ** 2)", ""), ""),
        "sigmoid's derivative for tanh": (changed("lstm", "dg * (1 - g ** 2)", "dg * g * (1 - g)"), ""),
    },
    "attention": {
        "without the scale": (changed("attention", " / jnp.sqrt(q.shape[-1]).astype(q.dtype)", ""), "without the scale"),
        "without the sum": (changed("attention", "(dp - jnp.sum(p * dp, axis=-1, keepdims=True))", "dp"),
                            "without the rank-one term"),
        "p not transposed": (changed("attention", '"btu,btc->buc", p, dy', '"btu,buc->btc", p, dy'),
                             "dv by the probabilities, not by their transpose"),
        "dq and dk swapped": (changed("attention", "[dq, dk, dv]", "[dk, dq, dv]"), "the cotangents of q and k swapped"),
    },
}
