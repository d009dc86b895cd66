"""Plans checkpoints and tiles so that a net's loss and gradients fit in a number of bytes, at little cost.

A plan's memory is predicted from its jaxpr (`forecast`). Its cost is the FLOPs of the forwards that run again, and the
bytes that products of smaller tiles read again and that loops over tiles copy. The cheapest plan that is predicted to
fit is compiled, not run, so that XLA says exactly what it needs; the error of a prediction corrects the next ones. The
budget is XLA's temporary memory of the jitted value_and_grad: params, gradients and the batch are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh

from ..checks import expect
from ..compose import objective
from ..distributed.mesh import data_parallel, split_over, whole_on
from ..facts import Setting
from ..gradients import value_and_grad
from ..jaxprs.flops import flops_of, traffic_of
from ..layer import Layer
from ..params import Tree
from ..transform import map_layers_with_path
from ..tuning import with_settings
from .candidates import Candidate, candidates_of
from .forecast import forecast
from .schedule import Schedule, with_schedules

Needs = Callable[[Layer], int]  # bytes of temporary memory of a net's loss and gradients
TRIES = 6  # plans compiled, the net as it is included
BALANCE = 20  # FLOPs in the time of a byte that a product reads or writes: 0.3 TFLOP and 15 GB a second on two cores
# the buffers are the same, in a third of the time
QUICK: dict[str, dict[str, str | bool]] = {"cpu": {"xla_backend_optimization_level": "0"}}


@dataclass(frozen=True)
class Plan:
    """A net that fits, on the params of the net it was planned for.

    schedules and settings: by the path of the layer that has them. temp_bytes: by XLA. predicted_bytes: before the plan
    was compiled. recomputed_flops: of the forwards that run again. extra_bytes: that products and loops move beside.
    """

    net: Layer
    temp_bytes: int
    predicted_bytes: int
    recomputed_flops: int = 0
    extra_bytes: int = 0
    schedules: dict[str, Schedule] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Returns the cost in FLOPs."""
        return self.recomputed_flops + BALANCE * self.extra_bytes

    @property
    def key(self) -> str:
        """Returns a text that is equal for equal choices."""
        return repr((sorted(self.schedules.items()), sorted(self.settings.items())))


def plan(net: Layer, loss: Layer | None, batch: Tree, budget_bytes: float, *, needs: Needs | None = None) -> Plan:
    """Plans `net` so that its loss and gradients on `batch` need at most `budget_bytes` of temporary memory.

    Args:
        batch: arrays or ShapeDtypeStructs, (x, target) or the input of a net that ends in its loss.
        budget_bytes: XLA's temporary memory; params, gradients and the batch are not in it.
        needs: measures the bytes of a net; by default, compiles it for one device.

    Returns:
        The Plan; its `net` has the params of the given one.

    Raises:
        ValueError: the budget is below the least bytes found, which the error says; and what layers raise on a batch.
    """
    expect(budget_bytes > 0, "budget", "bytes, a number above 0", repr(budget_bytes))
    found = _Search(net, loss, jax.eval_shape(lambda: batch), needs).compile_until(budget_bytes)
    least = min(p.temp_bytes for p in found)
    expect(least <= budget_bytes, "budget", f"at least {least / 1e6:.2f} MB, the least found for this net and batch",
           f"{budget_bytes / 1e6:.3g} MB", "A smaller batch needs less; accumulate() makes one step of several")
    return _cheapest(found, budget_bytes)


def plans(net: Layer, loss: Layer | None, batch: Tree, shares: tuple[float, ...] = (3 / 4, 2 / 3, 1 / 2)) -> list[Plan]:
    """Returns the plan for each of these shares of what the net needs as it is, and the one that needs least.

    A share without a plan is left out, so is a plan found twice; the list is empty where nothing saves memory.
    """
    search = _Search(net, loss, jax.eval_shape(lambda: batch))
    budgets = [share * search.compiled(search.base).temp_bytes for share in shares]
    found = [p for budget in budgets for p in search.compile_until(budget)]
    # a search of its own: the errors of plans that need little do not hold for the others
    found += _Search(net, loss, search.batch).compile_until(0)
    budgets.append(min(p.temp_bytes for p in found))
    chosen = [_cheapest(found, budget) for budget in budgets if budget >= budgets[-1]]
    return list({p.key: p for p in chosen if p.schedules or p.settings}.values())


