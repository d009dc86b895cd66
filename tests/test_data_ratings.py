"""Ratings: the noise floor is where it is said to be and can be reached, every mistake in a file is told with its line."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest

from fbackprop.data import DataError, generate_ratings, load_ratings, ratings, shuffled_batches


def message(function, *args, error=DataError):
    """The text of the error that the call has to raise: one line, of exactly this class."""
    with pytest.raises(error) as caught:
        function(*args)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- generated ratings

FIRST = [[592, 348], [251, 319], [247, 31]]


def test_generated_ratings_are_fixed_by_their_seed():
    pairs, stars = generate_ratings()
    assert (pairs.shape, pairs.dtype, stars.shape, stars.dtype) == ((96_000, 2), np.int32, (96_000,), np.float32)
    again, other = generate_ratings(seed=0), generate_ratings(seed=1)
    assert np.array_equal(pairs, again[0])
    assert np.array_equal(stars, again[1])
    assert not np.array_equal(pairs, other[0])
    assert pairs[:3].tolist() == FIRST  # other processes and machines agree


def test_no_pair_is_rated_twice_and_everybody_rates():
    pairs, _ = generate_ratings()
    assert len(np.unique(pairs @ [400, 1])) == len(pairs)
    assert [len(np.unique(column)) for column in pairs.T] == [600, 400]
    assert np.corrcoef(pairs[:-1, 0], pairs[1:, 0])[0, 1] == pytest.approx(0, abs=0.01)  # in random order


def test_noise_is_what_the_seed_adds_and_nothing_else():
    clean, noisy = generate_ratings(noise=0)[1], generate_ratings(noise=0.25)[1]
    e = (noisy - clean) / 0.25
    assert (e.mean(), e.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert np.corrcoef(e, clean)[0, 1] == pytest.approx(0, abs=0.02)


def test_without_noise_the_ratings_have_the_rank_they_are_said_to_have():
    pairs, stars = generate_ratings(users=40, items=30, rank=3, noise=0, density=1)
    table = np.empty((40, 30))
    table[tuple(pairs.T)] = stars
    values = np.linalg.svd(table, compute_uv=False)
    assert values[4] > 1  # three of u . v, two of the mean and the biases
    assert values[5] < 1e-4


@pytest.mark.parametrize(("given", "part"), [
    ({"users": 0}, "users: expected at least 1, got 0"),
    ({"items": -1}, "items: expected at least 1, got -1"),
    ({"rank": 0}, "rank: expected at least 1, got 0"),
    ({"noise": -0.1}, "noise"),
    ({"noise": float("nan")}, "noise"),
    ({"noise": float("inf")}, "noise"),
    ({"density": 0}, "density"),
    ({"density": 1.01}, "density"),
    ({"users": 2, "items": 2, "density": 0.1}, "at least one, got none of 2 x 2 at density 0.1"),
])
def test_wrong_arguments_are_refused(given, part):
    assert part in message(lambda: generate_ratings(**given), error=ValueError)


def test_half_a_user_is_refused():
    with pytest.raises(TypeError):
        generate_ratings(users=2.5)


# ---- the floor can be reached


def half_sweep(mine, theirs, stars, own, other, rank):
    """Least squares for every row of `own`, [factors, bias], against the rows of `other` held still; 0.5 damps both."""
    order = np.argsort(mine, kind="stable")
    for row, at in enumerate(np.split(order, np.searchsorted(mine[order], np.arange(1, len(own))))):
        columns = np.concatenate([other[theirs[at], :rank], np.ones((len(at), 1))], axis=1)
        wanted = columns.T @ (stars[at] - other[theirs[at], rank])
        own[row] = np.linalg.solve(columns.T @ columns + 0.5 * np.eye(rank + 1), wanted)


def error_of_alternating_least_squares(data, rank, sweeps=8):
    (pairs, stars), (test_pairs, test_stars) = data.train, data.test
    user, item = pairs.T
    u, v = np.zeros((data.users, rank + 1)), np.random.default_rng(1).normal(0, 0.3, (data.items, rank + 1))
    for _ in range(sweeps):
        half_sweep(user, item, stars - data.mean, u, v, rank)
        half_sweep(item, user, stars - data.mean, v, u, rank)
    u, v = u[test_pairs[:, 0]], v[test_pairs[:, 1]]
    guess = data.mean + (u[:, :rank] * v[:, :rank]).sum(axis=1) + u[:, rank] + v[:, rank]
    return float(np.sqrt(np.mean((guess - test_stars) ** 2)))


def test_a_model_of_the_right_rank_comes_within_5_percent_of_the_floor():
    data = ratings()
    error = error_of_alternating_least_squares(data, rank=4)
    assert data.noise * 0.98 < error < data.noise * 1.05  # 0.98: 9600 ratings show their noise to 0.7 %, give or take
    assert error_of_alternating_least_squares(data, rank=0) > data.noise * 1.4  # biases alone leave the tastes


# ---- a data set


def test_the_ratings_of_the_package():
    data = ratings()
    assert (data.users, data.items, data.noise, len(data.train[1]), len(data.test[1])) == (600, 400, 0.5, 86_400, 9_600)
    assert data.mean == pytest.approx(float(data.train[1].mean()), abs=1e-5)
    pairs, stars = generate_ratings()
    both = [np.concatenate(parts) for parts in zip(data.train, data.test, strict=True)]
    assert np.array_equal(np.unique(both[0] @ [400, 1]), np.unique(pairs @ [400, 1]))
    assert np.array_equal(np.sort(both[1]), np.sort(stars))
    assert np.array_equal(ratings().test[0], data.test[0])
    x, y = shuffled_batches(*data.train, 256)(0, 0)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((256, 2), np.int32, (256,), np.float32)


def test_loading_never_imports_jax():
    code = "import sys, fbackprop.data; fbackprop.data.ratings(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- a file of ratings

LINES = [f"{user}\t{item}\t{1 + (user * item) % 5}\t{881250949 + user}" for user in (196, 1, 943) for item in (242, 1682, 7, 3)]


@pytest.fixture
def u_data(tmp_path):
    """Makes a file of these lines."""
    def write(lines=LINES, end="\n"):
        path = tmp_path / "u.data"
        path.write_bytes("".join(line + end for line in lines).encode())
        return path
    return write


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_is_read_back(u_data, end):
    pairs, stars = load_ratings(u_data(end=end))
    assert (pairs.dtype, stars.dtype) == (np.int32, np.float32)
    numbers = [{1: 0, 196: 1, 943: 2}, {3: 0, 7: 1, 242: 2, 1682: 3}]  # in order of the ids
    wanted = [line.split("\t") for line in LINES]
    assert pairs.tolist() == [[numbers[0][int(user)], numbers[1][int(item)]] for user, item, *_ in wanted]
    assert stars.tolist() == [float(rating) for *_, rating, _ in wanted]


def test_the_last_line_may_lack_its_end_and_the_file_may_be_compressed(u_data):
    path = u_data()
    wanted = load_ratings(path)
    for raw in (path.read_bytes()[:-1], gzip.compress(path.read_bytes())):
        path.write_bytes(raw)
        assert all(np.array_equal(a, b) for a, b in zip(load_ratings(str(path)), wanted, strict=True))


def test_a_file_as_a_data_set(u_data):
    data = ratings(u_data())
    assert (data.users, data.items, data.noise, len(data.train[1]), len(data.test[1])) == (3, 4, None, 11, 1)
    assert "u.data" in data.name
    assert data.mean == pytest.approx(float(data.train[1].mean()))


def test_ids_without_end_make_no_tables_without_end(u_data):
    data = ratings(u_data([*LINES, "999999999\t999999999\t3\t0"]))
    assert (data.users, data.items) == (4, 5)


def test_a_file_as_long_as_movielens_100k_is_read_in_its_order(u_data):
    pairs, stars = generate_ratings(users=943, items=1682, density=0.063)
    stars = np.clip(np.rint(stars), 1, 5)
    lines = [f"{user + 1}\t{item + 1}\t{star:.0f}\t0" for (user, item), star in zip(pairs.tolist(), stars, strict=True)]
    got, got_stars = load_ratings(u_data(lines))
    assert np.array_equal(got, pairs)  # every id occurs, so a number is its id - 1
    assert np.array_equal(got_stars, stars)


@pytest.mark.parametrize(("line", "parts"), [
    ("1\t2\t3", ["fields", "expected 4", "got 3"]),
    ("1\t2\t3\t4\t5", ["expected 4", "got 5"]),
    ("1 2 3 4", ["expected 4", "got 1 in '1 2 3 4'"]),
    ("1::2::3::4", ["got 1 in"]),
    ("1,2,3,4", ["got 1 in"]),
    ("", ["got 1 in ''"]),
    ("x\t2\t3\t4", ["user id", "a whole number from 1", "got 'x'"]),
    ("0\t2\t3\t4", ["user id", "got '0'"]),
    ("-7\t2\t3\t4", ["user id", "got '-7'"]),
    ("1.0\t2\t3\t4", ["user id", "got '1.0'"]),
    ("1_0\t2\t3\t4", ["user id", "got '1_0'"]),
    ("\t2\t3\t4", ["user id", "got ''"]),
    ("1\t-2\t3\t4", ["item id", "got '-2'"]),
    ("1\t0\t3\t4", ["item id", "got '0'"]),
    ("1\t12345678901234567890\t3\t4", ["item id", "got '12345678901234567890'"]),
    ("1\t" + "9" * 5000 + "\t3\t4", ["item id", "got '999", "..."]),
    ("1\t2\tnan\t4", ["rating", "a number from 1 to 5", "got 'nan'"]),
    ("1\t2\tinf\t4", ["rating", "got 'inf'"]),
    ("1\t2\t0\t4", ["rating", "got '0'"]),
    ("1\t2\t5.5\t4", ["rating", "got '5.5'"]),
    ("1\t2\t-3\t4", ["rating", "got '-3'"]),
    ("1\t2\t1e0\t4", ["rating", "got '1e0'"]),
    ("1\t2\tgood\t4", ["rating", "got 'good'"]),
    ("1\t2\t3\tMonday", ["timestamp", "got 'Monday'"]),
    ("user_id\titem_id\trating\ttimestamp", ["user id", "got 'user_id'"]),
    ("\u0661\t2\t3\t4", ["user id"]),  # a digit, but not one of these
    ("943\t3\t3\t4", ["every pair once", "user 943 and item 3", "line 12"]),
])
def test_every_mistake_is_told_with_its_line(u_data, line, parts):
    path = u_data([*LINES, line, "1\t2\t3\t4"])
    told = message(load_ratings, path)
    assert all(part in told for part in [f"{path}, line 13", "u.data of MovieLens 100k", *parts]), told
    assert len(told) < 400


@pytest.mark.parametrize(("raw", "parts"), [
    (b"", ["at least one line", "an empty file"]),
    (b"\n", ["line 1", "got 1 in ''"]),
    (bytes(range(256)) * 40, ["line 1"]),
    (b"PK\x03\x04" + bytes(1000), ["line 1", r"PK\x03\x04"]),
    (b"\xff\xfe1\x00\t\x002\x00", ["line 1", "got 2"]),
    (b"\xef\xbb\xbf1\t2\t3\t4\n", ["line 1", "user id", r"\xef\xbb\xbf1"]),
    (b"\x1f\x8b" + bytes(20), ["gzip"]),
    (gzip.compress(b"1\t2\t3\t4\n" * 99, mtime=0)[:-3], ["gzip"]),
])
def test_what_is_no_such_file_at_all_is_told(tmp_path, raw, parts):
    path = tmp_path / "u.data"
    path.write_bytes(raw)
    told = message(load_ratings, path)
    assert all(part in told for part in [str(path), *parts]), told


def test_a_missing_file_a_directory_and_too_few_ratings_are_named(tmp_path, u_data):
    assert str(tmp_path / "none") in message(load_ratings, tmp_path / "none")
    assert str(tmp_path) in message(ratings, tmp_path)
    assert "at least 10, one of ten for the test, got 9" in message(ratings, u_data(LINES[:9]))
