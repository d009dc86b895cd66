"""A run as people disturb it: what is said is true, what is written can be read, and no mistake shows a traceback."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fbackprop.cli import main
from fbackprop.train.run.log import records
from fbackprop.train.store import checkpoint
from fbackprop.train.store.rundir import at_work, open_run
from fbackprop.train.store.saver import files
from fbackprop.train.task.config import TrainConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

MINE = """
from dataclasses import replace
import numpy as np
from fbackprop import chain, dense, mse, tanh

def batches(seed, step):
    x = np.random.default_rng([seed, step]).standard_normal((8, 3)).astype(np.float32)
    {spoil}
    return x, 2 * x[:, :1]

def function():
    last = dense(1)
    {change}
    return chain(dense(4), tanh(), last), mse(), batches
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*more, spoil="pass", change="pass", steps=6):
    Path("mine.py").write_text(MINE.format(spoil=spoil, change=change))
    return main(["train", "mine.py:function", "--steps", str(steps), "--out", "run", "--quiet", *more])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_narrow_run_is_watched(precision):
    assert train("--precision", precision, "--watch-every", "2") == 0
    assert [row["step"] for row in records(Path("run")) if "look" in row] == [2, 4, 6]
    assert [row for row in records(Path("run")) if "look" in row][-1]["gradient_spread"] >= 1


def test_a_checkpoint_gone_back_to_is_not_looked_at_again(capsys):
    """Its epoch is in metrics.jsonl already, with the loss that it had."""
    assert train("--on-nonfinite", "restore", "--checkpoint-every", "2", spoil="x[0] = np.nan if step == 4 else x[0]") == 0
    rows = records(Path("run"))
    assert [row["to"] for row in rows if row.get("event") == "went back"] == [4]
    epochs = [row for row in rows if "train_loss" in row]
    assert [row["step"] for row in epochs] == [0, 1, 2, 3, 4, 5, 6]
    assert all(row["train_loss"] > 0 for row in epochs[1:])


def test_a_bad_batch_is_no_layers_fault(capsys):
    """`batch 0` is a leaf of the batch; the net has a layer 0 too."""
    assert train("--on-nonfinite", "skip", spoil="x[0] = np.nan if step == 4 else x[0]") == 0
    event = next(row for row in records(Path("run")) if "event" in row)
    assert (event["origin"], event["layer"], event["side"]) == ("batch 0", "", "batch")


def test_a_run_cannot_end_before_where_it_is(capsys):
    assert train() == 0
    assert train("--resume", steps=4) == 2
    assert "steps: expected at least 6, which run has taken, got 4" in capsys.readouterr().err


def test_the_last_step_is_saved_once(monkeypatch):
    written, write = [], checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    assert train("--checkpoint-every", "3") == 0
    assert written == ["step-00000003.npz", "step-00000006.npz"]


def test_to_resume_without_a_config_is_told_what_is_missing(capsys):
    assert train() == 0
    Path("run/config.toml").unlink()
    assert train("--resume") == 2
    said = capsys.readouterr().err
    assert f"{Path('run/config.toml')}: expected it" in said
    assert "--resume to" not in said  # it was given
    assert len(files(Path("run/checkpoints"))) == 3


def test_a_full_disk_leaves_the_config(capsys):
    assert train() == 0
    before, limits = Path("run/config.toml").read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        assert main(["train", "mine.py:function", "--steps", "8", "--out", "run", "--quiet", "--resume"]) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path("run/config.toml").read_text() == before
    assert train("--resume", steps=8) == 0


@pytest.mark.parametrize("kept", [0, 150])
def test_metrics_cut_short_by_somebody_stay_json(kept, capsys):
    assert train() == 0
    path = Path("run/metrics.jsonl")
    path.write_bytes(path.read_bytes()[:kept])
    assert train("--resume", steps=8) == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-3:] == [7, 8, 8]


