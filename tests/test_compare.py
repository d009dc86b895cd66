"""compare: what it says of error, bytes, FLOPs and runs, against figures known from the shapes alone."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    activation_gradients,
    attention,
    batch_norm,
    chain,
    checkpoint,
    conv2d,
    dense,
    dropout,
    from_function,
    global_avg_pool,
    layer_norm,
    lstm,
    mse,
    relu,
    repeat,
    skip,
    softmax_cross_entropy,
    take_last,
    tanh,
    value_and_grad,
)
from fbackprop.cli import main
from fbackprop.comparison.bench import benchmark, measure, process
from fbackprop.comparison.costs import calls, compare
from fbackprop.jaxprs.flops import count_flops, traffic_of

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)


def batch_of(*shape, classes=3):
    x = jax.random.normal(jax.random.key(1), shape)
    return x, jax.random.randint(jax.random.key(2), shape[:1], 0, classes)


def compared(net, batch, loss=None):
    loss = loss or softmax_cross_entropy()
    params = net.init(KEY, batch[0])
    return params, compare(net, loss, params, batch, pairs=1)


# FLOPs

@pytest.mark.parametrize(("fn", "shapes", "flops"), [
    (jnp.matmul, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
    (jnp.tanh, [(3, 5)], 15),
    (jnp.sum, [(3, 5)], 15),
    (lambda x: x.T.reshape(3, 5)[1:], [(3, 5)], 0),
    (lambda x: x.astype(jnp.bfloat16), [(3, 5)], 0),
    (lambda x, w: (x @ w, jnp.exp(x))[0], [(3, 5), (5, 7)], 210),
    (lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=4)[0], [(3, 5), (5, 5)], 4 * 150),
    (jax.jit(lambda x, w: jax.checkpoint(jnp.matmul)(x, w)), [(3, 5), (5, 7)], 210),
    (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, lambda x: jnp.sin(jnp.cos(x)), x), [(3, 5)], 30),
    (lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: jnp.sin(jnp.cos(x))), [(3, 5)], 15),
], ids=["matmul", "elementwise", "reduction", "moves", "cast", "dead code", "scan", "inside jit", "cond", "platform"])
def test_flops_by_formula(fn, shapes, flops):
    if jax.default_backend() != "cpu" and "platform" in str(fn):
        pytest.skip("counts the branch of a CPU")
    assert count_flops(fn, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)) == flops


def test_every_product_reads_its_weights_again():
    x, w = jnp.ones((8, 5)), jnp.ones((5, 7))
    rows = jax.make_jaxpr(lambda x, w: jax.lax.scan(lambda _, row: (None, row @ w), None, x))
    assert traffic_of(jax.make_jaxpr(jnp.matmul)(x, w).jaxpr) == 4 * (8 * 5 + 5 * 7 + 8 * 7)
    assert traffic_of(rows(x[:, None], w).jaxpr) == 4 * (8 * 5 + 8 * 5 * 7 + 8 * 7)


def test_a_block_that_a_loop_cuts_out_or_puts_in_is_traffic_and_one_written_out_is_none():
    x, block = np.ones((8, 5), np.float32), np.ones((1, 5), np.float32)

    def moved(i):
        return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, (i, 0), (1, 5)), (i, 0))

    looped = jax.make_jaxpr(lambda: jax.lax.map(moved, np.arange(8)))().jaxpr
    assert traffic_of(looped) == 8 * 2 * block.nbytes
    assert traffic_of(jax.make_jaxpr(lambda: moved(3))().jaxpr) == 0
    assert traffic_of(jax.make_jaxpr(lambda i: jax.lax.dynamic_slice(x, (i, 0), (8, 5)))(0).jaxpr) == 0  # all of it


def test_a_convolution_counts_two_for_each_weight_it_meets():
    layer, x = conv2d(4, 3), jax.ShapeDtypeStruct((2, 8, 6, 5), jnp.float32)
    params = jax.eval_shape(layer.init, KEY, x)
    assert count_flops(lambda p, x: layer.forward(p, x)[0], params, x) == 2 * 2 * 8 * 6 * 4 * (9 * 5) + 2 * 8 * 6 * 4


def test_a_dense_costs_as_much_for_dx_and_for_dparams_as_forward():
    batch = batch_of(32, 20)
    _, found = compared(chain(dense(64), relu(), dense(3)), batch)
    first, _, last, _ = found.layers
    assert (first.forward_flops, first.dx_flops, first.dparams_flops) == (
        2 * 32 * 20 * 64 + 32 * 64, 2 * 32 * 20 * 64, 2 * 32 * 20 * 64 + 32 * 64)
    assert last.dx_flops == 2 * 32 * 64 * 3
    # the first layer's dx is nobody's: loss and gradients cost a little less than three forwards
    assert 2 < found.manual.flops / found.forward_flops < 3


# bytes

def test_bytes_kept_by_hand_and_by_jax():
    batch = batch_of(32, 20)
    _, found = compared(chain(dense(64), tanh(), dense(3)), batch)
    by_path = {row.path: row for row in found.layers}
    assert by_path["0"].kept == by_path["0"].auto_kept == 32 * 20 * 4  # its x; the weights are at hand anyway
    assert by_path["1"].kept == 32 * 64 * 4
    assert by_path["1"].auto_kept >= 32 * 64 * 4
    assert by_path["2"].kept == 0  # its x is tanh's y
    assert by_path["2"].auto_kept in (0, 32 * 64 * 4)  # newer jax keeps 1 - y * y for tanh, and y for this one
    assert found.manual.temp_bytes > 0


# what a layer is given

def test_layers_are_measured_at_what_they_are_given_in_the_net():
    net, batch = chain(dense(7), skip(chain(layer_norm(), dense(7))), relu(), dense(3)), batch_of(6, 5)
    loss = softmax_cross_entropy()
    params = net.init(KEY, batch[0])
    found = calls(net, loss, params, batch)
    assert list(found) == ["0", "1/0/0", "1/0/1", "2", "3", "loss"]
    for path, dy in activation_gradients(net, loss)(params, batch).items():
        if path in found:
            np.testing.assert_allclose(found[path].dy, dy, rtol=1e-6)
    np.testing.assert_array_equal(found["0"].x, batch[0])
    np.testing.assert_array_equal(found["1/0/1"].params["w"], params[1][0][1]["w"])
    np.testing.assert_allclose(found["3"].x, jnp.maximum(found["2"].x, 0))


def test_a_repeated_layer_counts_as_often_as_it_runs():
    batch = batch_of(6, 5)
    params, found = compared(chain(repeat(chain(dense(5), tanh()), 4), dense(3)), batch)
    row = found.layers[0]
    assert row.runs == 4
    assert row.forward_flops == 4 * (2 * 6 * 5 * 5 + 6 * 5)
    last = calls(chain(repeat(chain(dense(5), tanh()), 4), dense(3)), softmax_cross_entropy(), params, batch)["0/0/0"]
    np.testing.assert_array_equal(last.params["w"], params[0][0][0]["w"][-1])


@pytest.mark.parametrize(("net", "shape"), [
    (chain(lstm(4), take_last(), dense(3)), (3, 5, 2)),
    (chain(dense(12), attention(2), take_last(), dense(3)), (3, 5, 2)),
    (chain(conv2d(4, 3, bias=False), batch_norm(), relu(), global_avg_pool(), dense(3)), (3, 5, 5, 2)),
    (chain(dense(6), dropout(0.5), dense(3)), (3, 5)),
    (chain(checkpoint(chain(layer_norm(), dense(6))), repeat(repeat(skip(dense(6)), 2), 3), dense(3)), (3, 5)),
], ids=["lstm", "attention", "batch norm", "dropout", "checkpoint and repeats"])
def test_right_rules_differ_by_rounding_in_every_layer(net, shape):
    _, found = compared(net, batch_of(*shape))
    assert max(row.error for row in found.layers) < 1e-5
    assert found.max_gradient_error < 1e-5
    assert all(row.manual_ms > 0 for row in found.layers)


def test_a_wrong_rule_shows_in_its_own_row_alone():
    wrong = relu()
    wrong = replace(wrong, backward=lambda params, y, dy: ((), dy))
    _, found = compared(chain(dense(8), wrong, dense(3)), batch_of(6, 5))
    assert [row.path for row in found.layers if row.error > 1e-5] == ["1"]
    assert found.max_gradient_error > 1e-2


def test_a_net_that_ends_in_its_loss_has_no_row_for_one():
    def value(params, batch):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)

    net = from_function(value, lambda key, batch: {"w": jnp.ones((5, 1))})
    batch = jnp.ones((3, 5)), jnp.zeros((3, 1))
    found = compare(net, None, net.init(KEY, batch), batch, pairs=1)
    assert [row.path for row in found.layers] == [""]
    assert value_and_grad(net)(net.init(KEY, batch), batch)[0] == 25


def test_a_target_that_is_floating_gets_a_cotangent():
    net, batch = chain(dense(2)), (jnp.ones((3, 5)), jnp.zeros((3, 2)))
    found = compare(net, mse(), net.init(KEY, batch[0]), batch, pairs=1)
    assert found.layers[-1].path == "loss"
    assert found.layers[-1].error < 1e-5


# the command

OWN = """
import numpy as np
from dataclasses import replace
from fbackprop import chain, dense, mse, repeat, tanh

