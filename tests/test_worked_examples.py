"""experiments/worked_examples.py: the figures of W1 to W9 and C8, each against something that is not the script."""

import csv
import importlib.util
import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "worked_examples.py"


@pytest.fixture(scope="module")
def worked():
    spec = importlib.util.spec_from_file_location("worked_examples", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def command(worked, *arguments):
    return worked.main(worked.experiment, arguments, worked.add_options)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def row(worked):
    """Each row is computed once."""
    return cache(lambda name: worked.ROWS[name]())


def expect(values, **figures):
    """Each figure to the digits written: a text is rounded, a number exact."""
    for name, figure in figures.items():
        if isinstance(figure, str):
            assert f"{values[name]:.{len(figure.partition('.')[2])}f}" == figure, name
        else:
            assert values[name] == pytest.approx(figure, rel=1e-12, abs=1e-15), name


def expect_chain(worked, row, values):
    """At least one gradient stands beside the chain's, and all agree."""
    assert any(name.startswith("chain ") for name in values)
    assert worked.missed(row, values) == []


def test_w1_one_weight_one_step(worked, row):
    values = row("W1")
    expect(values, w=2.0, gradient=0.5, rate=0.1, step=0.05, **{"w after": 1.95})
    expect_chain(worked, "W1", values)


def test_w2_relu_neuron(worked, row):
    values = row("W2")
    expect(values, z=7.0, a=7.0, L=4.0, **{"dL/da": 4.0, "da/dz": 1.0, "dz/dw": 2.0, "dL/dw": 8.0, "dL/db": 4.0})
    expect(values, **{"w + 1: rise": 12.0, "w + 1: rise foretold": 8.0, "w + 0.01: rise": 0.0804})
    expect_chain(worked, "W2", values)


def test_w3_sigmoid_neuron(worked, row):
    values = row("W3")
    expect(values, z="1.1", a="0.75026", L="0.06237", **{"dL/da": "-0.49948", "da/dz": "0.18737", "dL/dw": "-0.18717"})
    expect(values, **{"dL/db": "-0.09359", "w after 1 step": "0.51872", "b after 1 step": "0.10936"})
    expect(values, **{"w after 1000 steps": "1.55497", "b after 1000 steps": "0.62749", "a after 1000 steps": "0.97674"})
    expect(values, **{"L after 1000 steps": "0.000541", "a = .75: L": 0.0625, "a = .75: dL/da": -0.5})
    expect(values, **{"a = .75: da/dz": 0.1875, "a = .75: dL/dw": -0.1875, "a = .75: w after 1 step": 0.51875})
    expect_chain(worked, "W3", values)


@pytest.mark.peers
def test_w3_is_what_pytorch_prints(row):
    torch = pytest.importorskip("torch")
    w, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.1))
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    theirs = {}
    for n in range(1, 1001):
        optimizer.zero_grad()
        ((1.0 - torch.sigmoid(w * 2.0 + b)) ** 2).backward()
        if n == 1:
            theirs |= {"dL/dw": w.grad.item(), "dL/db": b.grad.item()}
        optimizer.step()
        if n in (1, 1000):
            end = f"after {n} step{'s' * (n > 1)}"
            theirs |= {f"w {end}": w.item(), f"b {end}": b.item()}
    ours = row("W3")
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-12)


STARTS = [{}, {"w1": 2.0, "w2": -1.5, "b1": 0.3, "w3": -4.0, "b2": 1.0}, {"x1": -3.0, "x2": 0.0, "y": 0.0, "w3": 0.25}]


@pytest.mark.parametrize("changes", STARTS)
def test_w4_every_factor_for_any_start(worked, changes):
    values = worked.w4(**changes)
    expect_chain(worked, "W4", values)
    five = [values[name] for name in ("dL/da2", "da2/dz2", "dz2/da1", "da1/dz1", "dz1/dw1")]
    assert values["dL/dw1"] == pytest.approx(math.prod(five), rel=1e-12)
    assert five[2::2] == [values["w3"], values["x1"]]
    for a, z, factor in (("a1", "z1", five[3]), ("a2", "z2", five[1])):
        assert factor == pytest.approx((math.tanh(values[z] / 2 + 1e-6) - math.tanh(values[z] / 2 - 1e-6)) / 8e-6, rel=1e-8)
        assert values[a] == pytest.approx((1 + math.tanh(values[z] / 2)) / 2, rel=1e-12)  # a sigmoid is a tanh


