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
            process = subprocess.Popen(runs.command(out, *runs.again(out)), env=runs.environment(cache),
                                       stderr=subprocess.DEVNULL)
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


def test_kill_inside_save(tmp_path, cache, unbroken):
    """At each point in turn, the same run again and again; the newest whole step is the last that was whole, never another."""
    reference, _ = unbroken
    rng, times, ended = runs.generator("save"), runs.count(12, 120), 0
    killed = dict.fromkeys(POINTS, 0)
    out, saved = tmp_path / "run0", 0
    for number in range(times):
        point = POINTS[number % len(POINTS)]
        after = int(rng.integers(4 if point == "before prune" else 1, 8))  # how many saves from here the kill is
        command = runs.command(out, *runs.again(out), program=(str(runs.HERE / "killed_in_save.py"), point, str(after)))
        done = runs.run(command, cache)
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed[point] += 1
        made = saved + after * runs.EVERY
        saved = made if point in ("after replace", "before prune") else made - runs.EVERY
        assert runs.newest_good(out) == (saved or -1)
        if saved > runs.STEPS - 8 * runs.EVERY or number == times - 1:
            runs.finish(out, cache, "--resume")
            runs.assert_same_run(out, reference)
            ended += 1
            out, saved = tmp_path / f"run{ended}", 0
    runs.report("kill at each of 6 points inside save", times, points=killed, runs=ended)


def test_asked_to_stop(tmp_path, cache, unbroken):
    """A checkpoint, the exit code and an end within a step and two seconds; then the run goes on as if nothing had been."""
    reference, _ = unbroken
    rng, times, ended, seconds = runs.generator("stop"), runs.count(10, 50), 0, []
    out, before = tmp_path / "run0", 0
    for number in range(times):
        which, code = [(signal.SIGTERM, 143), (signal.SIGINT, 130)][number % 2]
        process = subprocess.Popen(runs.command(out, *runs.again(out)), env=runs.environment(cache),
                                   stderr=subprocess.PIPE, text=True)
        while runs.newest_step(out) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        asked = time.monotonic()
        process.send_signal(which)
        _, said = process.communicate(timeout=60)
        seconds.append(time.monotonic() - asked)
        assert process.returncode == code, said
        assert f"ended by {which.name} after step" in said
        assert "--resume" in said
        step = int(said.rpartition("after step ")[2].partition(",")[0])
        assert runs.newest_good(out) == step == runs.metrics(out)[-1]["step"]
        before = step
        if step > runs.STEPS * 0.6 or number == times - 1:
            runs.finish(out, cache, "--resume")
            runs.assert_same_run(out, reference)
            ended += 1
            out, before = tmp_path / f"run{ended}", 0
    # a step takes milliseconds; the slowest is reported, for what else the machine is doing is in it
    assert sorted(seconds)[len(seconds) // 2] < 2.0
    runs.report("SIGTERM / SIGINT", times, runs=ended, seconds=[round(s, 2) for s in (min(seconds), max(seconds))])


def test_two_runs_in_one_directory(tmp_path, cache):
    """The second is refused at once, whatever it asks for; a dead one's lock does not count."""
    out, times = tmp_path / "run", runs.count(2, 20)
    first = subprocess.Popen(runs.command(out, "--steps", "1000000"), env=runs.environment(cache))
    try:
        while not runs.files(out / "checkpoints"):
            time.sleep(0.01)
        for k in range(times):
            more = ["--resume", "--force"][k % 2]
            second = runs.run(runs.command(out, more), cache)
            assert second.returncode == 73, second.stderr
            assert "another run is at work in it" in second.stderr
            assert "Traceback" not in second.stderr
            assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    runs.finish(out, cache, "--resume", "--steps", str(runs.newest_step(out) + 20))
    runs.report("two runs in one directory", times)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to leave cores out")
def test_one_core_or_two_same_bits(tmp_path, cache, unbroken):
    """Compiled anew as well: no program comes from the other run."""
    reference, _ = unbroken
    out = tmp_path / "run"
    done = runs.run(runs.limited("cores", 1, runs.command(out)), tmp_path / "another cache")
    assert done.returncode == 0, done.stderr
    runs.assert_same_run(out, reference)
    runs.report("one core, compiled anew", 1, cores=len(os.sched_getaffinity(0)), python=sys.version.split()[0])
