"""Grading a folder: what becomes of honest files, of broken ones, and of files that attack the grader."""

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event

import psutil
import pytest
from answers import RIGHT, WRONG, filled, right

import fbackprop
from fbackprop.classroom.exercises import EXERCISES
from fbackprop.classroom.grading import contain
from fbackprop.cli import main

WRONG_DENSE = filled("dense", WRONG["dense"]["db of one row"][0])
LINES = RIGHT["dense"]
COMPLEX_STEP = """
h = 1e-15
moved = lambda e: {"w": params["w"] + 0j, "b": params["b"] + 1j * h * e}
db = jax.vmap(lambda e: jnp.sum(forward(moved(e), x)[0].imag / h * dy))(jnp.eye(len(params["b"]), dtype=x.dtype))
return {"w": x.T @ dy, "b": db.astype(x.dtype)}, dy @ params["w"].T
"""


def before(text, source=None):
    """Lines in front of everything else of a file."""
    return f"{text}\n{right('dense') if source is None else source}"


def instead(lines):
    return filled("dense", lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


def graded(folder, files, *options, capsys):
    """{file: its row}, the summary and the exit code, of these files in a folder."""
    for name, text in files.items():
        (folder / f"{name}.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    code = main(["verify", str(folder), "--json", *options])
    *rows, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["file"] for row in rows] == sorted(f"{name}.py" for name in files)
    assert summary["verb"] == "verify"
    assert summary["files"] == len(files) == sum(summary[v] for v in (
        "ok", "wrong", "kink", "noisy", "blank", "error", "timeout", "memory"))
    return {row["file"].removesuffix(".py"): row for row in rows}, summary, code


def test_a_class(folder, capsys):
    """The verdicts a class gives, each with what a teacher needs; nothing is written into the folder."""
    files = {"ada": right("dense"), "bob": WRONG_DENSE, "cem": EXERCISES["dense"].file.read_text(),
             "dan": instead("return jax.vjp(lambda p, x: forward(p, x)[0], params, x)[1](dy)"), "eve": "no python"}
    rows, summary, code = graded(folder, files, "--seed", "3", capsys=capsys)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "ada": "OK", "bob": "WRONG", "cem": "BLANK", "dan": "ERROR", "eve": "ERROR"}
    assert code == 1
    assert summary["seed"] == 3
    assert rows["ada"]["worst"]["error"] <= rows["ada"]["worst"]["bound"]
    assert rows["bob"]["worst"]["leaf"] == "params/b"
    assert "the sum over the batch is missing" in rows["bob"]["hint"]
    assert "not written yet" in rows["cem"]["reason"]
    assert "jax.vjp is autodiff" in rows["dan"]["reason"]
    assert "which exercise?" in rows["eve"]["reason"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.py" for name in sorted(files)]


HOSTILE = {
    # what it does: (the file, its verdict, words of the reason)
    "exits": (before("import os; os._exit(0)"), "ERROR", "ended by itself"),
    "loops": (before("while True: pass"), "TIMEOUT", "still running after 2 s"),
    "deletes": (before("import shutil; shutil.rmtree({folder!r})"), "ERROR", "no file outside"),
}
MORE = {
    "forges": (before("import os, json\nprint(json.dumps({'file': 'forges.py', 'verdict': 'OK'}), flush=True)\n"
                      "open('failure', 'w').write(json.dumps(['OK', '']))\nos._exit(0)"), "ERROR", "cannot be read"),
    "patches": (before("import numpy as np, jax.numpy as jnp, fbackprop.verify.subject as s\n"
                       "np.max = lambda *a, **k: 0.0\nnp.allclose = jnp.allclose = lambda *a, **k: True\n"
                       "s.WrongStructure = KeyError", WRONG_DENSE), "WRONG", ""),
    "kills": (before("import os; os.kill(os.getppid(), 9)"), "ERROR", "no other program"),
    "sys_exits": (before("import sys; sys.exit(0)"), "ERROR", "SystemExit"),
    "sleeps": (before("import time; time.sleep(1e6)"), "TIMEOUT", ""),
    "loops_in_backward": (instead("while True: pass"), "TIMEOUT", ""),
    "leaves_a_thread": (before("import threading as t, time; t.Thread(target=time.sleep, args=(1e6,)).start()"), "TIMEOUT", ""),
    "grows": (before("a = []\nwhile True: a.append(b'x' * 10**7)"), "MEMORY", "more than 1500 MB"),
    "asks_for_all": (before("import numpy; numpy.full(10**14, 1.0)"), "MEMORY", ""),
    "prints": (before("for _ in range(10**5): print('x' * 10**4)"), "OK", ""),
    "forks": (before("import os\nwhile True: os.fork()"), "ERROR", "no other program"),
    "starts": (before("import subprocess; subprocess.run(['true'])"), "ERROR", "no other program"),
    "starts_below": (before("import _posixsubprocess as p; p.fork_exec()"), "ERROR", "no other program"),
    "fills_the_disk": (before("f = open('big', 'wb')\nfor _ in range(200): f.write(bytes(10**6))"), "ERROR", "OSError"),
    "connects": (before("import socket; socket.create_connection(('127.0.0.1', 9))"), "ERROR", "network"),
    "dlopens": (before("import ctypes; ctypes.CDLL(None)"), "ERROR", "ctypes"),
    "reads_a_neighbour": (before("open({folder!r} + '/sleeps.py').read()"), "ERROR", "reads no file outside"),
    "reads_our_rules": (before("import fbackprop; open(fbackprop.__file__)"), "ERROR", "reads no file outside"),
    "lists": (before("import os; os.listdir({folder!r})"), "ERROR", "reads no file outside"),
    "overwrites": (before("open({folder!r} + '/overwrites.py', 'w')"), "ERROR", "writes no file outside"),
    "moves": (before("import os; os.rename('submission.py', {folder!r} + '/sleeps.py')"), "ERROR", "changes no file"),
    "forges_numbers": (before("import os\nopen('numbers', 'wb').write(b'0' * 10**6)\nos._exit(0)"), "ERROR", "another shape"),
    "forges_zeros": (before("import os\nopen('numbers', 'wb').write(bytes(1680))\nos._exit(0)"), "ERROR", "forward"),
    "links": (before("import os\nos.symlink('/dev/zero', 'numbers')"), "ERROR", "changes no file"),
    "pipes": (before("import os\nos.mkfifo('numbers')\nos._exit(0)"), "ERROR", "ended by itself"),
    "digs": (before("import os\nfor _ in range(300): os.mkdir('d'); os.chdir('d')"), "OK", ""),
    "raises_escapes": (instead("raise ValueError('\\x1b[2J\\x1b[31m' + 'x' * 10**6)"), "ERROR", "ValueError"),
    "raises_itself": (before("class E(Exception):\n    def __str__(self): raise self\nraise E()"), "ERROR", ""),
    "nests": ("EXERCISE = 'dense'\n" + "(" * 10**5, "ERROR", "line"),
    "null_bytes": (b"EXERCISE = 'dense'\n\x00", "ERROR", ""),
    "is_latin1": (b"EXERCISE = 'dense'\n# caf\xe9", "ERROR", ""),
    "is_long": (before("#" * 1_100_000), "ERROR", "longer than"),
    "identity": (right("dense").replace('x @ params["w"] + params["b"], x', 'x, x'), "ERROR", "forward is not the exercise's"),
    "other_forward": (right("dense").replace("def backward", "def other").replace(
        "return Layer(", 'backward = lambda p, x, dy: ({"w": 2 * x.T @ dy, "b": jnp.sum(dy, 0)}, 2 * dy @ p["w"].T)\n'
        "    return Layer(").replace('x @ params["w"] +', '2 * x @ params["w"] +'), "ERROR", "forward is not the exercise's"),
    "returns_none": (instead("pass"), "ERROR", "expected a pair (dparams, dx), got None"),
    "wrong_shape": (instead('return {"w": dy, "b": dy[0]}, dy @ params["w"].T'), "ERROR", "dparams"),
    "no_layer": (right("dense").replace("def layer", "def mine"), "ERROR", "expected a function 'layer'"),
    "no_layer_either": (right("dense").replace("return dense(5),", "return 7,"), "ERROR", "expected a Layer"),
    "no_arrays": (instead('return {"w": 1, "b": "b"}, None'), "ERROR", ""),
    "copies_ours": (before("from fbackprop import dense as ours"), "ERROR", "Layer alone"),
    "copies_a_package": (before("from fbackprop.layers import dense as ours"), "ERROR", "Layer alone"),
    "copies_a_module": (before("import sys\nours = sys.modules['fbackprop.layers.dense'].dense"), "ERROR", "KeyError"),
    "vjp_at_import": (before("from jax import vjp\nvjp(jnp.sin, 1.0)").replace("\n", "\nimport jax, jax.numpy as jnp\n", 1),
                      "ERROR", "autodiff"),
    "vjp_kept": (right("dense").replace('params["b"], x  #', 'params["b"], jax.vjp(jnp.sin, x)[1]  #'), "ERROR", "autodiff"),
    "grad_inside": (instead("return jax.grad(lambda a: jnp.sum(forward(*a)[0] * dy))((params, x))"), "ERROR", "autodiff"),
    "jvp": (instead("return jax.jacfwd(lambda a: jnp.sum(forward(*a)[0] * dy))((params, x))"), "ERROR", "autodiff"),
    "transposes": (instead("return params, jax.linear_transpose(lambda x: x @ params['w'], x)(dy)[0]"), "ERROR", "autodiff"),
    "private": (instead("from jax._src.interpreters import ad\nreturn ad.linearize(None, (params, x))"), "ERROR", "autodiff"),
    "reloads_and_uses": (instead("import importlib\nfrom jax._src import api\napi = importlib.reload(api)\n"
                                 "return api.vjp(lambda p, x: forward(p, x)[0], params, x)[1](dy)"), "ERROR", "reload"),
    "complex_step": (instead(COMPLEX_STEP), "ERROR", "complex numbers"),
    "jets": (before("import jax.experimental.jet"), "ERROR", "Layer alone"),
    "for_one_batch": (instead(LINES.replace("jnp.sum(dy, axis=0)", "dy[0] + dy[1] + dy[2]")), "WRONG",
                      "right for a batch of 3, wrong for one of 5"),
    "divides_by_three": (instead(LINES.replace("x.T @ dy", "x.T @ dy * len(x) / 3")), "WRONG", "right for a batch of 3"),
}


def check(cases, folder, capsys, *options):
    files = {name: text.replace("{folder!r}", repr(str(folder))) if isinstance(text, str) else text
             for name, (text, *_) in cases.items()}
    rows, _, code = graded(folder, files, *options, capsys=capsys)
    assert code == 1
    for name, (_, verdict, words) in cases.items():
        assert (rows[name]["verdict"], words in rows[name]["reason"]) == (verdict, True), rows[name]
        assert rows[name]["reason"].isprintable()
        assert len(rows[name]["reason"]) <= 300
    assert {path.stem: path.read_bytes() for path in folder.iterdir()} == {
        name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}


def test_hostile_files_harm_nothing(folder, capsys):
    check(HOSTILE, folder, capsys, "--seconds", "2")


@pytest.mark.slow
def test_more_hostile_files_harm_nothing(folder, capsys):
    check(MORE, folder, capsys, "--seconds", "30", "--memory", "1500")
    assert not list(Path(tempfile.gettempdir()).glob("fbackprop-*/submission.py"))


# ---- a program without any guard in it, held from outside alone

FAMILY = """
import os, sys, time
if sys.argv[1] == "bomb":
    for _ in range(7): os.fork()
elif sys.argv[1] == "daemon":  # leaves the tree: its parent ends at once
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(1e6)
        os._exit(0)
    time.sleep(0.3)
    sys.exit(0)
elif sys.argv[1] == "memory":
    kept = []
    while True: kept.append(b"x" * 10**7)
elif sys.argv[1] == "deaf":
    import signal
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
time.sleep(1e6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("what", "verdict"), [("bomb", "ERROR"), ("daemon", ""), ("memory", "MEMORY"), ("deaf", "TIMEOUT")])
def test_nothing_outlives_a_program(what, verdict, tmp_path):
    (tmp_path / "family.py").write_text(FAMILY)
    began = time.monotonic()
    said, _ = contain.run(["family.py", what], str(tmp_path), contain.Limits(seconds=2, memory=3 * 10**8), Event())
    assert said == verdict
    assert time.monotonic() - began < 10
    assert [p.pid for p in psutil.process_iter() if cwd(p) == str(tmp_path)] == []


def cwd(process):
    try:
        return process.cwd()
    except (psutil.Error, OSError):
        return None


@pytest.mark.slow
def test_an_interrupt_ends_all_of_them(folder):
    (folder / "loops.py").write_text(before("while True: pass"))
    command = [sys.executable, "-m", "fbackprop", "verify", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while not (below := psutil.Process(run.pid).children()):
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
        assert "Traceback" not in run.stderr.read()
    assert not any(map(psutil.Process.is_running, below))


# ---- no make, no fork, no call of one system alone

ABSENT = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix_spawn")
OF_ONE_SYSTEM = {"fork", "forkpty", "setsid", "setpgid", "killpg", "getpgid", "getuid", "geteuid", "mkfifo", "wait3", "alarm",
                 "SIGALRM", "SIGKILL", "SIGHUP", "setitimer", "preexec_fn", "start_new_session", "startupinfo",
                 "set_start_method"}


def imported():
    """The package's own modules that the exercises' path imports."""
    program = ("import sys, fbackprop.cli.exercise, fbackprop.cli.verify\n"
               "import fbackprop.classroom.grading.grade\n"
               "print(*sorted(m.__file__ for n, m in sys.modules.items() if n.startswith('fbackprop')), sep='\\n')")
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


@pytest.mark.slow
def test_nothing_on_the_way_is_of_one_system_alone():
    files = imported()
    assert {"grade.py", "guard.py", "contain.py", "submission.py", "reference.py"} <= {Path(file).name for file in files}
    for file in files:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
        guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.With) and "suppress(ImportError" in
                   ast.unparse(block.items[0]) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in guarded:
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {*ABSENT, "_posixsubprocess", "multiprocessing"}, (file, ast.unparse(node))
            name = getattr(node, "attr", None) if isinstance(node, ast.Attribute) else getattr(node, "arg", None)
            assert name not in OF_ONE_SYSTEM, (file, name)


@pytest.mark.slow
def test_it_works_without_what_windows_does_not_have(folder):
    """A stand-in for a system without fork: the modules and functions are taken away in every process on the way."""
    away = folder.parent / "away"
    away.mkdir()
    (away / "sitecustomize.py").write_text(
        "import os, signal, sys, psutil  # which has its own for every system\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"
        f"for name in {sorted(OF_ONE_SYSTEM - {'SIGKILL'})}:\n    for module in (os, signal):\n"
        "        if hasattr(module, name): delattr(module, name)\n")
    path = os.pathsep.join([str(away), os.environ.get("PYTHONPATH", str(away)), str(Path(fbackprop.__file__).parents[1])])
    run = lambda *argv: subprocess.run([sys.executable, "-m", "fbackprop", *argv], capture_output=True, text=True,
                                       cwd=folder, env={**os.environ, "PYTHONPATH": path})
    assert run("exercise", "dense").returncode == 0
    (folder / "right.py").write_text(right("dense"))
    (folder / "loops.py").write_text(before("import os\nassert not hasattr(os, 'fork')\nwhile True: pass"))
    done = run("verify", ".", "--json", "--seconds", "20")
    assert done.returncode == 1, done.stderr
    assert [json.loads(line).get("verdict") for line in done.stdout.splitlines()] == ["BLANK", "TIMEOUT", "OK", None]


# ---- options

@pytest.mark.parametrize(("argv", "code", "words"), [
    (["verify", "class"], 2, "expected a folder with *.py files"),
    (["verify", "no/such.py"], 74, "expected a Python file or a folder"),
    (["verify", "nowhere/"], 74, "expected a Python file or a folder"),
    (["verify", "class/a.py", "--exercise", "densse"], 2, "expected one of relu, dense"),
    (["verify", "class/a.py", "--exercise", "teacher.py"], 74, "teacher.py"),
    (["verify", "class/a.py", "--seconds", "0"], 2, "above 0"),
    (["verify", "class/a.py", "--jobs", "0"], 2, "above 0"),
    (["verify", "class/a.py", "--memory", "-1"], 2, "memory"),
    (["verify", "class/a.py", "--layer", "dense"], 2, "--layer"),
    (["verify", "--exercise", "dense"], 2, "--exercise: expected with a folder"),
    (["verify", "mlp", "--seconds", "3"], 2, "--seconds: expected with a folder"),
])
def test_a_mistake_is_one_clear_line(argv, code, words, folder, capsys):
    if "class/a.py" in argv:
        (folder / "a.py").write_text(right("dense"))
    assert main(argv) == code
    said = capsys.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("fbackprop: ")]) == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_teachers_own_exercise(folder, capsys):
    """Any file with a complete forward is one; --function names another function; and the exercise said in a file gives way."""
    Path("square.py").write_text(SQUARE.replace("BACK", "2 * x * dy"))
    files = {"ada": SQUARE.replace("BACK", "2 * x * dy"), "bob": SQUARE.replace("BACK", "x * dy"), "cem": right("relu")}
    rows, _, code = graded(folder, files, "--exercise", "square.py", "--function", "made", capsys=capsys)
    assert {name: row["verdict"] for name, row in rows.items()} == {"ada": "OK", "bob": "WRONG", "cem": "ERROR"}
    assert "half the right one" in rows["bob"]["hint"]
    assert "expected a function 'made'" in rows["cem"]["reason"]
    assert code == 1


SQUARE = """
from fbackprop import Layer
def made():
    return Layer("square()", lambda key, x: (), lambda p, x: (x * x, x), lambda p, x, dy: ((), BACK))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_grading_agrees_with_the_check_on_every_exercise(name, folder, capsys):
    """The right one and all wrong ones: verdict and hint are those of verify file.py:layer."""
    files = {"right": right(name), "blank": EXERCISES[name].file.read_text(encoding="utf-8")}
    files |= {f"wrong{i}": filled(name, lines) for i, (lines, _) in enumerate(WRONG[name].values())}
    rows, _, code = graded(folder, files, capsys=capsys)
    assert (rows["right"]["verdict"], rows["blank"]["verdict"], code) == ("OK", "BLANK", 1)
    for i, (_, words) in enumerate(WRONG[name].values()):
        row = rows[f"wrong{i}"]
        assert (row["verdict"], words in row["hint"], bool(row["hint"])) == ("WRONG", True, bool(words)), row


@pytest.mark.slow
def test_a_class_without_a_mistake_exits_0(folder, capsys):
    _, summary, code = graded(folder, {"ada": right("dense"), "bob": right("relu")}, "--jobs", "1", capsys=capsys)
    assert (summary["ok"], code) == (2, 0)
