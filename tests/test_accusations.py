"""What `train` says of a rule: a wrong one is accused at any rate, a right one never.

A run that diverges is said to diverge.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accusations import ACCUSED, short_run, short_runs

from fbackprop import (
    binary_cross_entropy_with_logits,
    chain,
    check_network,
    dense,
    mse,
    relu,
    softmax_cross_entropy,
    tanh,
)
from fbackprop.cli import main
from fbackprop.transform import replace_rules
from fbackprop.verify.gradient_error import gradient_error

pytestmark = pytest.mark.usefixtures("quick_compile")

BOUND = 1e-5


def scaled_rule(layer, factor):
    """Returns the layer with its dw off by a factor."""
    def backward(params, residuals, dy):
        dparams, dx = layer.backward(params, residuals, dy)
        return {**dparams, "w": factor * dparams["w"]}, dx

    return replace(layer, backward=backward)


def batch_of(*shape, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    return x, rng.integers(0, classes, shape[0]).astype(np.int32)


def error_at(net, scale, batch, loss=None):
    """The errors with params as large as high rates make them."""
    params = jax.tree.map(lambda a: scale * a, net.init(jax.random.key(0), batch[0]))
    return gradient_error(net, loss or softmax_cross_entropy())(params, batch, 0)[0]


NET = chain(dense(16), tanh(), dense(16), relu(), dense(3))


@pytest.mark.parametrize("factor", [1.001, 2.0, -1.0, 0.0])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_wrong_rule_is_accused_in_its_own_leaf(factor, scale):
    wrong = replace_rules(NET, "2", lambda layer: scaled_rule(layer, factor))
    errors = error_at(wrong, scale, batch_of(12, 5))
    assert [path for path, error in errors.items() if error > BOUND] == ["2/w"]
    assert errors["2/w"] == pytest.approx(abs(factor - 1), rel=1e-2)


def test_a_rule_that_gives_nan_has_no_small_error():
    """`compare` refuses it; in a run the step is not finite, and the layer is named."""
    wrong = replace_rules(NET, "2", lambda layer: scaled_rule(layer, jnp.nan))
    assert np.isnan(error_at(wrong, 1.0, batch_of(12, 5))["2/w"])


def test_a_gradient_that_jax_cannot_give_accuses_nobody():
    x, labels = batch_of(12, 5)
    x[0, 0] = np.inf
    errors = error_at(NET, 1.0, (x, labels))
    assert not any(error > BOUND for error in errors.values())
    assert any(np.isnan(error) for error in errors.values())


def test_params_beyond_the_square_root_of_float32_are_judged_in_float64():
    """The value overflows in float32 and not in float64."""
    x, labels = batch_of(12, 5)
    batch = x, labels[:, None].astype(np.float32)
    errors = error_at(chain(dense(4), dense(1)), 1e15, batch, mse())
    assert max(errors.values()) <= BOUND


def test_a_head_of_zeros_under_binary_cross_entropy_accuses_nobody():
    """Every logit is 0, where autodiff of the loss was wrong."""
    net, loss = chain(dense(4), relu(), dense(1)), binary_cross_entropy_with_logits()
    x, labels = batch_of(12, 5, classes=2)
    batch = x, labels[:, None].astype(np.float32)
    assert max(error_at(net, 0.0, batch, loss).values()) <= BOUND
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), x))
    assert check_network(net, loss, params, batch).verdict != "WRONG"


# ---- in a run

MINE = """
from dataclasses import replace
import numpy as np
from fbackprop import chain, dense, mse, tanh

def batches(seed, step):
    x = np.random.default_rng([seed, step]).standard_normal((8, 3)).astype(np.float32)
    return x, 2 * x[:, :1]

def wrong(factor):
    layer = dense(4)
    def backward(params, residuals, dy):
        dparams, dx = layer.backward(params, residuals, dy)
        return {**dparams, "w": factor * dparams["w"]}, dx
    return replace(layer, backward=backward)

right = lambda: (chain(dense(4), tanh(), dense(1)), mse(), batches)
by_a_thousandth = lambda: (chain(wrong(1.001), tanh(), dense(1)), mse(), batches)
linear = lambda: (chain(dense(4), dense(1)), mse(), batches)
"""


def train(tmp_path, name, *more):
    (tmp_path / "mine.py").write_text(MINE)
    model, out = f"{tmp_path / 'mine.py'}:{name}", str(tmp_path / "run")
    return main(["train", model, "--steps", "20", "--out", out, "--quiet", *more])


OTHER_RATES = [pytest.param(rate, marks=pytest.mark.slow) for rate in ("0.001", "100")]


@pytest.mark.parametrize("rate", ["1", *OTHER_RATES])
def test_a_run_accuses_a_wrong_rule_at_any_rate_and_no_right_one(tmp_path, capsys, rate):
    assert train(tmp_path, "by_a_thousandth", "--lr", rate) == 0
    assert ACCUSED in capsys.readouterr().err
    assert train(tmp_path, "right", "--lr", rate, "--force") == 0
    assert ACCUSED not in capsys.readouterr().err


def test_a_run_that_diverges_ends_as_divergence(tmp_path, capsys):
    assert train(tmp_path, "linear", "--lr", "1e9", "--optimizer", "sgd") == 1
    said = capsys.readouterr().err
    assert "not finite" in said or "nan" in said or "inf" in said
    assert ACCUSED not in said


@pytest.mark.slow
def test_short_runs_at_any_rate_accuse_nobody():
    """experiments/accusations.py takes a hundred, of four models."""
    runs = list(short_runs(("mnist", "recommender", "lstm"), 7, 24))
    assert len(runs) == 21
    assert [run for run in runs if run.accused or run.error > BOUND] == []


@pytest.mark.slow
def test_digits_at_the_rate_1_accuse_nobody():
    """In float32 the error of a gradient at rounding level was 5e-2 there, of a right rule."""
    run = short_run("mnist", 1.0, 0, 160, batch_size=50)
    assert (run.code, run.accused) == (0, False)
    assert run.error <= BOUND