def batches(seed, step):
    x = np.random.default_rng([seed, step]).standard_normal((8, 3)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)

def right():
    return chain(dense(4), tanh(), dense(1)), mse(), batches

def wrong():
    return chain(dense(4), replace(tanh(), backward=lambda params, y, dy: ((), dy)), dense(1)), mse(), batches

def not_finite():
    def backward(params, y, dy):
        return (), dy * float("nan")
    return chain(dense(4), replace(tanh(), backward=backward), dense(1)), mse(), batches

def deep():
    return chain(repeat(chain(tanh(), dense(32)), 36), dense(1)), mse(), many

def many(seed, step):
    x = np.random.default_rng([seed, step]).standard_normal((512, 32)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)

def other_shape():
    return chain(dense(4), tanh(), dense(2)), mse(), batches
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_tells_saves_and_draws(own, capsys):
    assert main(["compare", "own.py:right", "--pairs", "2", "--json"]) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert json.loads((own / "runs/compare/compare.json").read_text()) == result
    assert (own / "runs/compare/compare.png").read_bytes()[:4] == b"\x89PNG"
    assert set(result["ratio"]) == {"time", "memory", "compile"}
    assert [row["layer"] for row in result["layers"]] == ["dense(4)", "tanh()", "dense(1)", "mse()"]
    assert "largest gradient error" in said


