"""A program of a user: mypy --strict and pyright accept it, and it runs."""

import jax
import jax.numpy as jnp
import optax

from fbackprop import (
    PRECISIONS,
    Layer,
    assert_rule,
    chain,
    check_layer,
    dense,
    first_bad,
    init_opt_state,
    make_step,
    mse,
    plan,
    probe,
    readings,
    relu,
    value_and_grad,
    vjp,
    watch,
    with_precision,
)
from fbackprop.layers import layer_norm
from fbackprop.memory import every, scheduled

Params = dict[str, jax.Array]


def scale(start: float = 1.0) -> Layer:
    """Returns y = x w, with a rule of its own."""

    def init(key: jax.Array, x: jax.Array) -> Params:
        return {"w": jnp.full(x.shape[-1:], start)}

    def forward(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x * params["w"], x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        return {"w": jnp.sum(x * dy, axis=range(x.ndim - 1))}, dy * params["w"]

    return Layer("scale", init, forward, backward)


def main() -> float:
    """Returns the loss after some steps."""
    net = chain(dense(8), layer_norm(), relu(), scale(0.5), dense(2, bias=False))
    loss = mse()
    x = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
    batch = x, jnp.cos(x[:, :2])
    params = net.init(jax.random.key(0), x)

    assert_rule(scale(), x)
    report = check_layer(scale(2.0), x, dtypes=("float64",))
    verdict: str = report.verdict

    y, pullback = vjp(net, params, x)
    dparams, dx = pullback(jnp.ones_like(y))

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-2))
    narrow = with_precision(net, PRECISIONS["bfloat16"], keep=("1",))
    planned = plan(scheduled(narrow, every(2, 5)), loss, batch, 1e9)
    step = make_step(value_and_grad(planned.net, loss), tx)
    opt_state = init_opt_state(tx, params)
    metrics: dict[str, jax.Array] = {}
    for _ in range(10):
        params, opt_state, metrics = step(params, opt_state, batch)

    value, seen, grads = probe(net, loss)(params, batch)
    assert first_bad(seen, params, batch, value) is None
    watched = watch(net)
    _, recorded = value_and_grad(watched, loss)(watched.init(jax.random.key(0), x), batch, seed=2.0)
    of_first: float = readings(recorded)["0"].y.rms
    print(verdict, of_first, planned.temp_bytes, len(jax.tree.leaves((dparams, dx, grads))))
    return float(metrics["loss"])


if __name__ == "__main__":
    main()
