"""The command line as people use it: what it answers, and one clear line for every mistake; nothing is overwritten or lost."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optax
import pytest

import fbackprop
from fbackprop import data
from fbackprop.cli import main
from fbackprop.train.run import log
from fbackprop.train.task.config import TrainConfig, memory_bytes

GOOD = """
import numpy as np
from fbackprop import *

def function():
    def batches(seed, step):
        rng = np.random.default_rng([seed, step])
        x = rng.standard_normal((8, 3)).astype(np.float32)
        return x, x @ np.float32([[1.0], [-2.0], [0.5]])
    return chain(dense(4), tanh(), dense(1)), mse(), batches
"""
WRONG_LAYER = """
from dataclasses import replace
from fbackprop import dense
right = dense(5)
def layer():
    def backward(params, x, dy):
        dparams, dx = right.backward(params, x, dy)
        return {"w": dparams["w"], "b": dy[0]}, dx
    return replace(right, backward=backward)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _compiled_the_quick_way(request):
    """Most of a short run is compiling; the slow ones are what people wait for."""
    if request.node.get_closest_marker("slow") is None:
        request.getfixturevalue("quick_compile")


def write(text, name="mine.py"):
    Path(name).write_text(text)
    return name


def idx(labels):
    """A directory of small IDX files with these labels."""
    folder = Path("idx")
    folder.mkdir()
    for part in ("train", "t10k"):
        images = np.zeros((len(labels), 28, 28), np.uint8)
        head = np.array([2051, len(labels), 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([2049, len(labels)], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + np.array(labels, np.uint8).tobytes())
    return folder


def changed(old, new):
    """The good file with one thing changed."""
    assert old in GOOD
    return lambda: write(GOOD.replace(old, new))


def with_task(more):
    """The good file with a Task of these arguments."""
    net = "chain(dense(4), tanh(), dense(1))"
    return changed(f"return {net}, mse(), batches",
                   f"from fbackprop.train import Task\n    return Task({net}, mse(), batches, {more})")


def nothing():
    pass


RUN = ["train", "mine.py:function", "--steps", "2"]
BAD = {
    "no verb": (nothing, [], 2, "usage"),
    "unknown verb": (nothing, ["trian"], 2, "Did you mean train?"),
    "no model": (nothing, ["train"], 2, "required"),
    "unknown model": (nothing, ["train", "mnst"], 2, "Did you mean mnist?"),
    "unknown flag": (nothing, ["train", "mnist", "--learning-rate", "1"], 2, "--learning-rate"),
    "a word too many": (nothing, ["train", "mnist", "now"], 2, "now"),
    "flag without its value": (nothing, ["train", "mnist", "--lr"], 2, "--lr"),
    "rate no number": (nothing, ["train", "mnist", "--lr", "fast"], 2, "fast"),
    "rate 0": (nothing, ["train", "mnist", "--lr", "0"], 2, "above 0"),
    "rate nan": (nothing, ["train", "mnist", "--lr", "nan"], 2, "finite"),
    "rate negative": (nothing, ["train", "mnist", "--lr=-1"], 2, "above 0"),
    "epochs 0": (nothing, ["train", "mnist", "--epochs", "0"], 2, "epochs"),
    "steps negative": (nothing, ["train", "mnist", "--steps=-1"], 2, "steps"),
    "steps a fraction": (nothing, ["train", "mnist", "--steps", "1.5"], 2, "1.5"),
    "steps and epochs": (nothing, ["train", "mnist", "--steps", "1", "--epochs", "1"], 2, "one of them"),
    "batch of 0": (nothing, ["train", "mnist", "--batch-size", "0"], 2, "batch_size"),
    "batch larger than the data": (nothing, ["train", "mnist", "--batch-size", "4001"], 2, "4000"),
    "seed negative": (nothing, ["train", "mnist", "--seed=-1"], 2, "seed"),
    "backward unknown": (nothing, ["train", "mnist", "--backward", "magic"], 2, "manual"),
    "clip without a bound": (nothing, ["train", "mnist", "--clip", "norm"], 2, "for example norm:1.0"),
    "clip of an unknown kind": (nothing, ["train", "mnist", "--clip", "size:1"], 2, "value, norm, layer, adaptive"),
    "clip to 0": (nothing, ["train", "mnist", "--clip", "norm:0"], 2, "X above 0"),
    "optimizer unknown": (nothing, ["train", "mnist", "--optimizer", "adma"], 2, "adamw"),
    "schedule unknown": (nothing, ["train", "mnist", "--schedule", "sine"], 2, "cosine"),
    "weight decay of adam": (nothing, ["train", "mnist", "--weight-decay", "0.1"], 2, "adamw, lion"),
    "warmup negative": (nothing, ["train", "mnist", "--warmup=-1"], 2, "warmup"),
    "precision unknown": (nothing, ["train", "mnist", "--precision", "fp8"], 2, "bfloat16"),
    "more parts than examples": (nothing, ["train", "mnist", "--accumulate", "51"], 2, "the rows of the batch"),
    "more devices than there are": (nothing, ["train", "mnist", "--devices", "4096"], 2, "devices: expected"),
    "checkpoint every 0": (nothing, ["train", "mnist", "--checkpoint-every", "0"], 2, "checkpoint_every"),
    "keep none": (nothing, ["train", "mnist", "--keep", "0"], 2, "keep"),
    "policy unknown": (nothing, ["train", "mnist", "--on-nonfinite", "pray"], 2, "restore"),
    "resume of a directory that is not there": (lambda: write(GOOD), [*RUN, "--resume", "--out", "typo"], 2,
                                                "typo/config.toml: expected it"),
    "resume of no run": (lambda: write(GOOD), [*RUN, "--resume"], 2, "runs/mine.py-function-001/config.toml: expected it"),
    "insist on nothing": (nothing, ["train", "mnist", "--force-resume"], 2, "--resume beside it"),
    "steps a word": (nothing, ["train", "mnist", "--steps", "five"], 2, "--steps: expected a whole number, got 'five'"),
    "rate a word": (nothing, ["train", "mnist", "--lr", "fast"], 2, "--lr: expected a number, got 'fast'"),
    "seed a word": (nothing, ["train", "mnist", "--seed", "x"], 2, "--seed: expected a whole number, got 'x'"),
    "memory without a unit": (nothing, ["train", "mnist", "--memory", "300"], 2, "KiB, MiB or GiB"),
    "memory in iB": (nothing, ["train", "mnist", "--memory", "3iB"], 2, "KiB, MiB or GiB"),
    "a name that is not UTF-8": (lambda: write(GOOD, "mod\udce8le.py"), ["train", "mod\udce8le.py:function"], 2,
                                 "mod\\xe8le.py:"),
    "out that is not UTF-8": (lambda: write(GOOD), [*RUN, "--out", "r\udce8"], 2, "expected a name in UTF-8"),
    "more devices than rows": (lambda: write(GOOD), [*RUN, "--devices", "9"], 2, ""),
    "config of deep lists": (lambda: write("a = " + "[" * 9999, "c.toml"), ["train", "mnist", "--config=c.toml"], 2,
                             "c.toml: expected TOML"),
    "config of many digits": (lambda: write("steps = " + "9" * 9999, "c.toml"), ["train", "mnist", "--config=c.toml"], 2,
                              "c.toml: expected TOML"),
    "resume and force": (nothing, ["train", "mnist", "--resume", "--force"], 2, "one of them"),
    "alerts of an unknown name": (nothing, ["train", "mnist", "--alerts", "vanish=1"], 2, "vanishing=X:Y"),
    "alerts with one number of two": (nothing, ["train", "mnist", "--alerts", "spike=30,dead=0.5"], 2, "'dead=0.5'"),
    "data missing": (nothing, ["train", "mnist", "--data", "nowhere"], 74, "nowhere"),
    "data empty": (lambda: Path("d").mkdir(), ["train", "mnist", "--data", "d"], 74, "train-images"),
    "data of another kind": (lambda: (idx([1] * 8) / "train-images-idx3-ubyte").write_bytes(b"GIF89a" * 99),
                             ["train", "mnist", "--data", "idx"], 74, "train-images"),
    "data cut short": (lambda: (idx([1] * 8) / "t10k-images-idx3-ubyte").write_bytes(
        np.array([2051, 8, 28, 28], ">i4").tobytes() + b"12"), ["train", "mnist", "--data", "idx"], 74, "t10k-images"),
    "label out of range": (lambda: idx([0, 1, 12, 3]), ["train", "mnist", "--data", "idx", "--batch-size", "2"], 2, "12"),
    "data for one's own model": (lambda: write(GOOD), [*RUN, "--data", "."], 2, "--data"),
    "config missing": (nothing, ["train", "mnist", "--config", "no.toml"], 74, "no.toml"),
    "config no TOML": (lambda: write("lr: 3", "c.toml"), ["train", "mnist", "--config", "c.toml"], 2, "c.toml"),
    "config unknown key": (lambda: write("epoch = 3", "c.toml"), ["train", "mnist", "--config", "c.toml"], 2,
                           "Did you mean epochs?"),
    "config wrong type": (lambda: write('lr = "fast"', "c.toml"), ["train", "mnist", "--config", "c.toml"], 2, "float"),
    "config true for a number": (lambda: write("epochs = true", "c.toml"), ["train", "mnist", "--config=c.toml"], 2, "int"),
    "config bad choice": (lambda: write('backward = "x"', "c.toml"), ["train", "mnist", "--config=c.toml"], 2, "manual"),
    "out is a file": (lambda: write("precious", "o"), ["train", "mnist", "--out", "o"], 2, "got a file"),
    "out below a file": (lambda: write("precious", "o"), ["train", "mnist", "--out", "o/run"], 74, "o"),
    "own file missing": (nothing, ["train", "no.py:function"], 74, "no.py"),
    "own file without function": (nothing, ["train", "mine.py"], 2, "file.py:function"),
    "own file with a syntax error": (lambda: write("def f(:\n"), ["train", "mine.py:f"], 2, "line 1"),
    "own file raises": (lambda: write("x = 1\n1 / 0\n"), ["train", "mine.py:f"], 2, "ZeroDivisionError"),
    "own file exits": (lambda: write("import sys; sys.exit(3)"), ["train", "mine.py:f"], 2, "SystemExit"),
    "own function not there": (lambda: write(GOOD), ["train", "mine.py:functoin"], 2, "Did you mean function?"),
    "own function raises": (changed("    def batches", "    raise RuntimeError('no luck')\n    def batches"), RUN, 2,
                            "no luck (mine.py, line 6)"),
    "own function returns a net alone": (changed("dense(1)), mse(), batches", "dense(1))"), RUN, 2, "net, loss, batches"),
    "own function returns None": (changed("return chain", "chain"), RUN, 2, "got None"),
    "own batches raise": (changed("rng = np", "rng = nmupy"), RUN, 2, "NameError"),
    "own batches give no pair": (changed("return x, x @", "return x @"), RUN, 2, "pair"),
    "own batch empty": (changed("(8, 3)", "(0, 3)"), RUN, 2, "empty"),
    "own batch of another shape later": (changed("(8, 3)", "(8, 3 + (step > 0))"), RUN, 2, "mine.py"),
    "own batch of bytes": (changed(".astype(np.float32)", ".astype(np.uint8)"), RUN, 2, "layer 0 dense(4)"),
    "own batch of two dtypes": (changed("x @ np.float32(", "x.astype(np.float16) @ np.float16("), RUN, 2, "one dtype"),
    "own target would broadcast": (changed("[[1.0], [-2.0], [0.5]]", "[1.0, -2.0, 0.5]"), RUN, 2, "broadcast"),
    "own layers do not fit": (changed("tanh(), dense(1)", "tanh(), softmax_cross_entropy()"), RUN, 2, "layer 2"),
    "own loss has no scalar": (changed("mse()", "None"), RUN, 2, "one array"),
    "batch size of one's own batches": (lambda: write(GOOD), [*RUN, "--batch-size", "4"], 2, "makes its own batches"),
    "warmup as long as the run": (lambda: write(GOOD), [*RUN, "--warmup", "2"], 2, "expected fewer than the 2 steps"),
    "held-out data of one array": (with_task("held_out=np.zeros((8, 3))"), RUN, 2, "expected a pair (x, target)"),
    "held-out data of two lengths": (with_task("held_out=(np.zeros((8, 3)), np.zeros((7, 1)))"), RUN, 2, "equally many"),
    "held-out data of another width": (with_task("held_out=(np.zeros((8, 2), 'f'), np.zeros((8, 1), 'f'))"), RUN, 2,
                                       "held_out: layer 0 dense(4)"),
    "an accuracy of numbers": (with_task("held_out=batches(1, 0), metric='accuracy'"), RUN, 2, "expected class numbers"),
    "a metric without held-out data": (with_task("metric='rmse'"), RUN, 2, "Task held_out: expected data"),
    "a metric of another name": (with_task("held_out=batches(1, 0), metric='f1'"), RUN, 2, "got 'f1'"),
    "epochs of batches without end": (lambda: write(GOOD), ["train", "mine.py:function", "--epochs", "1"], 2, "--steps"),
    "no longer finite": (changed("rng.standard_normal((8, 3))", "(rng.standard_normal((8, 3)) / (step < 1))"), RUN, 1,
                         "finite"),
    "verify an unknown layer": (nothing, ["verify", "--layer", "densse"], 2, "Did you mean dense?"),
    "verify with fewer than no draws": (nothing, ["verify", "--draws=-1"], 2, "draws"),
    "verify one's own and a layer": (lambda: write(GOOD), ["verify", "mine.py:function", "--layer", "dense"], 2, "--layer"),
    "verify a file not there": (nothing, ["verify", "no.py:layer"], 74, "no.py"),
    "verify what is no layer": (lambda: write("def layer(): return 7"), ["verify", "mine.py:layer"], 2, "got 7"),
    "verify a wrong layer": (lambda: write(WRONG_LAYER), ["verify", "mine.py:layer"], 1, ""),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")  # the last of the inputs makes inf on purpose
@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_one_clear_line(case, capsys):
    prepare, argv, code, words = BAD[case]
    prepare()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert main(argv) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    if words and words != "usage":
        lines = [line for line in said.splitlines() if line.startswith("fbackprop: ")]
        assert len(lines) == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    if code == 2:
        assert not Path("runs").exists() or case == "own batch of another shape later"


def test_a_run_is_never_overwritten_without_force(capsys):
    write(GOOD)
    run = [*RUN, "--out", "mine", "--quiet"]
    assert main(run) == 0
    contents = lambda: {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    before = contents()
    assert main(run) == 2
    assert "--force" in capsys.readouterr().err
    assert contents() == before
    Path("mine/notes.txt").write_text("mine")
    assert main([*run, "--seed", "1", "--force"]) == 0
    assert "seed = 1" in Path("mine/config.toml").read_text()
    assert Path("mine/notes.txt").read_text() == "mine"


def test_resume_goes_on_longer_but_not_otherwise(capsys):
    """Steps may change; anything else is another run and is told so. A run that is at its end stays as it is."""
    write(GOOD)
    run = ["train", "mine.py:function", "--out", "mine", "--quiet", "--schedule", "constant"]
    assert main([*run, "--steps", "20"]) == 0
    assert main([*run, "--steps", "30", "--resume"]) == 0
    assert "going on after step 20" in capsys.readouterr().err
    longer = Path("mine/metrics.jsonl").read_text()
    assert main([*run, "--steps", "30", "--resume"]) == 0
    assert Path("mine/metrics.jsonl").read_text() == longer
    capsys.readouterr()
    assert main([*run, "--steps", "30", "--resume", "--seed", "1"]) == 2
    assert "seed: expected 0, as the run began, found 1" in capsys.readouterr().err
    assert Path("mine/metrics.jsonl").read_text() == longer
    steps = [json.loads(line)["step"] for line in longer.splitlines() if "grad_norm" in json.loads(line)]
    assert steps == list(range(1, 31))


def test_resume_without_out_takes_the_last_run(capsys):
    write(GOOD)
    assert main([*RUN, "--quiet"]) == 0
    assert main([*RUN, "--quiet"]) == 0
    assert main(["train", "mine.py:function", "--steps", "4", "--quiet", "--resume"]) == 0
    assert "runs/mine.py-function-002: going on after step 2" in capsys.readouterr().err


def test_runs_are_numbered(capsys):
    write(GOOD)
    assert main([*RUN, "--quiet"]) == 0
    assert main([*RUN, "--quiet"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine.py-function-001", "mine.py-function-002"]


def test_disk_full_is_told_and_exits_74(monkeypatch, capsys):
    write(GOOD)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(log, "open", full, raising=False)
    assert main(RUN) == 74
    assert "No space left" in capsys.readouterr().err


def test_a_corrupt_package_file_is_named(monkeypatch, tmp_path, capsys):
    broken = tmp_path / "mnist5k.npz"
    raw = bytearray(data.digits.__globals__["MNIST5K"].read_bytes())
    raw[1000] ^= 1
    broken.write_bytes(raw)
    monkeypatch.setattr(data.load_mnist5k, "__defaults__", (broken,))
    assert main(["train", "mnist"]) == 74
    assert "mnist5k.npz" in capsys.readouterr().err


def test_train_answers_with_one_json_line(capsys):
    write(GOOD)
    assert main(["train", "mine.py:function", "--steps", "200", "--lr", "0.1", "--json", "--out", "r"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["verb", "model", "backward", "steps", "epochs", "test_accuracy", "test_loss", "train_loss",
                            "max_gradient_error", "wall_seconds", "run_dir"]
    assert result["test_accuracy"] is None
    assert result["test_loss"] is None
    assert result["train_loss"] < 1.0
    assert result["max_gradient_error"] <= 1e-5
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "grad_norm" in row] == list(range(1, 201))
    assert rows[0]["epoch"] == 0
    assert set(rows[1]) == {"step", "loss", "grad_norm", "update_norm", "param_norm"}


@pytest.mark.parametrize("held_out", [False, True])
def test_a_test_loss_is_of_held_out_data_alone(held_out, capsys):
    """Noise learned by heart: the loss on it says nothing about other data, and no label says that it does."""
    (with_task("held_out=batches(1, 10**6)") if held_out else lambda: write(GOOD))()
    text = Path("mine.py").read_text().replace("default_rng([seed, step])", "default_rng(step >= 10**6)")
    text = text.replace("x @ np.float32([[1.0], [-2.0], [0.5]])", "rng.standard_normal((8, 1)).astype('f')")
    Path("mine.py").write_text(text)
    assert main(["train", "mine.py:function", "--steps", "300", "--lr", "0.03", "--out", "r", "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["train_loss"] < 0.1
    assert main(["report", "r", "--text"]) == 0
    told = capsys.readouterr().out
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    if held_out:
        assert result["test_loss"] > 10 * result["train_loss"]
        assert f"test loss {result['test_loss']:.4g} in" in out
        assert "no held-out" not in out + told
    else:
        assert result["test_loss"] is None
        assert f"train loss {result['train_loss']:.4g} (no held-out data) in" in out
        assert "test loss" not in out + told
        assert "train loss of an epoch (no held-out data)" in told
        assert all(row.get("test_loss") is None for row in rows)
    assert main(["train", "mine.py:function", "--steps", "300", "--lr", "0.03", "--out", "r", "--json", "--resume"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "wall_seconds": 0} == {**result, "wall_seconds": 0}


@pytest.mark.parametrize("name", ["fbackprop.py", "jax.py", "numpy.py", "dataclasses.py"])
def test_a_model_file_may_be_called_as_a_module(name, capsys):
    kept = "from dataclasses import dataclass\n\n@dataclass\nclass A:\n    b: int\n\n"
    write(GOOD.replace("def function", f"{kept}def function"), name)
    assert main(["train", f"{name}:function", "--steps", "2", "--quiet"]) == 0


def test_home_and_a_byte_order_mark(monkeypatch, tmp_path):
    """What Notepad writes, and a ~ that the shell left as it was: in --out=~/run, in quotes, in TOML."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(GOOD)
    Path("home").mkdir()
    Path("home/c.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\nout = '~/run'\n")
    assert main(["train", "mine.py:function", "--config", "~/c.toml", "--quiet"]) == 0
    assert "steps = 3\n" in Path("home/run/config.toml").read_text()
    Path("mine.py").rename("home/mine.py")
    assert main(["train", "~/mine.py:function", "--steps", "2", "--out=~/other", "--quiet"]) == 0
    assert Path("home/other/config.toml").exists()
    assert not Path("~").exists()
    assert main(["report", "~/other", "--text"]) == 0


@pytest.mark.parametrize(("text", "number"), [("3KB", 3e3), ("3 kB", 3e3), ("3KiB", 3072), ("1.5MiB", 1.5 * 2**20),
                                              ("2GiB", 2**31), ("2GB", 2e9), ("7B", 7)])
def test_bytes_as_people_write_them(text, number):
    assert memory_bytes(text) == number


DAMAGED = ["", "model = 3", "model = 'mnist'\nclip = 5", "model = 'mnist'\nlr = 'x'", "model = 'mnist'\nsteps = [1]", "\0",
           "model = 'mnist'\nmemory = 3", "model = 'mnist'\nalerts = 3", "model = [", "model = 'mnist'\nseed = nan",
           "x" * 9999, "model = " + "[" * 9999, "model = 'mnist'\nsteps = 1" + "0" * 9999, "model = 'mnist'\nwrong = 1"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_config_of_a_run_is_one_line(text, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    write(text, "run/config.toml")
    write("", "run/metrics.jsonl")
    for argv in (["report", "run", "--text"], ["train", "mnist", "--out", "run", "--resume"]):
        assert main(argv) in (2, 74)
        said = capsys.readouterr().err
        assert "run/config.toml" in said
        assert len(said.splitlines()) == 1


MISUSED = {
    "a number for a key": (lambda net, x: net.init(0, x), "key: expected a key of jax.random, got 0. Write net.init("),
    "a net for gradients": (lambda net, x: fbackprop.make_step(net, optax.sgd(1)), "Write make_step(value_and_grad("),
    "a name misspelt": (lambda net, x: fbackprop.densee, "Did you mean dense?"),
    "a name misspelt in a package": (lambda net, x: fbackprop.train.Thresold, "Did you mean Thresholds?"),
}


@pytest.mark.parametrize("what", MISUSED)
def test_a_call_that_newcomers_write_is_told_what_to_write(what):
    call, words = MISUSED[what]
    with pytest.raises((TypeError, AttributeError)) as raised:
        call(fbackprop.chain(fbackprop.dense(2)), np.ones((3, 5), np.float32))
    assert words in str(raised.value)


def test_both_backward_passes_give_one_curve(capsys):
    curves = {}
    for how in ("manual", "auto"):
        assert main(["train", "mnist", "--steps", "50", "--backward", how, "--out", how, "--quiet"]) == 0
        rows = [json.loads(line) for line in Path(how, "metrics.jsonl").read_text().splitlines()]
        curves[how] = np.array([row["loss"] for row in rows if "grad_norm" in row])
    assert len(curves["manual"]) == 50
    np.testing.assert_allclose(curves["manual"], curves["auto"], rtol=0, atol=1e-5)


def test_flags_win_over_the_config_file(capsys):
    write(GOOD)
    write("steps = 3\nlr = 1\n", "c.toml")
    assert main(["train", "mine.py:function", "--config", "c.toml", "--lr", "0.5", "--out", "r", "--quiet"]) == 0
    assert 'steps = 3\n' in Path("r/config.toml").read_text()
    assert "lr = 0.5" in Path("r/config.toml").read_text()
    assert main(["train", "mine.py:function", "--config", "r/config.toml", "--out", "again", "--quiet"]) == 0
    assert Path("r/config.toml").read_text() == Path("again/config.toml").read_text()


def test_verify_names_the_mistake_of_a_wrong_layer(capsys):
    write(WRONG_LAYER)
    assert main(["verify", "mine.py:layer", "--json"]) == 1
    out = capsys.readouterr().out
    assert "the gradient of the first example alone" in out
    assert json.loads(out.splitlines()[-1])["wrong"] == 1


def test_verify_a_right_network(capsys):
    write(GOOD)
    assert main(["verify", "mine.py:function", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result)[:8] == ["verb", "layers", "cases", "ok", "wrong", "kink", "noisy", "planted"]
    assert result["ok"] == 1


def test_info_says_what_is_here(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["mnist5k"].startswith("5000 digits")
    assert "dense" in facts["names"]


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["verify", "--help"], ["info", "--help"]])
def test_help_does_not_import_jax(argv):
    program = (f"import sys; from fbackprop.cli import main\ntry: main({argv})\nexcept SystemExit: pass\n"
               "assert 'jax' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_output_piped_to_head_ends_quietly():
    program = f"{sys.executable} -m fbackprop info | head -n 1"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("fbackprop")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_signal_ends_the_run_between_steps(number, code):
    command = [sys.executable, "-m", "fbackprop", "train", "mnist", "--epochs", "500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said


def test_without_the_cli_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["info"]) == 2
    assert "pip install 'fbackprop[cli]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_main_job_reaches_its_accuracy(capsys):
    for seed in ("0", "1", "2"):
        assert main(["train", "mnist", "--json", "--quiet", "--seed", seed]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["test_accuracy"] >= 0.94
        assert result["max_gradient_error"] <= 1e-5
    shutil.rmtree("runs")


@pytest.mark.parametrize(("model", "beside"), [
    ("convnet", "test_accuracy"), ("resnet", "test_accuracy"), ("lstm", "test_accuracy"), ("gpt", "bigram_loss"),
    ("recommender", "noise")])
@pytest.mark.slow
def test_every_model_trains_on_its_data(model, beside, capsys):
    assert main(["train", model, "--steps", "3", "--batch-size", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result[beside] is not None
    assert result["max_gradient_error"] <= 1e-5
    assert (result["test_accuracy"] is None) == (model in ("gpt", "recommender"))
    assert ("test_rmse" in result) == (model == "recommender")


@pytest.mark.parametrize(("model", "code", "words"), [
    ("gpt", 74, "nothing.txt"), ("recommender", 74, "nothing.txt"), ("convnet", 74, "nothing.txt")])
def test_a_models_own_data_that_is_not_there(model, code, words, capsys):
    assert main(["train", model, "--data", "nothing.txt"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_preset_gives_way_to_what_is_asked_for():
    assert (TrainConfig.of(model="gpt").steps, TrainConfig.of(model="gpt").batch_size) == (600, 32)
    asked = TrainConfig.of(model="gpt", epochs=1, batch_size=8)
    assert (asked.steps, asked.epochs, asked.batch_size, asked.lr) == (None, 1, 8, 3e-3)
    assert TrainConfig.of(model="mine.py:f", lr=None) == TrainConfig("mine.py:f", batch_size=None)


def test_training_with_a_wrong_rule_says_so_and_what_to_run(capsys):
    wrong = GOOD.replace("tanh()", "replace(tanh(), backward=lambda params, y, dy: ((), dy))")
    write(wrong.replace("import numpy", "from dataclasses import replace\nimport numpy"))
    assert main(["train", "mine.py:function", "--steps", "5"]) == 0
    assert "above the bound: a backward rule is wrong, or meant to be another one. fbackprop verify mine.py:function" in (
        capsys.readouterr().err)
    assert main(["train", "mine.py:function", "--steps", "5", "--backward", "auto"]) == 0


def test_a_structure_that_is_another_one_is_told_without_numbers(capsys):
    write("from dataclasses import replace\nfrom fbackprop import dense\n"
          "def layer():\n    return replace(dense(5), backward=lambda params, x, dy: dy)\n")
    assert main(["verify", "mine.py:layer"]) == 1
    said = capsys.readouterr().out
    assert "expected 0, got 0" not in said
    assert "WRONG: the structure is another one" in said
