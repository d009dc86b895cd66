"""The benchmark: its arms compute the same thing, its figures are the right ratios, wrong requests are named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import convnet, gpt, lstm_classifier, mlp, resnet, softmax_cross_entropy, value_and_grad
from fbackprop.bench.idiomatic import IDIOMS, of_gpts
from fbackprop.bench.measure import Point, against_tuned, frontier, ratio, within
from fbackprop.bench.works import WORKS
from fbackprop.cli import main

KEY = jax.random.key(0)
CLASSES = softmax_cross_entropy()
SMALL = {"mlp": (mlp((8, 8)), (4, 12)), "cnn": (convnet((4, 6)), (4, 8, 8, 1)), "resnet": (resnet((4, 8)), (4, 8, 8, 3)),
         "lstm": (lstm_classifier(8), (4, 16, 6)), "gpt": (gpt(31, 16, 16, 4, 2), (2, 16))}


def small(name):
    net, shape = SMALL[name]
    if name == "gpt":
        tokens, target = jax.random.randint(KEY, (2, *shape), 0, 31)
        return net, None, (tokens, target)
    return net, CLASSES, (jax.random.normal(KEY, shape), jnp.arange(shape[0]) % 10)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", [*(name for name in SMALL if name != "gpt"), pytest.param("gpt", marks=pytest.mark.slow)])
def test_every_setting_of_jax_has_the_loss_and_the_gradients(name):
    net, loss, batch = small(name)
    idiom = IDIOMS[name] if name != "gpt" else of_gpts(4, 2)
    params = net.init(KEY, batch if loss is None else batch[0])
    value, grads = jax.jit(value_and_grad(net, loss))(params, batch)
    mine, _ = idiom.adapt(grads)
    for point, fn in idiom.points.items():
        (theirs, _), found = jax.jit(jax.value_and_grad(fn, has_aux=True))(*idiom.adapt(params), batch)
        assert float(theirs) == pytest.approx(float(value), rel=1e-5), point
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.max(np.abs(b)) + 1e-7, err_msg=point)


@pytest.mark.parametrize("name", WORKS)
def test_every_setting_by_hand_has_the_params_of_the_first(name):
    work = WORKS[name]
    x = jax.eval_shape(lambda: work.batch(0))
    specs = {point: jax.eval_shape(lambda key, make=make: make().init(key, x if work.loss is None else x[0]), KEY)
             for point, make in work.points.items()}
    first = next(iter(specs.values()))
    assert all(jax.tree.structure(spec) == jax.tree.structure(first) for spec in specs.values())


def at(peer, ms, mb):
    return Point(peer, f"{ms} {mb}", list(ms), [1.0], mb)


def test_ratios_are_taken_pair_by_pair():
    assert ratio(at("a", (1, 4, 9), 1), at("b", (2, 2, 3), 1)) == 2


def test_a_frontier_holds_what_nothing_beats():
    points = [at("t", (3,), 10), at("t", (1,), 30), at("t", (2,), 30), at("t", (5,), 10), at("t", (4,), 5)]
    assert [p.time for p in frontier(points)] == [1, 3, 4]
    assert within(points, 10).time == 3
    assert within(points, 1) is None


def test_against_tuned_is_the_worst_point_of_their_frontier():
    mine, theirs = [at("m", (1,), 20), at("m", (4,), 4)], [at("t", (2,), 30), at("t", (5,), 6)]
    found = against_tuned(mine, theirs)
    assert found == {"time_at_equal_memory": 0.8, "fastest": 0.5, "least_memory": 4 / 6}
    assert against_tuned(mine, [*theirs, at("t", (9,), 2)])["time_at_equal_memory"] is None


@pytest.mark.parametrize(("words", "message"), [
    (["mpl"], "Did you mean mlp?"), (["mlp", "--against", "tensorflow"], "expected some of jax, jax-tuned"),
    (["mlp", "--rounds", "0"], "--rounds"), (["nowhere.py:f"], "expected a Python file"), (["mlp", "--peer", "jax"], "bench:")])
def test_wrong_requests_are_named(words, message, capsys):
    assert main(["bench", *words]) in (2, 74)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_libraries_need_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "mlp", "--against", "torch"]) == 2
    assert "clone the repository" in capsys.readouterr().err


OWN = """
import jax.numpy as jnp
from fbackprop import chain, dense, mse, tanh
def net():
    return chain(dense(8), tanh(), dense(1)), mse(), lambda seed, step: (jnp.ones((4, 3)), jnp.ones((4, 1)))
"""


@pytest.mark.slow
def test_a_work_of_ones_own(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    work = f"{tmp_path / 'own.py'}:net"
    assert main(["bench", work, "--against", "torch"]) == 2
    assert "is no peer's" in capsys.readouterr().err
    assert main(["bench", work, "--rounds", "1", "--seconds", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["peers"].keys() == result["ratio"].keys() == {"jax"}
    assert result["gradient_error"] <= 1e-5


@pytest.mark.slow
def test_a_step_and_its_json(capsys):
    assert main(["bench", "mlp", "--against", "jax,jax-tuned", "--step", "--rounds", "1", "--seconds", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["verb"], result["work"], result["step"], result["passed"]) == ("bench", "mlp", True, True)
    assert {"ms", "temp_mb", "compile_s", "peak_share"} <= result["manual"].keys()
    assert result["ratio"]["jax"].keys() == {"time", "memory", "compile"}
    assert {"time_at_equal_memory", "least_memory"} <= result["ratio"]["jax-tuned"].keys()
    assert len(result["peers"]["jax-tuned"]["points"]) == 3