OTHERS = {  # what is changed after the stop: the file's old text, its new text, what is refused
    "another layer": ("tanh()", "relu()", "code"),
    "another constant": ("scaled(2.0)", "scaled(3.0)", "code"),
    "another array": ("np.ones(4)", "np.arange(4.0)", "code"),
    "another loss": ("mse()", "huber()", "code"),
    "other batches": ("2 * x[:, :1]", "3 * x[:, :1]", "data"),
    "one number of a later batch": ("step == 100", "step == 3", "data"),
    "one number of an array": ("TABLE[0, 0] = 0", "TABLE[0, 0] = 1", "data"),
    "other held-out data": ("HELD = 0", "HELD = 1", "data"),
}
WITH_DATA = """
import numpy as np
from fbackprop import Layer, chain, dense, huber, mse, relu, tanh
from fbackprop.train import Task

TABLE = np.zeros((1000, 3), np.float32)
TABLE[0, 0] = 0
HELD = 0

def scaled(by):
    return Layer("scaled", lambda key, x: (), lambda params, x: (x * by, ()), lambda params, kept, dy: ((), dy * by))

def batches(seed, step):
    x = np.random.default_rng([seed, step]).standard_normal((8, 3)).astype(np.float32) + TABLE[step + 1]
    x[3, 1] += 1e-3 * (step == 100)
    return x, 2 * x[:, :1]

def function():
    held_out = np.full((4, 3), HELD, np.float32), np.zeros((4, 1), np.float32)
    net = chain(dense(4), tanh(), scaled(2.0), scaled(np.float32(np.ones(4))), dense(1))
    return Task(net, mse(), batches, held_out)
"""


