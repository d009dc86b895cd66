"""Processes killed for real: whatever the moment, the run goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import runs

pytestmark = pytest.mark.slow
POINTS = ("start", "half written", "before fsync", "before replace", "after replace", "before prune")


def test_kill_at_any_moment(tmp_path, cache, unbroken):
    """Runs are killed again and again, at moments spread over a whole run, until one reaches its end: all is as unbroken."""
    reference, seconds = unbroken
    rng, kills, ended, wanted = runs.generator("kill"), 0, 0, runs.count(25, 200)
    while kills < wanted or ended == 0:
        out = tmp_path / f"run{ended}"
        for attempt in range(10):
            process = subprocess.Popen(runs.command(out, "--resume"), env=runs.environment(cache), stderr=subprocess.DEVNULL)
            try:
                process.wait(rng.uniform(0, seconds) if attempt < 5 and kills < wanted else 300)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            else:
                assert process.returncode == 0
                break
        runs.assert_same_run(out, reference)
        ended += 1
    runs.report("kill -9 at a random moment", kills, runs=ended)


@pytest.mark.parametrize("point", POINTS)
def test_kill_inside_save(tmp_path, cache, unbroken, point):
    reference, _ = unbroken
    rng, times = runs.generator(point), runs.count(12, 120) // len(POINTS)
    for number in range(times):
        out, save = tmp_path / f"run{number}", int(rng.integers(4 if point == "before prune" else 1, runs.STEPS // runs.EVERY))
        program = (str(runs.HERE / "killed_in_save.py"), point, str(save))
        command = runs.command(out, program=program)
        done = subprocess.run(command, env=runs.environment(cache), stderr=subprocess.PIPE, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        before, made = (save - 1) * runs.EVERY, save * runs.EVERY
        assert runs.newest_good(out) == (made if point in ("after replace", "before prune") else before or -1)
        runs.finish(out, cache, "--resume")
        runs.assert_same_run(out, reference)
    runs.report(f"kill inside save: {point}", times)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(tmp_path, cache, unbroken, number, code):
    """A checkpoint, the exit code and the end within a step and two seconds; then the run goes on as if nothing had been."""
    reference, _ = unbroken
    rng, times, slowest = runs.generator(number.name), runs.count(10, 50) // 2, 0.0
    for k in range(times):
        out = tmp_path / f"run{k}"
        process = subprocess.Popen(runs.command(out), env=runs.environment(cache), stderr=subprocess.PIPE, text=True)
        while not runs.files(out / "checkpoints"):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        asked = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        slowest = max(slowest, time.monotonic() - asked)
        assert process.returncode == code
        assert f"ended by {number.name} after step" in said
        assert "--resume" in said
        step = int(said.partition("after step ")[2].partition(",")[0])
        assert runs.newest_good(out) == step == runs.metrics(out)[-1]["step"]
        runs.finish(out, cache, "--resume")
        runs.assert_same_run(out, reference)
    assert slowest < 2.5  # a step takes milliseconds
    runs.report(number.name, times, slowest_seconds=round(slowest, 2))


def test_two_runs_in_one_directory(tmp_path, cache):
    """The second is refused at once, whatever it asks for; a dead one's lock does not count."""
    out, times = tmp_path / "run", runs.count(2, 20)
    first = subprocess.Popen(runs.command(out, "--steps", "1000000"), env=runs.environment(cache))
    try:
        while not runs.files(out / "checkpoints"):
            time.sleep(0.01)
        for k in range(times):
            more = ["--resume", "--force"][k % 2]
            second = subprocess.run(runs.command(out, more), env=runs.environment(cache), capture_output=True, text=True)
            assert second.returncode == 73, second.stderr
            assert "another run is at work in it" in second.stderr
            assert "Traceback" not in second.stderr
            assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    runs.finish(out, cache, "--resume")
    runs.report("two runs in one directory", times)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to leave cores out")
def test_one_core_or_two_same_bits(tmp_path, cache, unbroken):
    """Compiled anew as well: no program comes from the other run."""
    reference, _ = unbroken
    out = tmp_path / "run"
    runs.finish(out, tmp_path / "another cache", preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
    runs.assert_same_run(out, reference)
    runs.report("one core, compiled anew", 1, cores=len(os.sched_getaffinity(0)), python=sys.version.split()[0])
