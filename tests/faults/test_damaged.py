"""Checkpoints damaged on purpose: every damage is seen, named, and the one before taken; those of another run are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from fbackprop import State
from fbackprop.errors import FileProblem, Problem
from fbackprop.train.step.training import begin
from fbackprop.train.store import checkpoint
from fbackprop.train.store.saver import Saver, files
from fbackprop.train.task.config import TrainConfig

CONFIG = TrainConfig(model="mine.py:function")
PARAMS = ({"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4)}, {"key": State(jax.random.key(7))},
          {"half": jnp.ones(3, jnp.bfloat16), "small": jnp.ones((2, 2), jnp.float16), "none": jnp.zeros((0, 3))})


def training(params=PARAMS, scaled=True):
    return begin(params, optax.adam(1e-3), scaled)


@pytest.fixture
def saved(tmp_path):
    """A run's directory with checkpoints of steps 10, 20 and 30."""
    (tmp_path / "checkpoints").mkdir()
    with Saver(tmp_path, CONFIG) as saver:
        for step in (10, 20, 30):
            saver.save(step, training(), {"progress": {"step": step}, "fingerprint": {}})
        saver.wait()
    return tmp_path


def newest(directory: Path, like=None, config=CONFIG):
    said: list[str] = []
    with Saver(directory, config) as saver:
        found = saver.newest(training() if like is None else like, said.append)
    return found, said


def bits(tree):
    return {path: (leaf.dtype, leaf.array.tobytes()) for path, leaf in checkpoint.snapshot(tree).items()}


def test_everything_comes_back_bit_for_bit(saved):
    (tree, header), said = newest(saved)
    assert header["step"] == 30
    assert said == []
    assert bits(tree) == bits(training())
    assert jax.tree.structure(tree) == jax.tree.structure(training())
    assert jax.random.bits(tree.params[1]["key"].value) == jax.random.bits(jax.random.key(7))
    assert tree.params[2]["half"].dtype == jnp.bfloat16
    assert {"versions", "backend", "config", "config_sha256", "leaves"} <= header.keys()
    with np.load(files(saved / "checkpoints")[-1], allow_pickle=False) as opened:  # anybody's numpy opens it
        np.testing.assert_array_equal(opened["params/0/w"], PARAMS[0]["w"])


@pytest.mark.parametrize("value", [np.nan, -np.inf, -0.0, 1e-45, float(np.nextafter(np.float32(1), np.float32(2)))])
def test_odd_numbers_keep_their_bits(tmp_path, value):
    path, tree = tmp_path / "step-00000001.npz", {"a": jnp.full(3, value), "n": 3, "x": 0.1}
    checkpoint.write(path, checkpoint.snapshot(tree), {})
    _, stored = checkpoint.read(path)
    back = checkpoint.fill(tree, stored, path)
    assert bits(back) == bits(tree)
    assert (type(back["n"]), type(back["x"])) == (int, float)


def spoiled(saved, change):
    """Puts `change(bytes)` in place of the newest, looks for the newest good one, and puts things back."""
    path = files(saved / "checkpoints")[-1]
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    (_, header), said = newest(saved)
    assert header["step"] == 20
    assert len(said) == 1
    assert str(path) in said[0]
    assert not path.exists()
    damaged = path.with_name(f"{path.name}.damaged")
    damaged.unlink()
    path.write_bytes(whole)


def test_flipped_bits(saved):
    rng, times = runs.generator("flip"), runs.count(100, 2000)

    def flip(whole):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        return bytes(changed)

    for _ in range(times):
        spoiled(saved, flip)
    runs.report("bit flip anywhere in a checkpoint", times)


def test_cut_short(saved):
    rng, times = runs.generator("cut"), runs.count(50, 500)
    size = files(saved / "checkpoints")[-1].stat().st_size
    lengths = [0, 1, size - 1, size - 71, *rng.integers(0, size, times - 4)]
    for length in lengths:
        spoiled(saved, lambda whole, length=length: whole[:length])
    runs.report("truncation, length 0, one byte short", len(lengths))