def test_w4_inputs_and_target_are_the_exercise(worked):
    expect(worked.GIVEN, x1=0.5, x2=0.3, y=1.0)


class Sheet:
    """A spreadsheet that knows B cells, + - * / ^ and EXP: nothing of the script's."""

    def __init__(self, path, changes):
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert len(header) == 3
        assert all(len(row) == 3 and row[2] for row in rows)
        self.names = [row[0] for row in rows]
        self.cells = {f"B{n}": str(changes.get(row[0], row[1])) for n, row in enumerate(rows, 2)}

    def value(self, cell):
        text = self.cells[cell]
        if not text.startswith("="):
            return float(text)
        filled = re.sub(r"B\d+", lambda ref: f"({self.value(ref[0])!r})", text[1:])
        return eval(filled.replace("^", "**"), {"__builtins__": {}, "EXP": math.exp})

    def values(self):
        return {name: self.value(cell) for name, cell in zip(self.names, self.cells)}


@pytest.mark.parametrize("changes", STARTS)
def test_w4_sheet_is_live(worked, tmp_path, changes):
    path = tmp_path / "made" / "w4.csv"
    worked.write_sheet(path)
    ours = {name: value for name, value in worked.w4(**changes).items() if not name.startswith("chain ")}
    assert Sheet(path, changes).values() == pytest.approx(ours, rel=1e-12)


def test_w5_general_equations(worked, row):
    values = row("W5")
    expect_chain(worked, "W5", values)
    assert {f"chain mean {d}_{k}" for k in (1, 2, 3, 4) for d in ("dW", "db")} < values.keys()
    assert sum(values["delta_4"]) == pytest.approx(0, abs=1e-15)  # p and y both sum to 1
    for k in (1, 2, 3, 4):
        assert np.array_equal(values[f"db_{k}"], values[f"delta_{k}"])
        assert np.array_equal(values[f"dW_{k}"], np.outer(values[f"delta_{k}"], values[f"a_{k - 1}"]))


@pytest.mark.parametrize(("widths", "hidden"), [((3, 2), ()), ((3, 2, 5, 3, 2, 7), ("sigmoid", "relu", "tanh", "relu"))])
def test_w5_any_depth(worked, widths, hidden):
    expect_chain(worked, "W5", worked.layered(widths, hidden, examples=4, seed=1))


def test_w5_an_equation_without_its_slope_is_seen(worked, monkeypatch):
    monkeypatch.setitem(worked.SLOPES, "tanh", (np.tanh, np.ones_like))
    assert worked.missed("W5", worked.layered((2, 3, 5), ("tanh",)))


def test_w6_telephone(worked, row):
    values = row("W6")
    expect(values, **{"1 triple: sensitivity": 3.0, "2 square: sensitivity": 3.0, "2 square: product so far": 9.0})
    locals_ = [value for name, value in values.items() if name.endswith(": sensitivity")]
    assert len(locals_) == len(worked.STAGES)
    assert values["dy/dx"] == pytest.approx(math.prod(locals_), rel=1e-12)
    assert "difference dy/dx" in values
    expect_chain(worked, "W6", values)


@pytest.mark.parametrize("order", [(4,), (3, 1, 1), (2, 0, 4, 2, 1, 3)])
def test_w6_any_chain_of_stages(worked, order):
    expect_chain(worked, "W6", worked.w6([worked.STAGES[n] for n in order], x=-0.2))


def test_w6_a_wrong_sensitivity_is_seen(worked):
    lie = ("square", lambda x: x**2, lambda x: x)
    assert "difference" in worked.missed("W6", worked.w6([lie], x=3.0))[0]


def test_w7_credit_of_every_weight_from_output_to_input(worked, row):
    values = row("W7")
    expect_chain(worked, "W7", values)
    arrows = [name for name in values if name.startswith("dL/dw ")]
    assert len(arrows) == 3 * 2 + 2 * 3 + 1 * 2
    assert all(f"chain {arrow}" in values for arrow in arrows)
    heads = [re.search(r"-> (\w+)", arrow)[1] for arrow in arrows]
    assert list(dict.fromkeys(heads)) == ["y", "h2", "h1"]
    assert heads == sorted(heads, reverse=True)