@pytest.fixture
def in_this_process(monkeypatch):
    """Of what a fresh process does, all but the process."""
    def ask(request):
        return process.main(json.loads(json.dumps(request)))

    monkeypatch.setattr(measure, "ask", ask)
    monkeypatch.setattr(benchmark, "ask", ask)


def test_the_frontier_is_measured_told_saved_and_drawn(own, capsys, in_this_process):
    argv = ["compare", "own.py:deep", "--against", "jax,jax-tuned", "--pairs", "1", "--rounds", "1", "--seconds", "0.01"]
    assert main([*argv, "--json"]) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert json.loads((own / "runs/compare/compare.json").read_text()) == result
    assert (own / "runs/compare/frontier.png").read_bytes()[:4] == b"\x89PNG"
    found = result["frontier"]
    assert found["ratio"].keys() == found["peers"].keys() == {"jax", "jax-tuned"}
    assert [p["point"] for p in found["peers"]["jax-tuned"]["points"]] == [
        "all kept", "checkpoint a part", "dots policy", "nothing saved"]
    kept, *planned = found["manual"]["points"]
    assert kept["point"] == "all kept"
    assert planned
    for p in planned:
        assert p["temp_mb"] < kept["temp_mb"]
        assert p["point"] == f"planned, {p['temp_mb']:.3g} MB"
        assert p["point"] in said
    assert "by hand over jax-tuned: time at equal memory" in said


def test_a_loss_that_differs_is_exit_code_1(own, capsys, in_this_process, monkeypatch):
    whole = process.main

    def other(request):
        found = whole(request)
        return {**found, "value": 1.1 * found["value"]} if request["peer"] == "jax" else found

    monkeypatch.setattr(process, "main", other)
    argv = ["own.py:right", "--against", "jax", "--pairs", "1", "--rounds", "1", "--seconds", "0.01", "--json"]
    assert main(["compare", *argv]) == 1
    said = capsys.readouterr()
    assert not json.loads(said.out.splitlines()[-1])["passed"]
    assert "not the same computation" in said.err


def test_without_peers_there_is_no_frontier(own, capsys):
    assert main(["compare", "own.py:right", "--pairs", "1", "--json"]) == 0
    assert "frontier" not in json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (own / "runs/compare/frontier.png").exists()


def test_a_wrong_rule_is_exit_code_1(own, capsys):
    assert main(["compare", "own.py:wrong", "--pairs", "1", "--text"]) == 1
    assert not (own / "runs").exists()


def test_a_gradient_that_is_no_number_is_no_small_error(own, capsys):
    assert main(["compare", "own.py:not_finite", "--pairs", "1", "--text", "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert result["max_gradient_error"] == "nan"
    assert [row["error"] for row in result["layers"]][1] == "nan"


@pytest.mark.parametrize(("argv", "code", "words"), [
    (["mnits"], 2, "Did you mean mnist?"), (["mnist", "--pairs", "0"], 2, "at least 1"), (["none.py:net"], 74, "found none"),
    (["own.py:other_shape"], 2, "mse()"), (["mnist", "--batch-size", "0"], 2, "batch"), ([], 2, "A model's name"),
    (["mlp", "--against", "tensorflow"], 2, "expected some of jax, jax-tuned"),
    (["convnet", "--against", "jax"], 2, "expected file.py:function"),
    (["own.py:right", "--against", "jax,torch"], 2, "Leave torch out"),
    (["mlp", "--against", "flax"], 2, "clone the repository"),  # the working directory is no checkout
    (["mlp", "--against", "jax", "--batch-size", "8"], 2, "has its own batch"),
    (["mlp", "--against", "jax", "--rounds", "0"], 2, "at least 1")])
def test_a_mistake_is_one_line(own, capsys, argv, code, words):
    assert main(["compare", *argv]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
