"""A run as people disturb it: what is said is true, what is written can be read, and no mistake shows a traceback."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fbackprop.cli import main
from fbackprop.train.run.log import records
from fbackprop.train.store.saver import files

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
    from fbackprop.train.store import checkpoint

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
    from fbackprop.train.store import checkpoint

    guards = []
    for _ in range(2):
        assert train("--resume", "--precision", "float16", spoil="x[0] = np.nan if step == 4 else x[0]") == 1
        _, leaves = checkpoint.read(files(Path("run/checkpoints"))[-1])
        guards.append({name: leaf.array.item() for name, leaf in leaves.items() if name.startswith("guard/")})
    assert guards[0] == guards[1]
