"""The works as users of other libraries write them: their loss and gradients are those of the plain JAX loss."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench.baselines import BASELINES
from bench.works import images, load_peer, tokens

from fbackprop import convnet, gpt, lstm_classifier, mlp, resnet

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("quick_compile"),
              pytest.mark.filterwarnings("default")]  # the libraries' own warnings are no fault of ours

SMALL = {
    "mlp": (mlp((8, 8)), images(5, 12)),
    "cnn": (convnet((4, 6)), images(3, 8, 8, 2)),
    "resnet": (resnet((4, 8)), images(3, 8, 8, 3)),
    "lstm": (lstm_classifier(8), images(3, 5, 6)),
    "gpt": (gpt(31, 12, features=16, heads=4, blocks=2), tokens(31, 2, 12)),
    "gpt50k": (gpt(53, 12, features=16, heads=4, blocks=1), tokens(53, 2, 9)),
    "gpt2-124m": (gpt(31, 12, features=48, heads=12, blocks=1), tokens(31, 2, 12)),
}
BOUNDS = {name: (2e-2, 5e-2) if name == "gpt2-124m" else (1e-5, 1e-4) for name in SMALL}  # bfloat16 has 8 bits


def peer(library):
    pytest.importorskip(library)
    return load_peer(library)


@cache
def case(name):
    """trained, carried, batch, and the plain loss's (value, gradients)."""
    net, make = SMALL[name]
    batch = make(0)
    spec = jax.eval_shape(net.init, jax.random.key(1), batch if "gpt" in name else batch[0])
    rng = np.random.default_rng(2)  # no bias at 0 and no scale at 1, where a mistake could hide
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), spec)
    trained, carried = BASELINES[name].adapt(params)
    plain = jax.jit(jax.value_and_grad(BASELINES[name].points["idiomatic"], has_aux=True))
    (value, _), grads = plain(trained, carried, batch)
    return trained, carried, batch, value, grads


def judge(name, value, tree):
    """The largest distance of a leaf relative to its largest entry is within the bound."""
    *_, expected, grads = case(name)
    loss, bound = BOUNDS[name]
    assert float(value) == pytest.approx(float(expected), rel=loss)
    assert jax.tree.structure(tree) == jax.tree.structure(grads)
    for (path, a), b in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(grads)):
        assert a.shape == b.shape, path
        assert np.abs(np.asarray(a, np.float32) - b).max() <= bound * np.abs(b).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("library", ["flax", "equinox"])
def test_a_jax_peer_agrees(library, name):
    trained, carried, batch, *_ = case(name)
    fn, state = peer(library).program(name, trained, carried)
    value, grads = jax.jit(fn)(state, batch)
    judge(name, value, peer(library).gradients(name, grads))


@pytest.mark.parametrize("library", ["flax", "equinox"])
def test_an_optax_step_goes_around_a_jax_peer(library):
    import optax

    trained, carried, batch, first, _ = case("resnet")
    fn, state = peer(library).program("resnet", trained, carried)
    tx = optax.sgd(0.01)

    @jax.jit
    def step(state, opt_state):
        trainable, _ = state
        value, (grads, rest) = fn(state, batch)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return (optax.apply_updates(trainable, updates), rest), opt_state, value

    moved, opt_state, _ = step(state, tx.init(state[0]))
    rests = map(jax.tree.leaves, (state[1], moved[1]))
    assert not all(jnp.array_equal(a, b) for a, b in zip(*rests))
    assert step(moved, opt_state)[-1] < first


@pytest.mark.parametrize("name", SMALL)
def test_torch_agrees(name):
    trained, carried, batch, *_ = case(name)
    run = peer("torch").program(name, trained, carried, batch)
    run()
    judge(name, run(), peer("torch").gradients(name, run))  # the second: gradients are not added up


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_torch_steps(name):
    trained, carried, batch, first, _ = case(name)
    run = peer("torch").program(name, trained, carried, batch, step=True)
    losses = [run() for _ in range(3)]
    assert losses[0] == pytest.approx(float(first), rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


def test_compiled_torch_agrees():
    trained, carried, batch, *_ = case("mlp")
    run = peer("torch").program("mlp", trained, carried, batch, compiled="inductor")
    judge("mlp", run(), peer("torch").gradients("mlp", run))