def test_bytes_of_another_file_and_bytes_too_many(saved):
    spoiled(saved, lambda whole: whole + b"\0")
    spoiled(saved, lambda whole: b"PK\x05\x06" + b"\0" * 18)
    spoiled(saved, lambda whole: whole[: len(whole) // 2] * 2)


def test_all_damaged_is_none(saved):
    for path in files(saved / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    found, said = newest(saved)
    assert found is None
    assert len(said) == 3


def other(change):
    """The training with another first layer."""
    return training(({**PARAMS[0], **change}, *PARAMS[1:]))


MISMATCHES = {
    "wrong shape": (other({"w": jnp.zeros((3, 5))}), CONFIG, "params/0/w: expected float32[3,5], found float32[3,4]"),
    "wrong dtype": (other({"b": jnp.zeros(4, jnp.bfloat16)}), CONFIG, "params/0/b: expected bfloat16[4], found float32[4]"),
    "a leaf more wanted": (other({"g": jnp.zeros(2)}), CONFIG, "params/0/g: expected float32[2], found none"),
    "a leaf less wanted": (training(({"w": PARAMS[0]["w"]}, *PARAMS[1:])), CONFIG, "0/b: expected none, found float32[4]"),
    "another optimizer": (begin(PARAMS, optax.sgd(0.1, momentum=0.9), True), CONFIG, "trace/0/b: expected float32[4]"),
    "another config": (training(), replace(CONFIG, lr=0.5), "lr: expected 0.003, as the run began, found 0.5"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_whole_but_of_another_run(saved, what):
    """Refused with path, expected and found; the files stay as they are. Nothing older is tried: it is not damage."""
    like, config, words = MISMATCHES[what]
    before = {path: path.read_bytes() for path in files(saved / "checkpoints")}
    with pytest.raises(Problem) as raised:
        newest(saved, like, config)
    assert words in str(raised.value)
    assert raised.value.exit_code == 2
    assert {path: path.read_bytes() for path in files(saved / "checkpoints")} == before


@pytest.mark.parametrize("then", [False, True])
def test_x64_on_and_off(tmp_path, then):
    """Saved with it and loaded without, and the other way round: said, never rounded on the quiet."""
    (tmp_path / "checkpoints").mkdir()
    numbers = lambda: begin({"w": jnp.asarray(np.arange(3.0))}, optax.sgd(0.1))
    with jax.enable_x64(then), Saver(tmp_path, CONFIG) as saver:
        saver.save(1, numbers(), {"progress": {}, "fingerprint": {}})
        saver.wait()
    expected, found = ("float32", "float64") if then else ("float64", "float32")
    with jax.enable_x64(not then), pytest.raises(Problem) as raised:
        newest(tmp_path, numbers())
    assert f"params/w: expected {expected}[3], found {found}[3]. JAX_ENABLE_X64 was another" in str(raised.value)


def test_length_alone_may_change(saved):
    found, _ = newest(saved, config=replace(CONFIG, steps=7))
    assert found is not None


def test_the_last_k_stay_and_no_temporary_file(saved):
    with Saver(saved, replace(CONFIG, keep=2)) as saver:
        (saved / "checkpoints" / "step-00000035.npz.123.tmp").write_bytes(b"half")
    with Saver(saved, replace(CONFIG, keep=2)) as saver:
        saver.save(40, training(), {"progress": {}, "fingerprint": {}})
        saver.wait()
    assert [path.name for path in (saved / "checkpoints").iterdir() if path.suffix != ".npz"] == []
    assert [path.name for path in files(saved / "checkpoints")] == ["step-00000030.npz", "step-00000040.npz"]


def test_a_directory_that_cannot_be_written_is_told_and_harms_nothing(saved, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with Saver(saved, CONFIG) as saver:
        saver.save(40, training(), {"progress": {}, "fingerprint": {}})
        with pytest.raises(FileProblem, match="Input/output error"):
            saver.wait()
    monkeypatch.undo()
    assert not list(saved.rglob("*.tmp"))
    (_, header), said = newest(saved)
    assert (header["step"], said) == (30, [])
