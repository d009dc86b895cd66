"""fbackprop report: what it says and draws of a real run, and of every state a run's directory can be in."""

import json
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock

from fbackprop import auto_value_and_grad, paths
from fbackprop.cli import main
from fbackprop.cli.options import parse
from fbackprop.cli.report import mark_lines
from fbackprop.cli.train import Options
from fbackprop.report.history import Mark, label, layer_series, read_run, series
from fbackprop.report.report import layer_names, report, task_of
from fbackprop.train.run.log import records
from fbackprop.train.store import checkpoint
from fbackprop.train.store.saver import files
from fbackprop.train.task.config import PRESETS, TrainConfig
from fbackprop.train.task.recipe import start

CONFIGS = Path(__file__).parent.parent / "experiments" / "configs"
CONFIG = 'model = "mnist"\nsteps = 40\n'
FIGURES = ["training.png", "layers.png", "first_layer.png"]

OTHER = """
import numpy as np
from fbackprop import chain, dense, mse

def function():
    return chain(dense(1)), mse(), lambda seed, step: (np.ones((8, 3), np.float32), np.ones((8, 1), np.float32))
"""


def epoch(number, step, **more):
    return {"epoch": number, "epochs": 2, "step": step, "train_loss": None, "test_loss": 2.0 / (number + 1),
            "test_accuracy": 0.4 * number, "test_rmse": None, "gradient_error": 2e-7 * (number + 1),
            "gradient_norms": {"1": 2.0, "3": 1.0}, "seconds": 1.5 * number, **more}


def step(number, loss=1.0):
    return {"step": number, "loss": loss, "grad_norm": 1.0, "update_norm": 0.02, "param_norm": 10.0}


def look(number):
    relu = {"layer": "relu()", "dead": 0.25, "saturated": 0.5}
    dense = {"layer": "dense(512)", "grad_norm": 0.1 * number, "param_norm": 9.0, "update_ratio": 1e-3, "y_rms": 1.0}
    return {"step": number, "look": {"2": relu, "1": dense, "3": {"grad_norm": "inf", "param_norm": 2.0}}}


def event(number, kind, **more):
    return {"step": number, "loss": "nan", "origin": "layer 1, dy of dense(512)", "layer": "1", "event": kind, **more}


def alert(number, **more):
    return {"step": number, "alert": "dead relu", "layer": "2", "number": 0.97, "text": "layer 2: 97% are zero", **more}


def directory(path, *rows, config=CONFIG, end=""):
    """A run's directory made by hand."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.toml").write_text(config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run of mnist with two checkpoints and two looks; compiled the quick way."""
    out = tmp_path_factory.mktemp("real") / "run"
    jax.config.update("jax_disable_most_optimizations", True)
    code = main(["train", "mnist", "--steps", "20", "--checkpoint-every", "10", "--watch-every", "10", "--quiet",
                 "--out", str(out)])
    jax.config.update("jax_disable_most_optimizations", False)
    assert code == 0
    return out


