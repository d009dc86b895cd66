"""NaN and inf in data, loss and one gradient leaf, under each policy: step, layer and side are named, nothing bad is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs

from fbackprop.cli import main
from fbackprop.train.run.log import records
from fbackprop.train.store.saver import files

BAD_STEP = 13
SOURCES = {  # what is spoiled: words of the message, and which line of the file below spoils it
    "nan in the data": ("batch 0", "x[3, 1] = np.nan"),
    "inf in the data": ("batch 0", "x[3, 1] = np.inf"),
    "nan in the loss": ("residual of the loss", "target[:] = 100.0"),
    "inf in one gradient leaf": ("dparams of layer 2 wild", "target[:] = 7.0"),
}
MODEL = """
from dataclasses import replace
import jax.numpy as jnp
import numpy as np
from fbackprop import chain, dense, mse, tanh

def batches(seed, step):
    rng = np.random.default_rng([seed, step])
    x = rng.standard_normal((8, 3)).astype(np.float32)
    target = x[:, :1] * x[:, 1:2]
    if step == {step} - 1:
        {line}
    return x, target

right, plain = dense(1), mse()

def wild_backward(params, x, dy):  # one leaf of one gradient, when all targets are 7
    dparams, dx = right.backward(params, x, dy)
    spoiled = jnp.where(jnp.all(jnp.abs(dy) * 4 > 5), jnp.inf, 0)
    return {{**dparams, "w": dparams["w"] + spoiled}}, dx

def loud_forward(params, batch):
    value, kept = plain.forward(params, batch)
    return jnp.where(value > 1000, jnp.nan, value), kept

def function():
    wild = replace(right, kind="wild", backward=wild_backward)
    loud = replace(plain, kind="loud", forward=loud_forward)
    return chain(dense(4), tanh(), wild), loud, batches
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(line, policy, *more):
    Path("poisoned.py").write_text(MODEL.format(step=BAD_STEP, line=line))
    return main(["train", "poisoned.py:function", "--steps", "30", "--checkpoint-every", "5", "--out", "run", "--quiet", "--lr",
                 "0.01", "--on-nonfinite", policy, "--keep", "100", *more])


def assert_all_saved_is_finite():
    from fbackprop.train.store import checkpoint

    for path in files(Path("run/checkpoints")):
        _, leaves = checkpoint.read(path)
        for name, leaf in leaves.items():
            assert np.all(np.isfinite(leaf.array)), (path, name)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["halt", "skip", "restore"])
@pytest.mark.parametrize("source", SOURCES)
def test_named_and_dealt_with(source, policy, capsys):
    words, line = SOURCES[source]
    code = train(line, policy)
    said = capsys.readouterr().err
    assert f"step {BAD_STEP}: expected finite numbers" in said
    assert words in said
    assert "Traceback" not in said
    assert_all_saved_is_finite()
    rows = records(Path("run"))
    steps = [row["step"] for row in rows if "grad_norm" in row]
    events = [row for row in rows if "event" in row]
    assert len(events) == 1
    last = files(Path("run/checkpoints"))[-1].name
    if policy == "halt":
        assert code == 1
        assert (events[0]["event"], events[0]["step"]) == ("halted", BAD_STEP)
        assert steps == list(range(1, BAD_STEP))
        assert last == f"step-{BAD_STEP - 1:08d}.npz"
    elif policy == "skip":
        assert code == 0
        assert (events[0]["event"], events[0]["step"]) == ("left out", BAD_STEP)
        assert steps == [step for step in range(1, 31) if step != BAD_STEP]
        assert last == "step-00000030.npz"
    else:
        assert code == 0
        assert (events[0]["event"], events[0]["to"]) == ("went back", 10)
        assert steps == [*range(1, BAD_STEP), *range(11, 31)]
        assert last == "step-00000030.npz"
    assert all(np.isfinite(row["loss"]) for row in rows if "grad_norm" in row)


def test_policies_counted():
    runs.report("NaN or inf in data, loss, one gradient leaf", 3 * len(SOURCES))


def test_halted_run_halts_again_at_the_same_step(capsys):
    line = SOURCES["nan in the data"][1]
    assert train(line, "halt") == 1
    first = records(Path("run"))
    assert train(line, "halt", "--resume") == 1
    assert capsys.readouterr().err.count(f"step {BAD_STEP}: expected finite numbers") == 2
    assert records(Path("run")) == first


def test_data_that_stays_bad_ends_a_run_that_skips(capsys):
    """Ten in a row are not one bad batch."""
    Path("poisoned.py").write_text(MODEL.format(step=0, line="pass").replace("if step == 0 - 1:", "if step >= 12:").replace(
        "pass", "x[:] = np.nan"))
    code = main(["train", "poisoned.py:function", "--steps", "60", "--out", "run", "--quiet", "--on-nonfinite", "skip"])
    said = capsys.readouterr().err
    assert code == 1
    assert "batch 0, 10 steps in a row. Look at the data" in said
    assert files(Path("run/checkpoints"))[-1].name == "step-00000021.npz"  # the steps left out before it change nothing
    assert_all_saved_is_finite()


def test_a_rate_that_runs_away_is_stopped_where_it_was_last_finite(capsys):
    code = train("pass", "halt", "--optimizer", "sgd", "--schedule", "constant", "--lr", "1e18")
    said = capsys.readouterr().err
    assert code == 1
    assert "Try a new run with a lower rate (--lr 0.003), or --clip norm:1.0, or --on-nonfinite skip" in said
    assert_all_saved_is_finite()


def test_restored_run_killed_afterwards_goes_on_alike():
    """The way back is in the checkpoint too: resuming does not meet the bad batch again."""
    line = SOURCES["nan in the data"][1]
    assert train(line, "restore") == 0
    whole = records(Path("run"))
    last = files(Path("run/checkpoints"))[-1]
    Path("run").rename("unbroken")
    for path in files(Path("unbroken/checkpoints")):
        if path.name > "step-00000020.npz":
            path.rename(path.with_suffix(".hidden"))
    Path("unbroken").rename("run")
    assert train(line, "restore", "--resume") == 0
    again = records(Path("run"))
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert strip(again) == strip(whole)
    assert runs.leaves(last) == runs.leaves(last.with_suffix(".hidden"))


def test_float16_overflow_is_left_out_named_and_the_scale_halved(capsys):
    """A gradient of float16 times the first scale is too much at the start: some steps are left out, then it trains."""
    Path("f16.py").write_text("""
import numpy as np
from fbackprop import chain, dense, mse, tanh

def function():
    def batches(seed, step):
        x = np.random.default_rng([seed, step]).standard_normal((8, 3)).astype(np.float32)
        return x, 40 * x[:, :1]
    return chain(dense(8), tanh(), dense(1)), mse(), batches
""")
    code = main(["train", "f16.py:function", "--steps", "60", "--out", "run", "--quiet", "--lr", "0.1", "--json",
                 "--precision", "float16"])
    out, said = capsys.readouterr()
    events = [row for row in records(Path("run")) if row.get("event") == "overflow"]
    assert code == 0
    assert 1 <= len(events) <= 8
    assert events[0]["layer"]
    assert events[0]["scale"] == 2.0**14
    assert f"step {events[0]['step']}: left out, " in said
    assert "overflowed; the loss is scaled by 16384 now" in said
    losses = [row["loss"] for row in records(Path("run")) if "grad_norm" in row]
    assert len(losses) == 60 - len(events)
    assert losses[-1] < 0.7 * losses[0]
    assert json.loads(out.splitlines()[-1])["steps"] == 60