@pytest.mark.parametrize("what", OTHERS)
def test_a_resumed_run_is_the_same_run_or_refused(what, capsys):
    old, new, part = OTHERS[what]
    Path("mine.py").write_text(WITH_DATA)
    changed = new.join(WITH_DATA.rsplit(old, 1))  # the last place: the first may be an import
    run = ["train", "mine.py:function", "--steps", "6", "--out", "run", "--quiet", "--watch-every", "0"]
    assert main(run) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    Path("mine.py").write_text(changed)
    run[3] = "8"
    assert main([*run, "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"run: {part}: expected the same as before step 6, found another" in said
    assert "--force-resume" in said
    assert len(said.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert main([*run, "--resume", "--force-resume"]) == 0
    assert [row["event"] for row in records(Path("run")) if "event" in row] == [f"went on: other {part}"]
    Path("mine.py").write_text("# a comment more\n" + changed)
    run[3] = "10"
    assert main([*run, "--resume"]) == 0  # the other code and data are now those of the run


FLAGS = {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_DISABLE_JIT": "1",
         "JAX_DEFAULT_MATMUL_PRECISION": "highest"}


@pytest.mark.parametrize("flag", FLAGS)
def test_another_flag_is_said(flag):
    """In a process of its own, as people set them: the run goes on, and its record says with what."""
    assert train() == 0
    command = [sys.executable, "-m", "fbackprop", "train", "mine.py:function", "--steps", "7", "--out", "run", "--quiet"]
    environment = {**os.environ, flag: FLAGS[flag]}
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"run: {flag} was " in done.stderr
    assert any(f"went on: {flag} was " in row.get("event", "") for row in records(Path("run")))


def test_a_run_whose_lock_file_is_removed_is_still_alone(capsys):
    assert train() == 0
    with open_run(TrainConfig.of(model="mine.py:function", steps=6), "run", resume=True):
        Path("run/run.lock").unlink()
        assert at_work(Path("run"))
        assert train("--resume", steps=8) == 73
        assert train("--force") == 73
    assert train("--resume", steps=8) == 0


def forged(change):
    """Changes the newest checkpoint's header and leaves, and makes its seal anew."""
    path = files(Path("run/checkpoints"))[-1]
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    with open(path, "w+b") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
        checkpoint._seal(file)


def swapped(header, arrays):
    one, two = "params/0/b", "opt_state/0/mu/0/b"
    arrays[one], arrays[two] = arrays[two], arrays[one]
    for table in (header["leaves"],):
        table[one]["sha256"], table[two]["sha256"] = table[two]["sha256"], table[one]["sha256"]


FORGED = {
    "a field of a later version": (lambda header, _: header["progress"].update(rate=1), 74, "a difference in rate: another"),
    "a format of a later version": (lambda header, _: header.update(format=3), 2, "expected format 2, got 3: another version"),
    "no progress": (lambda header, _: header.pop("progress"), 74, "another version"),
    "no fingerprint": (lambda header, _: header.pop("fingerprint"), 74, "another version"),
    "a negative step": (lambda header, _: header["progress"].update(step=-5), 74, "at least 0, found -5"),
    "half a step": (lambda header, _: header["progress"].update(losses=0.5), 74, "found 0.5"),
    "another step": (lambda header, _: header["progress"].update(step=5), 74, "expected 6, as its header says, found 5"),
    "a step of another name": (lambda header, _: header.update(step=5), 74, "expected the name of its step, found step 5"),
    "a setting of a later version": (lambda header, _: header["config"].update(rate=1), 2, "rate: expected 1"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_checkpoint_that_this_version_cannot_have_written(what, capsys):
    change, code, words = FORGED[what]
    assert train() == 0
    forged(change)
    assert train("--resume", steps=8) == code
    said = capsys.readouterr().err
    assert words in said
    assert "step-00000006.npz" in said
    assert len(said.splitlines()) == 1


def test_leaves_that_change_places_are_seen(capsys):
    assert train() == 0
    forged(swapped)
    assert train("--resume", steps=8) == 0
    said = capsys.readouterr().err
    assert "leaf opt_state/0/mu/0/b is not what its SHA-256 says" in said or "leaf params/0/b is not what" in said
    assert "going on after step 5" in said


MISTAKES = {
    "a name in a backward": {"change": "last = replace(last, backward=lambda p, r, dy: undefined)"},
    "a key in a forward": {"change": "last = replace(last, forward=lambda p, x: (p['W'], ()))"},
    "an attribute in an init": {"change": "last = replace(last, init=lambda key, x: x.shap)"},
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_layer_of_ones_own_is_placed(what, capsys):
    assert train(**MISTAKES[what]) == 2
    said = capsys.readouterr().err
    assert "mine.py:function: the network raised" in said
    assert "(mine.py, line 13)" in said
    assert "Traceback" not in said


def test_a_batch_of_another_width_is_told_before_it_is_trained_on(capsys):
    """The gradients of an epoch's end are measured on the batch to come."""
    assert train(spoil="x = x[:, : 3 - (step == 4)]") == 2
    assert "mine.py:function: batch of step 5: layer 0 dense(4): x: expected a last axis of 3" in capsys.readouterr().err


def test_a_scalar_in_a_batch_is_not_cut_into_parts(capsys):
    assert train("--accumulate", "2", spoil="return x, np.float32(1)") == 2
    assert "batch: expected leaves whose first axis counts examples" in capsys.readouterr().err


def test_a_run_piped_to_head_ends_as_any_command():
    Path("mine.py").write_text(MINE.format(spoil="pass", change="pass"))
    program = (f"({sys.executable} -m fbackprop train mine.py:function --steps 3000 --out run; echo code $? >&2) | head -n 1")
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("code 141\n")
    assert "Traceback" not in done.stderr


def test_a_halted_run_tried_again_is_where_it_was():
    """Its scale too: nothing was learned from a step that was not taken."""
    guards = []
    for more in ((), ("--resume",)):
        assert train(*more, "--precision", "float16", spoil="x[0] = np.nan if step == 4 else x[0]") == 1
        _, leaves = checkpoint.read(files(Path("run/checkpoints"))[-1])
        guards.append({name: leaf.array.item() for name, leaf in leaves.items() if name.startswith("guard/")})
    assert guards[0] == guards[1]
