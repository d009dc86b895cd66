"""What a machine runs out of: disk, memory; and what must not grow."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import runs

from fbackprop.train.store import checkpoint

pytestmark = pytest.mark.slow

HUNGRY = """
import numpy as np
from fbackprop import chain, dense, mse, relu

def function():
    def batches(seed, step):
        rows = 8 if step < {calm} else 60000
        x = np.random.default_rng([seed, step]).standard_normal((rows, 8)).astype(np.float32)
        return x, x[:, :1]
    return chain(dense(20000), relu(), dense(1)), mse(), batches
"""
PATIENT = """
import gc, json, resource, sys
import jax
from fbackprop.cli import main
from fbackprop.train.run import loop

compiled, memory = [], {}
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
one_step = loop.Run.one_step
programs = lambda: sum(name.endswith("backend_compile_duration") for name in compiled)

def counted(run):
    one_step(run)
    if run.at.step in (100, 2000):
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])
        memory[run.at.step] = pages * resource.getpagesize(), programs()

loop.Run.one_step = counted
code = main(sys.argv[1:])
print(json.dumps(memory), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def disk(tmp_path):
    """`(directory, grow, limited)`: a file system of its own where we may mount one, and how to make it larger; else a limit on
    the size of a file, put around the command. Both refuse a write in the middle.
    """
    where, size = tmp_path / "disk", [0]
    where.mkdir()
    mounted = shutil.which("mount") and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", where]).returncode

    def grow(to):
        size[0] = to
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={to}", where], check=True)

    yield where, grow, lambda command: command if mounted else runs.limited("file", size[0] // 4, command)
    if mounted:
        subprocess.run(["umount", where], check=True)


def test_disk_full(disk, cache, unbroken):
    """Whatever write it is that fails: exit 74, one line, what was saved is whole. With a little more room the run goes on and
    fails elsewhere; with enough it ends as the unbroken one.
    """
    reference, _ = unbroken
    where, grow, limited = disk
    sizes = np.linspace(12_288, 116_000, runs.count(12, 50), dtype=int)
    saved, out = [], where / "run"
    for size in map(int, sizes):
        grow(size)
        done = runs.run(limited(runs.command(out, *runs.again(out))), cache)
        assert done.returncode == 74, (size, done.stderr)
        said = [line for line in done.stderr.splitlines() if "cannot be written" in line]
        assert len(said) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert not list(out.rglob("*.tmp"))
        saved.append(runs.newest_good(out))
        for path in runs.files(out / "checkpoints"):
            checkpoint.read(path)
    assert saved == sorted(saved)  # nothing that was saved is lost
    assert saved[0] == -1
    assert saved[-1] > 0
    grow(100_000_000)
    runs.finish(out, cache, "--resume")
    runs.assert_same_run(out, reference)
    runs.report("disk full", len(sizes), newest_good_step=saved)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs a way to give a process little memory")
@pytest.mark.parametrize("calm", [0, 13, 4][: runs.count(2, 3)])
def test_memory_runs_out(tmp_path, cache, calm):
    """In the first step and in the middle of a run: what to try, and the checkpoint before is whole."""
    (tmp_path / "hungry.py").write_text(HUNGRY.format(calm=calm))
    arguments = [sys.executable, "-m", "fbackprop", "train", "hungry.py:function", "--out", "run", "--steps", "30",
                 "--checkpoint-every", "3", "--quiet"]
    done = runs.run(runs.limited("memory", 6 << 30, arguments), cache, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if "memory ran out" in line]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("smaller batches", "--accumulate 2", "checkpoint("):
        assert word in said[0]
    assert runs.newest_good(tmp_path / "run") == (calm - 1 if calm else -1)
    runs.report("memory exhausted", 1, said=said[0][:90])


def test_two_thousand_steps(tmp_path):
    """Nothing compiled after the first hundred steps, memory as it was, no file more than there should be."""
    (tmp_path / "patient.py").write_text(PATIENT)
    out = tmp_path / "run"
    arguments = runs.command(out, "--steps", "2000", program=("patient.py",))
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    (early, compiled), (late, compiled_late) = json.loads(done.stderr.strip().splitlines()[-1]).values()
    assert compiled_late == compiled
    assert late < 1.02 * early
    assert {path.name for path in out.iterdir()} <= {"config.toml", "metrics.jsonl", "checkpoints", "run.lock"}
    assert len(list((out / "checkpoints").iterdir())) == 3
    runs.report("2,000 steps", 1, megabytes=[round(early / 1e6, 1), round(late / 1e6, 1)], programs=compiled)
