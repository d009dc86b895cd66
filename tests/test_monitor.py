"""Monitor: every kind is said once, with layer, number and cure, ends when it has ended, and comes back the same on replay."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import chain, dense, mse, probe, relu, sigmoid, tanh
from fbackprop.train import Monitor, Thresholds

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
X, T = (jnp.asarray(RNG.standard_normal((16, width)), jnp.float32) for width in (5, 3))
LAYERS = {"0": {"grad_norm": 1.0, "param_norm": 10.0, "update_norm": 0.01},
          "2": {"grad_norm": 0.5, "param_norm": 5.0, "update_norm": 0.005}}


def layers(**changes):
    return {path: {**norms, **changes} for path, norms in LAYERS.items()}


def feed(monitor, losses, of=lambda step: LAYERS, start=1):
    """All alerts of these steps, one after the other."""
    return [alert for step, loss in enumerate(losses, start) for alert in monitor.step(step, float(loss), of(step))]


def kinds(alerts):
    return [(alert.kind, alert.ended) for alert in alerts]


def falling(steps, start=2.0, seed=0):
    """A loss as it should be: down to a floor, with noise."""
    noise = np.random.default_rng(seed).standard_normal(steps)
    return 0.3 + start * np.exp(-np.arange(steps) / 50) * (1 + 0.1 * noise) + 0.05 * np.abs(noise)


# ---- by the numbers of steps


def test_a_loss_that_falls_to_its_floor_says_nothing_for_a_thousand_steps():
    monitor = Monitor()
    assert feed(monitor, falling(1000)) == []
    assert monitor.describe()["raised"] == []


def test_a_spike_is_said_at_its_step_and_ends():
    losses = falling(300)
    losses[200] = 5.0
    alerts = feed(Monitor(), losses)
    assert kinds(alerts) == [("loss spike", False), ("loss spike", True)]
    assert [alerts[0].step, alerts[0].number] == [201, 5.0]
    assert alerts[1].step < 210


def test_a_small_loss_may_vary_by_factors():
    losses = falling(300)
    losses[250::7] += 0.8  # three times the usual loss and more than 20 deviations, but little beside the start
    assert feed(Monitor(), losses) == []


@pytest.mark.parametrize("where", [{"loss": math.nan}, {"layers": layers(grad_norm=math.inf)}])
def test_what_is_not_finite_is_said_once_and_other_kinds_are_silent(where):
    monitor = Monitor()
    feed(monitor, falling(100))
    alerts = []
    for step in range(101, 150):
        alerts += monitor.step(step, where.get("loss", 0.5), where.get("layers", LAYERS))
    assert kinds(alerts) == [("non-finite", False)]
    assert alerts[0].layer == ("0" if "layers" in where else "")
    assert alerts[0].number == (2 if "layers" in where else 1)
    assert kinds(feed(monitor, falling(170)[150:], start=150)) == [("non-finite", True)]


def test_a_loss_that_rises_until_it_is_not_finite_is_a_rate_too_high():
    alerts = feed(Monitor(), [2.0, 3.0, 30.0, 1e4, 1e12, math.inf, math.nan])
    assert kinds(alerts) == [("non-finite", False), ("rate too high", False)]
    assert alerts[1].step == 6
    assert "5e+11 times" in alerts[1].text
    assert kinds(feed(Monitor(), [2.0, 1.9, 1.8, math.nan])) == [("non-finite", False)]  # a bad batch is no rate


def test_large_updates_are_a_rate_too_high_only_while_the_loss_does_not_fall():
    large = lambda step: layers(update_norm=3.0)
    assert kinds(feed(Monitor(), 2.0 + 0.1 * np.arange(50), large)) == [("rate too high", False)]
    assert feed(Monitor(), falling(50), large) == []


def test_a_rate_too_low_and_a_plateau_are_told_apart_by_the_updates():
    flat = 2.0 + 0.01 * RNG.standard_normal(200)
    low = feed(Monitor(), flat, lambda step: layers(update_norm=1e-6))
    assert kinds(low) == [("rate too low", False)]
    assert "2e-07" in low[0].text
    assert "0.0001" in low[0].text
    assert low[0].step <= 120
    assert kinds(feed(Monitor(), flat)) == [("early plateau", False)]


def test_a_plateau_ends_when_the_loss_moves():
    losses = np.concatenate([np.full(200, 2.0), np.linspace(2.0, 1.0, 100)])
    assert kinds(feed(Monitor(), losses)) == [("early plateau", False), ("early plateau", True)]


def growing(step, rate=0.1):
    return {**LAYERS, "2": {"grad_norm": 0.5, "param_norm": 5.0 * (1 + rate * step), "update_norm": 5.0 * rate}}


def test_weights_that_grow_without_use_are_said_with_their_layer():
    alerts = feed(Monitor(), falling(400), growing)
    assert kinds(alerts) == [("weights growing", False)]
    assert alerts[0].layer == "2"
    assert alerts[0].number > 1.5


def test_weights_may_grow_while_the_loss_pays_for_it_and_then_stay():
    pays = np.concatenate([np.linspace(2.0, 0.1, 400), np.full(400, 0.1)])
    assert feed(Monitor(), pays, lambda step: growing(min(step, 400))) == []


def test_a_loss_without_a_floor_pays_for_nothing():
    assert kinds(feed(Monitor(), 2.0 - 0.1 * np.arange(300), growing)) == [("weights growing", False)]


def test_a_plateau_is_still_seen_after_ten_thousand_steps_in_bounded_memory():
    monitor = Monitor(Thresholds(patience=10_000))
    assert kinds(feed(monitor, np.full(10_200, 2.0))) == [("early plateau", False)]
    assert len(monitor._looks) <= 64


# ---- by probes


def small_probe(*middle):
    net = chain(dense(6), *middle, dense(3))
    return net.init(jax.random.key(0), X), probe(net, mse())


def test_dead_units_are_said_after_two_probes_with_their_layer_and_end_after_two():
    params, measure = small_probe(relu())
    dead = ({**params[0], "b": params[0]["b"] - 100}, *params[1:])
    sick, well = (measure(p, (X, T))[1] for p in (dead, params))
    monitor = Monitor()
    assert monitor.probe(1, sick) == []
    alerts = monitor.probe(2, sick)
    assert kinds(alerts) == [("dead relu", False), ("vanishing", False)]  # the cause first
    assert [alerts[0].layer, alerts[0].number] == ["1", 1.0]
    assert alerts[0].text.startswith("layer 1: 100% of its units are zero in the whole batch, above 50%")
    assert [monitor.probe(3, sick), monitor.probe(4, well)] == [[], []]
    assert kinds(monitor.probe(5, well)) == [("dead relu", True), ("vanishing", True)]


def test_between_the_two_thresholds_nothing_changes():
    params, measure = small_probe(relu())
    seen = measure(params, (X, T))[1]
    with_dead = lambda share: {**seen, "1": replace(seen["1"], dead=share)}
    monitor = Monitor()
    shares = [0.6, 0.45, 0.6, 0.6, 0.45, 0.45, 0.6, 0.3, 0.45, 0.3, 0.3]
    said = [kinds(monitor.probe(step, with_dead(share))) for step, share in enumerate(shares)]
    assert said == [[], [], [], [("dead relu", False)], *[[]] * 6, [("dead relu", True)]]


def test_saturation_is_said_of_hidden_layers_alone():
    params, measure = small_probe(sigmoid(), dense(4), tanh())
    large = jax.tree.map(lambda w: 100 * w, params)
    monitor = Monitor()
    seen = measure(large, (X, T))[1]
    alerts = [*monitor.probe(1, seen), *monitor.probe(2, seen)]
    assert ("saturated sigmoid", False) in kinds(alerts)
    net = chain(dense(3), sigmoid())
    last = probe(net, mse())(jax.tree.map(lambda w: 100 * w, net.init(jax.random.key(0), X)), (X, T))[1]
    assert last["1"].saturated > 0.5
    monitor = Monitor()
    assert ("saturated sigmoid", False) not in kinds([*monitor.probe(1, last), *monitor.probe(2, last)])


@pytest.mark.parametrize(("factor", "kind"), [(0.01, "vanishing"), (30.0, "exploding")])
def test_a_gradient_that_shrinks_or_grows_on_the_way_back(factor, kind):
    params, measure = small_probe(*[dense(6) for _ in range(3)])
    seen = measure(jax.tree.map(lambda w: factor * w, params), (X, T))[1]
    monitor = Monitor()
    alerts = [*monitor.probe(1, seen), *monitor.probe(2, seen)]
    assert [(alert.kind, alert.layer) for alert in alerts] == [(kind, "0")]
    assert alerts[0].number == pytest.approx(seen["0"].dy.norm / seen["4"].dy.norm)


def test_equal_weights_are_said():
    params, measure = small_probe(tanh())
    seen = measure(jax.tree.map(lambda w: jnp.full_like(w, 0.1), params), (X, T))[1]
    monitor = Monitor()
    alerts = [*monitor.probe(1, seen), *monitor.probe(2, seen)]
    assert [(alert.kind, alert.layer) for alert in alerts] == [("units alike", "0")]


def test_a_probe_that_is_not_finite_names_where_it_began():
    params, measure = small_probe(tanh())
    bad = (params[0], params[1], {**params[2], "w": params[2]["w"] * jnp.inf})
    alerts = Monitor().probe(1, measure(bad, (X, T))[1])
    assert [(alert.kind, alert.layer) for alert in alerts] == [("non-finite", "2")]
    assert "residual of layer 2" in alerts[0].text


# ---- the whole


def test_replaying_the_records_gives_the_same_alerts_and_the_same_state():
    losses = np.concatenate([falling(150), np.full(60, 9.0), falling(200), [np.nan] * 5])
    first, again = Monitor(), Monitor()
    alerts = feed(first, losses, growing)
    assert len({alert.kind for alert in alerts}) >= 3
    assert feed(again, losses[:220], growing) == [alert for alert in alerts if alert.step <= 220]
    replayed = json.loads(json.dumps([(loss, growing(step)) for step, loss in enumerate(losses[220:], 221)]))
    assert [a for step, (loss, of) in enumerate(replayed, 221) for a in again.step(step, loss, of)] == [
        alert for alert in alerts if alert.step > 220]
    assert again.describe() == first.describe()


def test_describe_is_json_with_the_ratio_of_gradients_and_updates():
    params, measure = small_probe(relu())
    monitor = Monitor()
    monitor.probe(1, measure(params, (X, T))[1])
    monitor.step(1, 1.0, {**LAYERS, "4": {"grad_norm": math.nan, "param_norm": 0.0, "update_norm": 0.1}})
    told = json.loads(json.dumps(monitor.describe(), allow_nan=False))
    assert told["gradient_spread"] == 2.0
    assert told["layers"]["0"]["update_ratio"] == pytest.approx(0.001)
    assert told["layers"]["4"] == {"grad_norm": None, "param_norm": 0.0, "update_norm": 0.1, "update_ratio": None}
    assert told["probe"]["1"]["dead"] == measure(params, (X, T))[1]["1"].dead
    assert told["raised"] == ["non-finite"]


def test_thresholds_are_the_users():
    flat = np.full(200, 2.0)
    assert kinds(feed(Monitor(Thresholds(plateau=0.0)), flat)) == []
    assert feed(Monitor(Thresholds(look=5, patience=50, plateau_steps=20)), flat)[0].step <= 70


def test_thresholds_from_words():
    changed = Thresholds.of("vanishing=1e-4:1e-3,spike=30, hold=3")
    assert (changed.vanishing, changed.spike, changed.hold, changed.dead) == ((1e-4, 1e-3), 30.0, 3, Thresholds().dead)
    assert isinstance(changed.hold, int)
    assert Thresholds.of(None) == Thresholds()


def test_a_monitor_put_together_again_says_the_same():
    """Its state through JSON, in the middle: what it says afterwards is what the one that never stopped says."""
    rng = np.random.default_rng(0)
    losses = [float(loss) for loss in 2 + 0.01 * rng.standard_normal(300)]
    losses[130], losses[220] = 40.0, float("inf")
    layers = lambda k: {"1": {"grad_norm": 1.0, "param_norm": 1.0 + k / 40, "update_norm": 1e-6}}
    whole, first = Monitor(), Monitor()
    said = [whole.step(k, loss, layers(k)) for k, loss in enumerate(losses, 1)]
    for at in (90, 131, 221):
        first = Monitor()
        before = [first.step(k, loss, layers(k)) for k, loss in enumerate(losses[:at], 1)]
        again = Monitor.of(json.loads(json.dumps(first.state())))
        after = [again.step(k, loss, layers(k)) for k, loss in enumerate(losses[at:], at + 1)]
        assert before + after == said
    assert sum(map(len, said)) >= 3


@pytest.mark.slow
def test_judged_on_the_sick_and_healthy_runs_of_two_nets(tmp_path):
    """The whole is run by hand."""
    program = Path(__file__).parent.parent / "experiments" / "alerts.py"
    nets = ["--net", "tanh", "--net", "deep relu"]
    done = subprocess.run([sys.executable, program, *nets, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
