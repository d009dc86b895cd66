"""The network's table: what is counted where, and that it adds up to what the backward really keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import chain, checkpoint, dense, gelu, gpt, layer_norm, lstm_classifier, mlp, paths, relu, repeat, skip, split
from fbackprop import softmax_cross_entropy as cross_entropy
from fbackprop.observe.summary import summarize

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
LABELS = jax.ShapeDtypeStruct((4,), jnp.int32)
TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)
BLOCK = skip(chain(dense(8), relu()))


def kept_bytes(net, loss, params, batch):
    """The bytes of all arrays a forward keeps, one that is kept twice counted once."""
    def kept(params, batch):
        y, residuals = net.forward(params, batch if loss is None else batch[0])
        more = () if loss is None else loss.forward((), (y, batch[1]))[1]
        arrays = {id(leaf): leaf for leaf in jax.tree.leaves((residuals, more))}
        total.append(sum(leaf.size * leaf.dtype.itemsize for leaf in arrays.values()))

    total = []
    jax.eval_shape(kept, params, batch)
    return total[0]


@pytest.mark.parametrize(("net", "batch"), [
    (mlp((16,)), (X, LABELS)),
    (chain(dense(8), checkpoint(chain(layer_norm(), dense(32))), checkpoint(chain(gelu(), dense(8)))), (X, LABELS)),
    (chain(repeat(BLOCK, 3), dense(5)), (X, LABELS)),
    (chain(repeat(BLOCK, 3, unroll=True), dense(5)), (X, LABELS)),
    (lstm_classifier(6), (jax.ShapeDtypeStruct((4, 3, 8), jnp.float32), LABELS)),
    (lstm_classifier(6, segment=2), (jax.ShapeDtypeStruct((4, 4, 8), jnp.float32), LABELS)),
    (lstm_classifier(6, segment=2, remake="nothing"), (jax.ShapeDtypeStruct((4, 4, 8), jnp.float32), LABELS)),
    (gpt(11, 6, features=8, heads=2, blocks=3), (TOKENS, TOKENS)),
    (gpt(11, 6, features=8, heads=2, blocks=3, unroll=True), (TOKENS, TOKENS)),
], ids=lambda value: getattr(value, "name", "")[:40])
def test_parameters_and_bytes_add_up(net, batch):
    loss = None if "linear_cross_entropy" in net.name else cross_entropy()
    params = jax.eval_shape(net.init, jax.random.key(0), batch if loss is None else batch[0])
    rows = summarize(net, loss, params, batch)
    assert sum(row.parameters for row in rows) == sum(int(np.prod(leaf.shape)) for leaf in paths(split(params)[0]).values())
    assert sum(row.kept_bytes for row in rows) == pytest.approx(kept_bytes(net, loss, params, batch), abs=len(rows))
    assert len({(row.path, row.layer) for row in rows}) == len(rows)


def test_what_a_checkpoint_makes_again_is_not_kept():
    net = chain(dense(8), checkpoint(chain(layer_norm(), dense(32))))
    params = jax.eval_shape(net.init, jax.random.key(0), X)
    first, norm, last, _ = summarize(net, cross_entropy(), params, (X, LABELS))
    assert (first.kept_bytes, norm.kept_bytes, last.kept_bytes) == (4 * 8 * 4, 4 * 8 * 4, 0)
    assert (norm.keeps, last.keeps) == ("x", "nothing: recomputed")