def answer(capsys, *argv):
    """(stdout, its JSON line read) of a report that succeeds; strict JSON, nothing on stderr."""
    assert main(["report", *map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out, json.loads(out.splitlines()[-1], parse_constant=pytest.fail)


def width(png):
    return struct.unpack(">II", png.read_bytes()[16:24])[0]


# ---- a real run


def test_a_real_run_is_told_and_drawn(real, quick_compile, capsys):
    out, found = answer(capsys, real)
    rows = records(real)
    losses = [row["loss"] for row in rows if "loss" in row]
    best = int(np.argmin(losses))
    assert found["scores"]["loss"] == {"first": losses[0], "last": losses[-1], "best": losses[best], "best_step": best + 1}
    tested = [row["test_accuracy"] for row in rows if "epoch" in row]
    accuracy = found["scores"]["test_accuracy"]
    assert [accuracy[name] for name in ("first", "last", "best")] == [tested[0], tested[-1], max(tested)]
    assert found["layers_step"] == 20
    assert (found["status"], found["step"], found["steps"], found["notes"]) == ("finished", 20, 20, [])
    assert 0 < found["gradient_error"] < 1e-5
    assert list(found["layers"]) == ["0", "1", "2", "3"]
    assert 0 < found["layers"]["2"]["dead"] < 1
    assert found["layers"]["1"]["update_ratio"] > 0
    assert "1 dense(512)" in out
    assert "lr 0.003" in out
    assert found["figures"] == [str(real / "report" / name) for name in FIGURES]
    assert all(width(Path(figure)) == 1200 for figure in found["figures"])


def test_the_first_layer_is_drawn_from_the_checkpoints_with_its_true_gradient(real, quick_compile):
    from fbackprop.report.first_layer import first_layer

    history = read_run(real)
    task, _ = task_of(history)
    figure, note = first_layer(history, task, layer_names(task))
    assert note == ""
    images = {ax.get_title(): ax.images[0].get_array() for ax in figure.axes if ax.images}
    assert [title.partition(", norm")[0] for title in images] == [
        "weights, step 10", "gradient, step 10", "weights, step 20", "gradient, step 20"]
    params, batch = start(task, history.config)
    for row, file in enumerate(files(real / "checkpoints")):
        leaves = {name: leaf for name, leaf in checkpoint.read(file)[1].items() if name.startswith("params/")}
        filled = checkpoint.fill({"params": params}, leaves, file)["params"]
        grads = jax.jit(auto_value_and_grad(task.net, task.loss))(filled, batch)[1]
        for tree, image in zip((filled, grads), list(images.values())[2 * row:2 * row + 2]):
            unit_10 = paths(tree)["1/w"][:, 10].reshape(28, 28)  # the third in the second row; images are 2 apart
            np.testing.assert_allclose(image[30:58, 60:88], unit_10, rtol=1e-4, atol=1e-7)
            assert np.ma.masked_invalid(image[28:30]).mask.all()


# ---- every state of a directory


STATES = {
    "nothing yet": ([], "", "ended before its first step"),
    "before the first step": ([epoch(0, 0)], "", "ended before its first step"),
    "in the middle": ([epoch(0, 0), step(1), step(2), step(3)], "", "ended before its last step"),
    "a last line cut off": ([epoch(0, 0), step(1), step(2)], '{"step": 3, "lo', "2 of 40 steps"),
    "garbage in the middle": ([step(1)], "\0\0\0\x1f\n" * 3 + json.dumps(step(2)) + "\n", "3 lines of metrics.jsonl"),
    "other JSON": ([step(1), 7, [], None, {"step": "2", "loss": 1}, {"loss": 2.0}, {"step": 2}], "", "1 of 40 steps"),
    "all not finite": ([epoch(0, 0, test_loss="nan", test_accuracy="nan", gradient_error="nan", gradient_norms={"1": "inf"}),
                        step(1, "nan"), step(2, "-inf")], "", "nan"),
    "losses below 0": ([epoch(0, 0), step(1, -1.0), step(2, 3.0), step(3, 0.0)], "", "-1.0000"),
    "halted": ([epoch(0, 0), step(1), event(2, "halted")], "", "it began in layer 1, dy of dense(512)"),
    "looks and alerts": ([epoch(0, 0), *[row for n in range(1, 21) for row in (step(n, 1 / n), look(n))], alert(20),
                          alert(30, ended=True) | {"number": "nan"}, epoch(2, 40)], "", "dead relu: layer 2: 97%"),
    "looks of nothing": ([step(1), {"step": 1, "look": {}}, {"step": 1, "look": None}, {"step": 1, "look": {"1": 3}},
                          {"step": 1, "alert": "dead"}, {"step": 1, "event": "new"}], "", "new"),
}


DRAWN = ("nothing yet", "all not finite", "losses below 0", "looks and alerts", "looks of nothing")


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_gives_a_report(state, tmp_path, capsys):
    rows, end, words = STATES[state]
    run = directory(tmp_path / "run", *rows, end=end)
    out, found = answer(capsys, run, *([] if state in DRAWN else ["--text"]))
    assert words in " ".join(out.split())
    if state in DRAWN:
        assert [Path(figure).name for figure in found["figures"]] == (["training.png", "layers.png"] if rows else [])
        assert any("no whole checkpoint yet" in note for note in found["notes"])


def test_a_run_that_goes_on_is_told_so(tmp_path, capsys):
    run = directory(tmp_path / "run", epoch(0, 0), step(1))
    with FileLock(run / "run.lock"):
        assert "still going on" in answer(capsys, run, "--text")[0]
    assert "still going on" not in answer(capsys, run, "--text")[0]


def test_what_was_undone_does_not_count(tmp_path):
    history = read_run(directory(tmp_path / "run", *[row for n in range(1, 9) for row in (step(n, 9.0), look(n))],
                                 event(9, "went back", to=5), *[step(n, 1.0) for n in range(6, 8)]))
    assert series(history.steps, "loss") == ([1, 2, 3, 4, 5, 6, 7], [9.0] * 5 + [1.0] * 2)
    assert layer_series(history, "grad_norm")["1"][0] == [1, 2, 3, 4, 5]
    assert [(mark.step, mark.kind) for mark in history.marks] == [(9, "went back")]
    assert "went back to step 5" in history.marks[0].text


def test_the_last_look_is_the_table(tmp_path):
    history = read_run(directory(tmp_path / "run", look(1), look(4)))
    found = report(history, None, "gone")
    assert found.layers_step == 4
    assert list(found.layers) == ["1", "2", "3"]
    assert found.layers == {"1": {"grad_norm": 0.4, "param_norm": 9.0, "update_ratio": 1e-3, "y_rms": 1.0},
                            "2": {"dead": 0.25, "saturated": 0.5}, "3": {"grad_norm": float("inf"), "param_norm": 2.0}}


def test_layers_stand_in_the_order_of_the_net_and_blocks_have_names(tmp_path):
    paths = ["10", "2/0[10]/1", "2/0/1", "2/0[9]/1", "1", ""]
    history = read_run(directory(tmp_path / "run", {"step": 1, "look": {path: {"y_rms": 1.0} for path in paths}}))
    assert list(report(history, None, "gone").layers) == ["", "1", "2/0/1", "2/0[9]/1", "2/0[10]/1", "10"]
    assert label("2/0[9]/1", {"2/0/1": "relu()"}) == "2/0[9]/1 relu()"


def test_seconds_of_a_resumed_run_add_up(tmp_path):
    rows = [epoch(0, 0, seconds=1.0), epoch(1, 20, seconds=5.0), epoch(2, 40, seconds=2.0)]
    assert read_run(directory(tmp_path / "run", *rows)).seconds == 7.0


def test_what_comes_again_and_again_is_one_line():
    marks = [Mark(n, "overflow", "1", f"overflow {n}") for n in range(5)]
    assert mark_lines(marks) == ["step 0: overflow 0 (5 times, the last at step 4)"]
    many = mark_lines([Mark(n, "dead", str(n), "zero", alert=True) for n in range(100)])
    assert len(many) == 41
    assert many[0] == "step 0: dead: zero"
    assert many[20] == "... 60 more ..."


def test_a_damaged_checkpoint_gives_way_to_the_others(real, tmp_path, capsys):
    from fbackprop.report.first_layer import first_layer

    run = directory(tmp_path / "run", epoch(0, 0))
    old, new = files(real / "checkpoints")
    (run / "checkpoints" / old.name).write_bytes(old.read_bytes())
    (run / "checkpoints" / new.name).write_bytes(new.read_bytes()[:-100])
    history = read_run(run)
    figure, note = first_layer(history, None, {})  # and without the task, as where its file is gone
    assert new.name in note
    assert "damaged" in note
    assert [ax.get_title().partition(",")[0] for ax in figure.axes if ax.images] == ["weights"]


def test_a_model_that_has_changed_since_is_drawn_without_gradients(real, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OTHER)
    run = directory(tmp_path / "run", epoch(0, 0), config=f'model = "{(tmp_path / "mine.py").as_posix()}:function"\n')
    file = files(real / "checkpoints")[0]
    (run / "checkpoints" / file.name).write_bytes(file.read_bytes())
    found = answer(capsys, run)[1]
    assert str(run / "report" / "first_layer.png") in found["figures"]
    assert any("The checkpoint is of another network" in note for note in found["notes"])


def test_a_run_whose_model_is_gone_is_told_without_it(tmp_path, capsys):
    run = directory(tmp_path / "run", epoch(0, 0), step(1), config='model = "gone.py:function"\n')
    assert "gone.py: expected a Python file" in " ".join(answer(capsys, run, "--text")[0].split())


@pytest.mark.parametrize(("shape", "image", "expected"), [
    ((9, 3), (3, 3), (3, 11)), ((3, 3, 2, 20), (3, 3), (7, 31)), ((5, 7), None, (5, 7)), ((7, 5), None, (5, 7)),
    ((2, 3, 4), None, (4, 6))])
def test_pictures(shape, image, expected):
    from fbackprop.report.first_layer import picture

    assert picture(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), image).shape == expected


def test_the_smoothed_line_is_a_mean_of_what_is_finite():
    from fbackprop.report.figures import smooth

    np.testing.assert_allclose(smooth([1.0, 2.0, float("nan"), 4.0, float("inf")], 3), [1.5, 1.5, 3.0, 4.0, 4.0])


# ---- mistakes


MISTAKES = {
    "no directory": (lambda p: p / "none", 74, "found nothing"),
    "a file": (lambda p: directory(p / "run") / "metrics.jsonl", 2, "got a file"),
    "an empty directory": (lambda p: p, 74, "config.toml"),
    "no metrics": (lambda p: (directory(p / "run") / "metrics.jsonl").unlink() or p / "run", 74, "metrics.jsonl"),
    "config no TOML": (lambda p: directory(p / "run", config="model: mnist"), 74, "config.toml"),
    "config without a model": (lambda p: directory(p / "run", config="lr = 0.1"), 74, "model"),
    "config of another program": (lambda p: directory(p / "run", config='model = "mnist"\nname = "x"'), 74, "name"),
    "config with a wrong value": (lambda p: directory(p / "run", config='model = "mnist"\nlr = "fast"'), 74, "config.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_clear_line(mistake, tmp_path, capsys):
    make, code, words = MISTAKES[mistake]
    assert main(["report", str(make(tmp_path))]) == code
    out, err = capsys.readouterr()
    assert words in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err


def test_figures_where_there_is_no_place_for_them(tmp_path, capsys):
    run = directory(tmp_path / "run", step(1))
    assert main(["report", str(run), "--out", str(run / "config.toml")]) == 2
    assert main(["report", str(run), "--out", str(run / "config.toml" / "below")]) == 74
    assert "Traceback" not in capsys.readouterr().err
    assert (run / "config.toml").read_text() == CONFIG


def test_without_matplotlib_it_is_told_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = directory(tmp_path / "run", step(1))
    assert main(["report", str(run)]) == 2
    assert "pip install 'fbackprop[plot]'" in capsys.readouterr().err
    assert main(["report", str(run), "--text"]) == 0


# ---- configurations to begin with


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_a_configuration_says_what_the_documented_figures_were_made_with(file):
    options = vars(parse(Options, "train", [file.stem, "--config", str(file)]))
    names = TrainConfig.__dataclass_fields__
    given = TrainConfig.of(**{name: options[name] for name in names})
    documented = TrainConfig.of(model=file.stem)
    assert {name for name in names if getattr(given, name) != getattr(documented, name)} <= {"epochs"}
    assert given.steps or given.epochs == (documented.epochs or 10)
    assert f"fbackprop train {file.stem} --config experiments/configs/{file.name}" in file.read_text().splitlines()[0]


def test_there_is_a_configuration_for_every_model():
    assert {file.stem for file in CONFIGS.glob("*.toml")} == set(PRESETS) - {"mlp"}


def test_a_configuration_runs(tmp_path, quick_compile):
    text = (CONFIGS / "recommender.toml").read_text().replace("epochs = 12", "steps = 2")
    file, run = tmp_path / "two.toml", tmp_path / "run"
    file.write_text(text)
    assert main(["train", "recommender", "--config", str(file), "--out", str(run), "--quiet"]) == 0
    assert [row["step"] for row in records(run) if "loss" in row] == [1, 2]
