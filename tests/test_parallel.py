"""Eight devices give what one gives: value, gradients, successors and the step, on batches that divide and that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fbackprop.distributed import devices, shard

SCRIPT = Path(__file__).parent / "on_eight_devices.py"
CASES = [*(f"{name}, {size}" for name in ("mlp", "resnet") for size in (16, 13, 5)),
         *(f"{name}, {size}" for name in ("convnet with dropout", "lstm", "gpt") for size in (16, 13))]


@pytest.fixture(scope="module")
def found():
    """What the script found on eight devices: all checks of this file in one process."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=env, cwd=SCRIPT.parent.parent)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_give_what_one_gives(found, case):
    """To the rounding of float64: a mean of unequal means, or statistics of a share, would be off in the first digits."""
    assert set(CASES) == set(found["cases"])
    got = found["cases"][case]
    assert {what: got[what] for what in ("value", "gradients", "successors", "stepped") if got[what] > 1e-12} == {}
    assert got["whole"]


@pytest.mark.parametrize("case", CASES)
def test_the_work_is_really_divided(found, case):
    got = found["cases"][case]
    assert got["collectives"]["all-reduce"] > 0
    assert got["work"] < 0.5  # of one device's: a fifth of five examples at best; a convolution's dw is not divided on a CPU


@pytest.mark.parametrize("case", ["mlp, 16", "lstm, 16", "gpt, 16"])
def test_each_of_eight_does_an_eighth_and_only_sums_travel(found, case):
    got = found["cases"][case]
    assert got["work"] < 0.25  # an eighth and the optimizer's step, which each of them does
    assert set(got["collectives"]) == {"all-reduce"}


def test_steps_on_two_sizes_are_two_compiles_and_the_curve_is_one_device_s(found):
    train = found["train"]
    np.testing.assert_allclose(train["together"], train["alone"], rtol=1e-12)
    assert train["traces"] == 2
    assert train["programs"] == 2


def test_a_batch_is_sent_in_equal_shares(found):
    assert found["devices"] == 8
    assert found["shares"] == [[2, 2]] * 4


def test_more_devices_than_there_are_is_told_with_what_to_do(found):
    more = ("devices: expected 9 of them, got 8 (cpu). Ask for at most 8; on a CPU, ask_for() has to run before jax's first "
            "computation")
    number = "devices: expected a whole number of at least 1, got "
    assert found["mistakes"] == [more, more, f"{number}0", f"{number}True"]


def test_a_batch_with_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"first axis counts examples, got \(float32\[4\], float32\[\]\)"):
        shard((np.zeros(4, np.float32), np.float32(1)), devices())