def _cheapest(found: list[Plan], budget: float) -> Plan:
    """Returns the cheapest of the plans that fit."""
    return min((p for p in found if p.temp_bytes <= budget), key=lambda p: (p.cost, -p.temp_bytes))


def with_plan(net: Layer, found: Plan) -> Layer:
    """Returns another net with the same paths, with the choices of `found`."""
    return with_schedules(with_settings(net, found.settings), found.schedules)


def temp_bytes(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> int:
    """Returns XLA's temporary memory of the compiled loss and gradients. Nothing runs."""
    return temp_bytes_of(value_and_grad(net, loss), params, batch)


def temp_bytes_of(fn: Callable[..., Any], *args: Any) -> int:
    """Returns XLA's temporary memory, on each device, of `fn` compiled for arguments like these."""
    lowered = jax.jit(fn).lower(*args)
    analysis: Any = lowered.compile(QUICK.get(jax.default_backend())).memory_analysis()
    return int(analysis.temp_size_in_bytes)


def temp_bytes_on(mesh: Mesh, net: Layer, loss: Layer | None, batch: Tree) -> int:
    """Returns XLA's temporary memory, on each device, of loss and gradients with `batch` (specs) split over `mesh`."""
    whole = whole_on(mesh)
    even = all(leaf.shape[0] % mesh.size == 0 for leaf in jax.tree.leaves(batch))
    params = jax.eval_shape(objective(net, loss).init, jax.random.key(0), batch)
    lying = lambda tree, where: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)
    return temp_bytes_of(data_parallel(value_and_grad(net, loss), mesh), lying(params, whole),
                         lying(batch, split_over(mesh) if even else whole))


