"""The command that measures an accelerator: its columns, its refusals, and that a kill loses no row."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from bench import accelerator as device
from bench.worker import Worker, Workers, answer
from bench.works import SMALL, WORKS
from test_experiments import load

from fbackprop.errors import Problem

ROOT = Path(__file__).parents[1]
command, rows, table = map(load, ("accelerator", "accelerator_rows", "accelerator_table"))
ROWS = command.ROWS
FACTS = {"dtype": "float32", "unit": "examples", "batch": 4, "params": 10, "flops": 100}
ABOUT = {"backend": "gpu", "device": "Some GPU", "count": 1, "small": False}
FIGURES = {"ms": 2.0, "temp_mb": 1.5, "compile_s": 0.5, "value": 0.7, "gradient_difference": 1e-6,
           "peak_mb": 9.0}
TUNING = {"least": "dots", "plain": "scan", "settings": 3, "compiled": 3, "failed_settings": {},
          "temp_mb": {"dots": 1.0}}
OUT_OF_MEMORY = "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes"


class Fake:
    """Workers that answer at once. planted: by peer, an answer in place of figures."""

    def __init__(self, planted=None, **about):
        self.planted, self.about, self.asked = planted or {}, {**ABOUT, **about}, []

    def ask(self, request, seconds):
        self.asked.append(request)
        kind = request["ask"]
        if kind == "about":
            return {**self.about, "works": dict.fromkeys(request["works"], FACTS)}
        if kind == "layers":
            return {"against": "the CPU", "layers": 3, "failed_layers": {"lstm": "broken"},
                    "differences": {"dense": 1e-7, "gelu": float("nan")}, "seconds": 1.0}
        answers = {"peak": {"float32": 1e6, "bfloat16": None}, "tuned": TUNING}
        found = self.planted.get(request.get("peer"), answers.get(kind, FIGURES))
        return {**found, "seconds": 1.0}

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """(fake, *options) -> (exit code, the file's content or None, stderr); all libraries are there."""
    monkeypatch.setattr(sys.modules["accelerator_rows"], "find_spec", lambda name: name)
    out = tmp_path / "found.json"

    def call(fake=None, *options):
        where = [] if "--out" in options else ["--out", str(out)]
        code = command.main([*options, *where], fake or Fake())
        return code, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().err

    call.out = out
    return call


def programs(content, row):
    return next(each for each in content["rows"] if each["name"] == row)["arms"]


def nulls(tree, why=None):
    """The paths of every null, and whether `why` beside it gives a reason."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if value is None:
            found.append((key, key in tree.get("why", {})))
        elif isinstance(value, (dict, list)) and key != "tuning":
            found += nulls(value)
    return found


def test_there_is_a_row_for_every_work_and_a_small_one():
    assert set(ROWS) == {*WORKS, "layers", "devices"}
    assert SMALL.keys() == WORKS.keys()


def test_every_row_has_all_its_columns_and_no_null_without_a_reason(run):
    code, content, _ = run()
    assert code == 0
    assert [row["name"] for row in content["rows"]] == list(ROWS)
    assert content["missing"] == []
    assert {row["state"] for row in content["rows"]} == {"done"}
    hand = programs(content, "gpt")["by hand"]
    assert hand["ms"] == 2.0
    assert hand["per_s"] == pytest.approx(2000)
    assert hand["peak_share"] == pytest.approx(100 / 2e-3 / 1e6)
    tuned = [programs(content, "gpt")[name] for name in (rows.LEAST, rows.PLAIN)]
    assert [each["setting"] for each in tuned] == ["dots", "scan"]
    assert all(reasoned for _, reasoned in nulls(content)), nulls(content)
    assert programs(content, "devices")["all devices"] == {"missing": "there is only one device"}


def test_the_table_has_the_device_the_date_and_a_line_for_every_program(run, capsys):
    _, content, _ = run(Fake({"jax": {**FIGURES, "ms": 8.0}}))
    assert table.main([str(run.out)]) == 0
    said = capsys.readouterr().out
    for words in ("1 x Some GPU (gpu)", content["date"][:10], f"jax {jax.__version__}",
                  "| by hand | all kept | 2 | 0.25 |", "1 of 3 compared",
                  "Layer lstm failed: broken", "Layer gelu failed: the difference is nan",
                  "there is only one device"):
        assert words in said
    assert said.count("| by hand |") == len(WORKS)


def test_a_program_that_runs_out_of_memory_says_so_and_the_run_goes_on(run, capsys):
    _, content, _ = run(Fake({"jax": {"failed": OUT_OF_MEMORY}}))
    assert content["missing"] == []
    assert programs(content, "gpt")["jax"]["failed"] == OUT_OF_MEMORY
    assert programs(content, "gpt")["torch"]["ms"] == 2.0
    assert table.main([str(run.out)]) == 0
    assert OUT_OF_MEMORY in capsys.readouterr().out


def test_a_row_without_any_figure_has_failed(run):
    peers = ("manual", "jax", "jax-tuned", "flax", "torch", "torch-compile")
    _, content, _ = run(Fake({peer: {"failed": OUT_OF_MEMORY} for peer in peers}))
    row = content["rows"][0]
    assert (row["state"], row["why"]) == ("failed", OUT_OF_MEMORY)
    fake = Fake()
    run(fake)
    assert [request["ask"] for request in fake.asked] == ["about"]  # a failure is a result, it is not measured again


def test_a_missing_library_is_named(run, monkeypatch):
    monkeypatch.setattr(sys.modules["accelerator_rows"], "find_spec", lambda name: None)
    _, content, _ = run()
    missing = {"setting": "idiomatic", "missing": "flax is not installed"}
    assert programs(content, "mlp")["flax"] == missing
    assert programs(content, "mlp")["torch"]["missing"] == "torch is not installed"


def test_a_device_without_memory_statistics_and_a_loss_that_is_not_finite_have_a_reason(run):
    odd = {**{key: value for key, value in FIGURES.items() if key != "peak_mb"}, "value": float("nan")}
    _, content, _ = run(Fake({"manual": odd}))
    why = programs(content, "cnn")["by hand"]["why"]
    assert why == {"peak_mb": "the device keeps no memory statistics", "value": "nan, not finite"}


def test_a_second_call_measures_what_is_missing_alone(run):
    _, content, said = run(None, "--rows", "mlp", "gpt")
    assert [row["name"] for row in content["rows"]] == ["gpt", "mlp"]
    assert content["missing"] == [name for name in ROWS if name not in ("gpt", "mlp")]
    fake = Fake()
    _, content, _ = run(fake)
    assert content["missing"] == []
    assert not {"gpt", "mlp"} & {request.get("work") for request in fake.asked}


def test_a_row_that_the_time_cuts_is_missing_and_done_again(run, capsys):
    code, content, _ = run(Fake({"torch": {"failed": "stopped", "stopped": True}}), "--minutes", "0.5")
    assert code == 0
    row = content["rows"][0]
    assert (row["state"], row["why"]) == ("missing", "the call ended in this row")
    assert programs(content, "gpt2-124m").keys() == {"by hand", "jax"}
    assert content["missing"] == list(ROWS)
    _, content, _ = run()
    assert content["rows"][0]["state"] == "done"


def test_a_program_beyond_its_own_limit_is_a_result(run):
    _, content, _ = run(Fake({"torch": {"failed": "stopped after 90 s", "stopped": True}}), "--minutes", "5")
    assert content["missing"] == []
    assert programs(content, "gpt")["torch"]["failed"] == "stopped after 90 s"


def test_no_time_is_a_valid_file_without_rows(run):
    code, content, _ = run(None, "--minutes", "1e-9")
    assert (code, content["rows"], content["missing"]) == (0, [], list(ROWS))


@pytest.mark.parametrize(("about", "words"), [
    ({"device": "Another GPU"}, "'Some GPU' in the file and 'Another GPU' here"),
    ({"count": 8}, "count 1 in the file and 8 here"),
    ({"small": True}, "small")])
def test_a_file_of_another_device_is_refused_and_left_alone(run, about, words):
    run(None, "--rows", "mlp")
    before = run.out.read_bytes()
    code, _, said = run(Fake(**about))
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert run.out.read_bytes() == before


def test_a_file_of_other_versions_is_refused(run):
    _, content, _ = run(None, "--rows", "mlp")
    content["versions"]["jax"] = "0.1"
    run.out.write_text(json.dumps(content))
    code, _, said = run()
    assert code == 2
    assert f"got jax '0.1' in the file and '{jax.__version__}' here" in said


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": 1}'])
def test_a_file_that_is_not_ours_is_refused_by_both_commands(run, capsys, text):
    run.out.write_text(text)
    fake = Fake()
    assert command.main(["--out", str(run.out)], fake) == 2
    assert table.main([str(run.out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert "expected JSON of `python experiments/accelerator.py`" in said
    assert fake.asked == []
    assert run.out.read_text() == text


def test_a_file_that_cannot_be_written_is_code_74(run, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, said = run(None, "--out", str(tmp_path / "taken" / "found.json"))
    assert code == 74
    assert said.count("\n") == 1


def test_the_table_of_a_broken_row_is_one_line_and_code_2(run, capsys):
    _, content, _ = run(None, "--rows", "mlp")
    del content["rows"][0]["dtype"]
    run.out.write_text(json.dumps(content))
    assert table.main([str(run.out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'dtype'" in said


@pytest.mark.parametrize("words", [[], ["one", "two"]])
def test_the_table_wants_one_file(words, capsys):
    assert table.main(words) == 2
    assert "expected one file" in capsys.readouterr().err


def test_the_table_of_no_file_is_code_74(tmp_path, capsys):
    assert table.main([str(tmp_path / "none.json")]) == 74
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("options", "words"), [
    (["--minutes", "0"], "above 0"), (["--minutes", "nan"], "above 0"), (["--minutes", "ten"], "--minutes"),
    (["--rows", "gpt3"], "--rows 'gpt3': expected some of gpt2-124m"), (["--small", "--full"], "not allowed"),
    (["--sed"], "--help lists the options")])
def test_a_wrong_option_is_one_line_and_code_2(run, options, words):
    code, content, said = run(None, *options)
    assert (code, content) == (2, None)
    assert words in said
    assert said.count("\n") == 1


def test_a_backend_that_does_not_start_is_one_line_and_code_1(run):
    fake = Fake()
    fake.ask = lambda request, seconds: {"failed": "ended with exit code 1: no device"}
    code, content, said = run(fake)
    assert (code, content) == (1, None)
    assert "no device" in said


# the processes

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@pytest.mark.parametrize(("program", "words"), [
    ("import time; time.sleep(60)", "stopped after 1 s"), ("import sys; sys.exit('no device')", "exit code 1: no device"),
    ("import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
    (ECHO, None)])
def test_a_process_that_ends_or_hangs_is_a_reason(program, words):
    worker = Worker({}, [sys.executable, "-c", program])
    found = worker.ask({"peer": "jax"}, 1.0 if "sleep" in program else 20.0)
    worker.end()
    assert not worker.alive
    assert found == {"peer": "jax"} if words is None else words in found["failed"]


WHO = """import json, os, sys
for line in sys.stdin: print(json.dumps({"pid": os.getpid()}), flush=True)"""


@pytest.mark.parametrize(("reuse", "ahead", "count"), [(True, False, 1), (False, False, 3), (False, True, 3)])
def test_a_program_has_a_fresh_process_unless_one_is_reused(reuse, ahead, count):
    workers = Workers({}, reuse, ahead, [sys.executable, "-c", WHO])
    found, waiting = [], []
    for _ in range(3):
        found.append(workers.ask({}, 20.0)["pid"])
        waiting.append(workers.next and workers.next.process.pid)
    assert len(set(found)) == count
    if ahead:
        assert found[1:] == waiting[:2]  # the process that started during the measurement before
    workers.close()
    assert not any(psutil.pid_exists(pid) for pid in {*found, *waiting} - {None})


def test_an_exception_is_one_line_and_a_problem_is_a_missing_thing():
    def out_of_memory(request):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand much more")

    def no_library(request):
        raise Problem("torch sees no GPU")

    assert answer(out_of_memory, {}) == {"failed": "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert answer(no_library, {}) == {"missing": "torch sees no GPU"}


def test_gradients_are_compared_leaf_by_leaf_with_the_first_program(tmp_path):
    path, grads = tmp_path / "gradients.npz", {"a": np.array([1.0, -4.0]), "b": np.array([1e-3])}
    assert device.compared(path, False, grads) == {}
    assert device.compared(path, True, grads) == {}
    assert device.compared(path, False, grads) == {"gradient_difference": 0.0}
    moved = {**grads, "b": grads["b"] * 1.5}
    assert device.compared(path, False, moved)["gradient_difference"] == pytest.approx(0.5)


def test_the_tuned_settings_are_the_smallest_and_the_smallest_that_recomputes_nothing():
    sizes = {"idiomatic": 1, "a": 9, "b": 5, "c": 2}
    assert device.picked(sizes, ["idiomatic", "a", "b"]) == {"least": "idiomatic", "plain": "b"}
    assert device.picked({}, []) == {"least": None, "plain": None}
    square = jax.checkpoint(lambda x: x * x)
    assert device.REMAT.search(str(jax.make_jaxpr(square)(1.0)))
    assert not device.REMAT.search(str(jax.make_jaxpr(jnp.square)(1.0)))


def test_what_does_not_compile_is_named_and_the_others_are_kept():
    def fail_at_b(name):
        if name == "b":
            raise ValueError("no such kernel")
        return len(name)

    assert device.in_threads(fail_at_b, ["a", "b"], 9.0) == ({"a": 1}, {"b": "no such kernel"})


# the whole, on this CPU

EXTRAS = ("tyro", "rich", "psutil", "matplotlib", "flax", "torch", "equinox")


def test_a_process_that_measures_imports_no_extra():
    program = ("import sys, bench.accelerator\n"
               f"print([name for name in {EXTRAS} if name in sys.modules])")
    words = [sys.executable, "-c", program]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def start(tmp_path):
    """() -> the command as a process, from another directory and without any PYTHONPATH."""
    def call():
        program = ROOT / "experiments" / "accelerator.py"
        words = [sys.executable, str(program), "--minutes", "4", "--out", str(call.out)]
        environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    call.out = tmp_path / "a.json"
    return call


def done_rows(content):
    return [row["name"] for row in content["rows"] if row["state"] == "done"]


def wait_for_rows(start, count):
    """Until so many rows are done; returns their names."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        if start.out.exists() and len(done := done_rows(json.loads(start.out.read_text()))) >= count:
            return done
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.slow
def test_a_call_that_is_killed_keeps_its_rows_and_is_continued_to_the_end(start, capsys):
    process = start()
    done = wait_for_rows(start, 3)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    kept = json.loads(start.out.read_text())
    assert done_rows(kept) == list(ROWS[: len(done)])
    assert kept["missing"] == list(ROWS[len(done):])
    assert psutil.wait_procs(children, timeout=20)[1] == []  # no process is left on the device

    process = start()
    wait_for_rows(start, len(done) + 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert said.rstrip().endswith("ended by SIGTERM; the file has every finished measurement")

    process = start()
    said, progress = process.communicate()
    assert process.returncode == 0, progress
    assert said.strip() == f"{start.out}: 9 of 9 rows."
    content = json.loads(start.out.read_text())
    assert done_rows(content) == list(ROWS)
    assert content["rows"][0] == kept["rows"][0]
    assert all(reasoned for _, reasoned in nulls(content)), nulls(content)
    for name in WORKS:
        for program, each in programs(content, name).items():
            assert "failed" not in each, (name, program, each)
            bound = 0.2 if name == "gpt2-124m" else 1e-4  # bfloat16 has 8 bits
            assert each.get("gradient_difference", 0) <= bound, (name, program)
    assert programs(content, "layers")["layers"]["difference"] <= 1e-4
    assert programs(content, "devices")["all devices"]["gradient_difference"] <= 1e-4
    assert table.main([str(start.out)]) == 0
    assert "59 of 59 compared" in capsys.readouterr().out
