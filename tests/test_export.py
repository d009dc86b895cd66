"""A whole hand-written training step of every family lowers for accelerators that are not there, and comes back from bytes."""

from functools import cache

import jax
import numpy as np
import optax
import pytest

from fbackprop import (
    PRECISIONS,
    convnet,
    gpt,
    init_opt_state,
    lstm_classifier,
    mlp,
    mse,
    recommender,
    resnet,
    softmax_cross_entropy,
    update,
    value_and_grad,
    with_precision,
)
from fbackprop.memory import every, with_schedules

pytestmark = pytest.mark.usefixtures("quick_compile")

ELSEWHERE, EVERYWHERE = ("cuda", "tpu"), ("cpu", "cuda", "tpu")
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 8, 8, 2)).astype(np.float32)
LABELS = RNG.integers(0, 10, 4).astype(np.int32)
TEXT = RNG.integers(0, 11, (2, 17)).astype(np.int32)
TOKENS, CLASSES = (TEXT[:, :-1], TEXT[:, 1:]), softmax_cross_entropy()
RATINGS = (LABELS, LABELS[::-1]), RNG.standard_normal(4).astype(np.float32)
SMALL = gpt(11, 16, features=16, heads=2, blocks=2, block=8, chunk=16)
STEPS = {  # net, loss, batch
    "mlp": (mlp((16,)), CLASSES, (IMAGES, LABELS)),
    "convnet with dropout": (convnet((3, 4), hidden=(8,), rate=0.2), CLASSES, (IMAGES, LABELS)),
    "resnet": (resnet((4, 6), blocks=1), CLASSES, (IMAGES, LABELS)),
    "lstm in segments": (lstm_classifier(8, segment=2, remake="carries"), CLASSES, (IMAGES[..., 0], LABELS)),
    "gpt, blocked and chunked": (SMALL, None, TOKENS),
    "gpt, checkpointed, in bfloat16": (with_precision(with_schedules(SMALL, {"0/0/2": every(1, 2)}), PRECISIONS["bfloat16"]),
                                       None, TOKENS),
    "recommender": (recommender(10, 10, rank=3), mse(), RATINGS),
}
TX = optax.adamw(1e-3)


@cache
def step_of(name):
    """`(step, leaves)`: one training step, of and to flat lists, which need no registering to become bytes."""
    net, loss, batch = STEPS[name]
    params = net.init(jax.random.key(0), batch if loss is None else batch[0])
    args, fn = (params, init_opt_state(TX, params), batch), value_and_grad(net, loss)
    leaves, treedef = jax.tree.flatten(args)

    def step(leaves):
        params, opt_state, batch = jax.tree.unflatten(treedef, leaves)
        value, grads = fn(params, batch)
        return jax.tree.leaves((value, update(TX, params, grads, opt_state)))

    return jax.jit(step), leaves


@cache
def exported(name, platforms):
    step, leaves = step_of(name)
    return jax.export.export(step, platforms=platforms)(leaves)


def same(name, got):
    """As the jitted step's, to rounding."""
    step, leaves = step_of(name)
    rtol, atol = (1e-2, 1e-4) if "bfloat16" in name else (1e-5, 1e-6)
    for a, b in zip(got, step(leaves), strict=True):
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_lowers_for_accelerators_without_one(name):
    program, (_, leaves) = exported(name, ELSEWHERE), step_of(name)
    assert program.platforms == ELSEWHERE
    with pytest.raises(ValueError, match="cpu"):
        program.call(leaves)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_lowered_for_every_platform_does_here_what_the_jitted_one_does(name):
    same(name, exported(name, EVERYWHERE).call(step_of(name)[1]))


@pytest.mark.parametrize("name", STEPS)
def test_a_lowered_step_comes_back_from_bytes(name):
    for platforms in (ELSEWHERE, EVERYWHERE):
        program = jax.export.deserialize(exported(name, platforms).serialize())
        assert program.platforms == platforms
    same(name, program.call(step_of(name)[1]))


def test_another_platforms_way_is_in_a_program_for_both():
    """A convolution's dw goes by platform: the program for all holds both ways, that for one has chosen."""
    both, alone = (exported("convnet with dropout", names).mlir_module() for names in (EVERYWHERE, ("tpu",)))
    assert "_platform_index" in both
    assert "_platform_index" not in alone
    assert both.count("stablehlo.case") > alone.count("stablehlo.case")