class _Search:
    """The plans of one net, each predicted once."""

    def __init__(self, net: Layer, loss: Layer | None, batch: Tree, needs: Needs | None = None) -> None:
        self.net, self.loss, self.batch = net, loss, batch
        self.measure = needs or (lambda net: temp_bytes(net, loss, self.params, batch))
        self.params = jax.eval_shape(lambda key: objective(net, loss).init(key, batch), jax.random.key(0))
        self.counted: dict[str, tuple[int, int, int]] = {}
        self.candidates: dict[str, list[Candidate]] = {}
        self.measured: dict[str, Plan] = {}
        self.measured_by_forecast: dict[int, int] = {}
        self.errors: dict[bool, int] = {}
        self.base = Plan(net, 0, 0)
        self.offered = self.settings_offered()

    def plan_of(self, schedules: Mapping[str, Schedule], settings: Mapping[str, Setting]) -> Plan:
        found = Plan(self.net, 0, 0, 0, 0, dict(schedules), dict(settings))
        found = replace(found, net=with_plan(self.net, found))
        flops, traffic = (max(0, a - b) for a, b in zip(self.count(found)[1:], self.count(self.base)[1:]))
        return replace(found, recomputed_flops=flops, extra_bytes=traffic)

    def count(self, given: Plan) -> tuple[int, int, int]:
        """Returns the forecast bytes, the FLOPs, and the bytes that products read and write."""
        if given.key not in self.counted:
            jaxpr = jax.make_jaxpr(value_and_grad(given.net, self.loss))(self.params, self.batch).jaxpr
            self.counted[given.key] = max(1, forecast(jaxpr)), flops_of(jaxpr), traffic_of(jaxpr)
        return self.counted[given.key]

    def predicted(self, given: Plan) -> int:
        """Predicts the bytes: the forecast and half of the error of the last plan with settings, or without.

        Half, because another plan may have its peak elsewhere. Plans with equal forecasts are assumed to need equal bytes.
        """
        bytes_forecast, known = self.count(given)[0], self.measured.get(given.key)
        needs = known.temp_bytes if known else self.measured_by_forecast.get(bytes_forecast)
        return needs or max(1, bytes_forecast + self.errors.get(bool(given.settings), 0) // 2)

    def compiled(self, given: Plan) -> Plan:
        if given.key not in self.measured:
            predicted, needs = self.predicted(given), self.measure(given.net)
            bytes_forecast = self.count(given)[0]
            self.measured[given.key] = replace(given, temp_bytes=needs, predicted_bytes=predicted)
            self.measured_by_forecast[bytes_forecast] = needs
            self.errors[bool(given.settings)] = needs - bytes_forecast
        return self.measured[given.key]

    def compile_until(self, budget: float) -> list[Plan]:
        """Compiles the net as it is, then plans until one fits; the last is the one that needs least if none does."""
        found = [self.compiled(self.base)]
        while len(found) < TRIES and found[0].temp_bytes > budget:
            last = len(found) == TRIES - 1 and all(p.temp_bytes > budget for p in found)
            following = self.cheapest(0 if last else budget)
            if following.key in {p.key for p in found}:
                break
            found.append(self.compiled(following))
        return found

    def cheapest(self, budget: float) -> Plan:
        """Returns the cheapest plan found that is predicted to fit; if none is, the one that needs least."""
        least = now = self.least_settings()
        while self.predicted(now) > budget:
            options = [self.plan_of({**now.schedules, path: s}, now.settings) for path, s in self.schedules_worth(now)]
            fits = [p for p in options if self.predicted(p) <= budget]
            best = min(fits, key=lambda p: p.cost) if fits else min(options, key=self.predicted, default=now)
            if self.predicted(best) >= self.predicted(now):
                break
            now = best
        budget = max(budget, self.predicted(now))
        best = self.relaxed(now, budget)
        for path, schedule in self.schedules_worth(best) if best.settings else ():  # one more may allow larger tiles
            if self.plan_of({path: schedule}, {}).cost < best.cost:
                other = self.plan_of({**now.schedules, path: schedule}, least.settings)
                other = self.cheapest_settings(other, budget)
                best = other if self.predicted(other) <= budget and other.cost < best.cost else best
        return best

    def least_settings(self) -> Plan:
        """Returns the plan without schedules in which every layer has the setting that needs least."""
        now = self.base
        for path, offered in [*self.offered.items()] * (2 if len(self.offered) > 1 else 1):
            now = min(self.variants(now, path, offered), key=self.predicted)
        return now

    def relaxed(self, now: Plan, budget: float) -> Plan:
        """Leaves out the schedules that the budget does not need, then takes the cheapest settings that fit."""
        for path in now.schedules:
            rest = self.plan_of({other: s for other, s in now.schedules.items() if other != path}, now.settings)
            now = rest if self.predicted(rest) <= budget else now
        return self.cheapest_settings(now, budget)

    def cheapest_settings(self, now: Plan, budget: float) -> Plan:
        """Takes for every layer the first setting that fits, none before those offered, or the next if that costs less."""
        for path, offered in self.offered.items():
            fits = (p for p in self.variants(now, path, offered) if self.predicted(p) <= budget)
            first, following = next(fits, now), next(fits, None)
            now = following if following and following.cost < first.cost else first
        return now

    def variants(self, now: Plan, path: str, offered: list[Setting]) -> Iterator[Plan]:
        """Yields `now` without a setting at `path`, then with each of those offered."""
        others = {other: setting for other, setting in now.settings.items() if other != path}
        yield self.plan_of(now.schedules, others)
        yield from (self.plan_of(now.schedules, {**others, path: setting}) for setting in offered)

    def settings_offered(self) -> dict[str, list[Setting]]:
        """Returns what every layer with settings offers, as it is called."""
        offered: dict[str, list[Setting]] = {}

        def recorded(path: str, layer: Layer) -> Layer:
            if layer.tuning is None:
                return layer
            settings = layer.tuning.settings

            def forward(params: Tree, x: Any) -> tuple[Any, Any]:
                offered[path] = list(settings(jax.eval_shape(lambda: x)))
                return layer.forward(params, x)

            return replace(layer, forward=forward)

        jax.eval_shape(objective(map_layers_with_path(self.net, recorded), self.loss).forward, self.params, self.batch)
        return {path: settings for path, settings in offered.items() if settings}

    def schedules_worth(self, now: Plan) -> Iterator[tuple[str, Schedule]]:
        """Yields the schedules that `now` can still take, those that save a twentieth of its bytes."""
        for candidate in self.candidates_with(now.settings):
            if candidate.path not in now.schedules:
                for schedule in candidate.pareto_optimal():
                    if candidate.saved(schedule) > self.predicted(now) / 20:
                        yield candidate.path, schedule

    def candidates_with(self, settings: Mapping[str, Setting]) -> list[Candidate]:
        key = repr(sorted(settings.items()))
        if key not in self.candidates:
            net = objective(with_settings(self.net, settings), self.loss)
            self.candidates[key] = candidates_of(net, self.params, self.batch)
        return self.candidates[key]