def test_w8_five_factors(worked, row):
    values = row("W8")
    expect_chain(worked, "W8", values)
    names = ["dL/da2", "da2/dz2", "dz2/da1", "da1/dz1", "dz1/dW1"]
    assert list(values)[:5] == names
    assert [values[name].shape for name in names] == [(1, 2), (2, 2), (2, 3), (3, 3), (3, 6)]
    product = values[names[0]]
    for name in names[1:]:
        product = product @ values[name]
    np.testing.assert_allclose(product.reshape(3, 2), values["chain dL/dW1"], rtol=1e-12)


def test_w9_what_a_gradient_says(worked, row):
    values = row("W9")
    expect_chain(worked, "W9", values)
    size = {place: abs(values[f"{place}: gradient"]) for place in ("steep", "gentle", "minimum")}
    assert size["steep"] > 3 * size["gentle"] > 0
    assert size["minimum"] == 0
    for place in size:
        small = -1  # at the smallest step the sign of the gradient is the sign of the rise; at the minimum every way is up
        assert np.sign(values[f"{place}: rise"][small]) == (np.sign(values[f"{place}: gradient"]) or 1)
        foretold, error = values[f"{place}: gradient"] * values[f"{place}: step"], values[f"{place}: error"]
        np.testing.assert_allclose(error, abs(values[f"{place}: rise"] - foretold), rtol=1e-12)
        assert error[2] / error[3] == pytest.approx(100, rel=0.05)


def test_c8_shares_of_blame(worked, row):
    values = row("C8")
    expect_chain(worked, "C8", values)
    for case, parts in {"report card": ("big", "small", "tiny"), "factory": ("steel", "engine", "paint", "car")}.items():
        share, gradient, step = ([values[f"{case}, {part}: {column}"] for part in parts]
                                 for column in ("share", "gradient", "step"))
        assert sum(share) == pytest.approx(1, rel=1e-12)
        assert share == sorted(share, reverse=True)
        assert step == pytest.approx([-0.01 * g for g in gradient], rel=1e-12)
        assert [abs(s) / sum(map(abs, step)) for s in step] == pytest.approx(share, rel=1e-12)


def test_c8_blame_has_no_sign(worked):
    net, params = worked.dense(1, bias=False), worked.affine([[1.0, 2.0]])
    values = worked.blame("pull", net, params, [3.0, -1.0], ("up", "down"), [-6.0, 2.0])
    expect_chain(worked, "", values)
    expect(values, **{"pull, up: share": 0.75, "pull, down: share": 0.25, "pull, up: step": 0.06, "pull, down: step": -0.02})


@pytest.mark.parametrize(("name", "value"), [("a", 0.7), ("chain dL/dw", 8.1), ("chain dL/db", math.nan), ("L", math.nan)])
def test_a_figure_that_does_not_come_out_is_told(worked, row, monkeypatch, tmp_path, capsys, name, value):
    changed = row("W2") | {name: value}
    monkeypatch.setitem(worked.ROWS, "W2", lambda: changed)
    assert command(worked, "W2", "--out", str(tmp_path)) == 1
    assert f"MISSED {name.removeprefix('chain ')} = " in capsys.readouterr().out


def run(*arguments, cwd):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_command_prints_every_row(worked, tmp_path):
    done = run(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^([WC]\d)  ", done.stdout, re.M) == ["W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9", "C8"]
    assert re.search(r"dL/dw += 8   \(chain 8\)", done.stdout)
    assert (tmp_path / "runs" / "experiments" / "w4.csv").exists()


def test_command_takes_ids_in_either_case_and_writes_a_sheet_only_for_w4(worked, tmp_path, capsys):
    assert command(worked, "w1", "W1", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out.count("w after") == 1
    assert not (tmp_path / "w4.csv").exists()


def test_unknown_id(tmp_path):
    done = run("W1", "W10", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "W10: expected some of W1" in done.stderr.splitlines()[-1]


def test_a_directory_that_cannot_be_written(worked, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert command(worked, "W4", "--out", str(tmp_path / "file")) == 74
    assert str(tmp_path / "file") in capsys.readouterr().err
