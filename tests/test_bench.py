"""The benchmark: all programs compute the same, figures are right, wrong requests are named."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench.baselines import BASELINES, of_gpts
from bench.works import WORKS

from fbackprop import (
    auto_value_and_grad,
    chain,
    convnet,
    dense,
    dropout,
    gpt,
    lstm_classifier,
    mlp,
    relu,
    resnet,
    softmax_cross_entropy,
    value_and_grad,
)
from fbackprop.cli import main
from fbackprop.comparison.bench.benchmark import Benchmark
from fbackprop.comparison.bench.frontier_figure import frontier_figure
from fbackprop.comparison.bench.measure import Point, against_tuned, frontier, ratio, within
from fbackprop.comparison.bench.process import of_json, planned_for
from fbackprop.comparison.bench.work import Work, checkpointed

KEY = jax.random.key(0)
CLASSES = softmax_cross_entropy()
SMALL = {"mlp": (mlp((8, 8)), (4, 12)), "cnn": (convnet((4, 6)), (4, 8, 8, 1)), "resnet": (resnet((4, 8)), (4, 8, 8, 3)),
         "lstm": (lstm_classifier(8), (4, 16, 6)),
         "gpt": (gpt(31, 16, features=16, heads=4, blocks=2), (2, 16))}


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
    baseline = BASELINES[name] if name != "gpt" else of_gpts(4, 2)
    params = net.init(KEY, batch if loss is None else batch[0])
    value, grads = jax.jit(value_and_grad(net, loss))(params, batch)
    mine, _ = baseline.adapt(grads)
    for point, fn in baseline.points.items():
        program = jax.jit(jax.value_and_grad(fn, has_aux=True))
        (theirs, _), found = program(*baseline.adapt(params), batch)
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


@pytest.mark.usefixtures("quick_compile")
def test_plans_survive_json_and_change_no_gradient():
    net, loss, batch = small("lstm")
    work = Work("small", {"all kept": lambda: net}, loss, lambda seed: batch)
    params = net.init(KEY, batch[0])
    want = jax.jit(value_and_grad(net, loss))(params, batch)
    found = planned_for(work)
    assert any(each["plan"]["settings"] for each in found)
    for each in found:
        other = of_json(net, json.loads(json.dumps(each["plan"])))
        got = jax.jit(value_and_grad(other, loss))(params, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.usefixtures("quick_compile")
def test_a_net_of_ones_own_is_checkpointed_part_by_part_and_by_policy():
    net, x = chain(dense(5), relu(), dropout(0.5), dense(3)), jnp.ones((4, 6))
    params, batch = net.init(KEY, x), (x, jnp.arange(4) % 3)
    want = jax.tree.leaves(jax.jit(auto_value_and_grad(net, CLASSES))(params, batch))
    found = checkpointed(net)
    assert list(found) == ["all kept", "checkpoint a part", "dots policy", "nothing saved"]
    for name, other in found.items():
        fn = jax.jit(auto_value_and_grad(other, CLASSES))
        jaxpr = str(jax.make_jaxpr(fn)(params, batch))
        assert ("prevent_cse" in jaxpr) == (name != "all kept"), name
        for a, b in zip(jax.tree.leaves(fn(params, batch)), want, strict=True):
            assert jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) or np.allclose(a, b, rtol=1e-5), name
    assert "checkpoint a part" not in checkpointed(dense(3))


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


def lines(points):
    figure = frontier_figure(points, "a work")
    return figure.axes[0], {line.get_gid(): line for line in figure.axes[0].lines}


def test_the_figure_has_every_point_and_joins_those_that_nothing_beats():
    mine = [at("manual", (20,), 60), at("manual", (50,), 70), at("manual", (30,), 8)]
    theirs = [at("jax-tuned", (40,), 90), at("jax-tuned", (60,), 30), at("jax-tuned", (70,), 40)]
    ax, found = lines([*mine, *theirs, at("torch", (25,), None)])
    assert set(found) == {"manual points", "manual frontier", "jax-tuned points", "jax-tuned frontier", "torch time"}
    for peer, points in (("manual", mine), ("jax-tuned", theirs)):
        assert [tuple(p) for p in found[f"{peer} points"].get_xydata()] == [(p.temp_mb, p.time) for p in points]
        line = found[f"{peer} frontier"]
        assert [tuple(p) for p in line.get_xydata()] == [(p.temp_mb, p.time) for p in frontier(points)[::-1]]
        assert line.get_drawstyle() == "steps-post"
        assert line.get_color() == found[f"{peer} points"].get_color()
    assert list(found["torch time"].get_ydata()) == [25, 25]
    assert [text.get_text() for text in ax.texts] == [p.name for p in sorted(mine, key=lambda p: p.time)]
    assert len({line.get_color() for line in found.values()}) == 3
    assert ax.get_xscale() == "log"


def test_words_of_points_that_lie_together_stand_apart():
    ax, _ = lines([replace(at("manual", (20 + i / 100,), 60), name=str(i)) for i in range(4)] + [at("jax", (40,), 0)])
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert min(b - a for a, b in pairwise(heights)) > 0.03
    assert ax.get_xscale() == "linear"  # 0 has no logarithm


def test_the_ratios_of_a_benchmark_count_every_point_by_hand_against_tuned():
    points = [at("manual", (2,), 20), at("manual", (4,), 4), at("jax", (4,), 40), at("jax-tuned", (4,), 40),
              at("jax-tuned", (5,), 8), at("torch", (1,), None)]
    found = Benchmark("a work", False, points, {"gradient_error": 1e-7, "flops": 10}, 1e3)
    assert found.ratio == {"jax": {"time": 0.5, "memory": 0.5, "compile": 1.0}, "torch": {"time": 2.0},
                           "jax-tuned": {"time_at_equal_memory": 0.8, "fastest": 0.5, "least_memory": 0.5}}
    told = found.as_json
    assert [p["temp_mb"] for p in told["manual"]["points"]] == [20, 4]
    assert [p["ms"] for p in told["peers"]["jax-tuned"]["points"]] == [4, 5]
    assert told["manual"]["peak_share"] == 5.0


ROOT = Path(__file__).parents[1]


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("in_checkout")
@pytest.mark.parametrize(("words", "message"), [
    (["mpl"], "Did you mean mlp?"), (["convnet"], "expected one of mlp, cnn"),
    (["mlp", "--against", "tensorflow"], "expected some of jax, jax-tuned"),
    (["mlp", "--rounds", "0"], "--rounds"), (["nowhere.py:f"], "expected a Python file"), (["mlp", "--peer", "jax"], "bench:")])
def test_wrong_requests_are_named(words, message, capsys):
    assert main(["bench", *words]) in (2, 74)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["mlp"], ["mlp", "--against", "torch"], ["mpl"]])
def test_named_works_need_a_checkout(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert f"{words[0]!r}: expected file.py:function, or a named work in a checkout" in error
    assert "clone the repository" in error
    assert error.count("\n") == 1


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
    assert "is no other peer's" in capsys.readouterr().err
    assert main(["bench", work, "--rounds", "1", "--seconds", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["peers"].keys() == result["ratio"].keys() == {"jax"}
    assert result["gradient_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("in_checkout")
def test_a_step_and_its_json(capsys):
    assert main(["bench", "mlp", "--against", "jax,jax-tuned", "--step", "--rounds", "1", "--seconds", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["verb"], result["work"], result["step"], result["passed"]) == ("bench", "mlp", True, True)
    assert {"ms", "temp_mb", "compile_s", "peak_share"} <= result["manual"].keys()
    assert result["ratio"]["jax"].keys() == {"time", "memory", "compile"}
    assert {"time_at_equal_memory", "least_memory"} <= result["ratio"]["jax-tuned"].keys()
    assert len(result["peers"]["jax-tuned"]["points"]) == 3
