"""plan: a net with its checkpoints placed and its tiles chosen so that loss and gradients fit in so many bytes, at little cost.

What a plan would need is foretold from its jaxpr (`peak`), what it would cost are the FLOPs of its forwards run again and the
bytes that products of smaller tiles read again and loops over tiles copy. The cheapest that should fit is compiled, not run:
XLA says exactly what it will need, and what was foretold wrong corrects what is foretold next. The budget is XLA's temporary
memory of the jitted value_and_grad: neither params and gradients nor the batch are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
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
from .candidates import Site, sites_of
from .forecast.peak import peak_of
from .schedule import Schedule, with_schedules

Needs = Callable[[Layer], int]  # bytes of temporary memory of a net's loss and gradients
TRIES = 6  # plans compiled, the net as it stands included
BALANCE = 20  # FLOPs in the time of a byte that a product reads or writes: 0.3 TFLOP and 15 GB a second on two cores
# the buffers are the same, in a third of the time
QUICK: dict[str, dict[str, str | bool]] = {"cpu": {"xla_backend_optimization_level": "0"}}


@dataclass(frozen=True)
class Plan:
    """A net on the params of the one it is made of. schedules and settings: by the path of the layer that has them.

    predicted_bytes: from the jaxpr and the plan compiled before, temp_bytes: XLA's. again_flops: of the forwards run again;
    again_bytes: that products read and write and loops copy beside.
    """

    net: Layer
    temp_bytes: int
    predicted_bytes: int
    again_flops: int = 0
    again_bytes: int = 0
    schedules: dict[str, Schedule] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """In FLOPs."""
        return self.again_flops + BALANCE * self.again_bytes


def plan(net: Layer, loss: Layer | None, batch: Any, budget_bytes: float) -> Layer:
    """`net`, on the same params, whose loss and gradients on `batch` need at most `budget_bytes` of temporary memory.

    batch: arrays or ShapeDtypeStructs, (x, target) or what a net that ends in its loss takes. Raises ValueError with the least
    possible where the budget is below it, and what the layers raise on a wrong batch.
    """
    return planned(net, loss, batch, budget_bytes).net


def planned(net: Layer, loss: Layer | None, batch: Any, budget_bytes: float, needs: Needs | None = None) -> Plan:
    """Returns the Plan behind `plan`. needs: measures a net otherwise than by compiling it for one device."""
    expect(budget_bytes > 0, "budget", "bytes, a number above 0", repr(budget_bytes))
    found = _Search(net, loss, jax.eval_shape(lambda: batch), needs).tried(budget_bytes)
    least = min(p.temp_bytes for p in found)
    expect(least <= budget_bytes, "budget", f"at least {least / 1e6:.2f} MB, the least found for this net and batch",
           f"{budget_bytes / 1e6:.3g} MB", "A smaller batch needs less; accumulate() makes one step of several")
    return _mildest(found, budget_bytes)


def plans(net: Layer, loss: Layer | None, batch: Any, shares: tuple[float, ...] = (3 / 4, 2 / 3, 1 / 2)) -> list[Plan]:
    """The plan for each of these shares of what the net needs as it stands, where there is one, and the one that needs least.

    Each once; none where nothing needs less than the net as it stands.
    """
    search = _Search(net, loss, jax.eval_shape(lambda: batch))
    budgets = [share * search.compiled(search.base).temp_bytes for share in shares]
    found = [p for budget in budgets for p in search.tried(budget)]
    # apart: what the thriftiest corrects in the forecast is not true of the mild, nor the other way
    found += _Search(net, loss, search.batch).tried(0)
    budgets.append(min(p.temp_bytes for p in found))
    chosen = [_mildest(found, budget) for budget in budgets if budget >= budgets[-1]]
    return list({_key(p): p for p in chosen if p.schedules or p.settings}.values())


def _mildest(found: list[Plan], budget: float) -> Plan:
    """Of those that fit, the cheapest."""
    return min((p for p in found if p.temp_bytes <= budget), key=lambda p: (p.cost, -p.temp_bytes))


def with_plan(net: Layer, found: Plan) -> Layer:
    """What `found` chose, on another net with the same paths."""
    return with_schedules(with_settings(net, found.settings), found.schedules)


def temp_bytes(net: Layer, loss: Layer | None, params: Tree, batch: Any) -> int:
    """Returns XLA's temporary memory of the compiled loss and gradients. Nothing runs."""
    return temp_bytes_of(value_and_grad(net, loss), params, batch)


def temp_bytes_of(fn: Callable[..., Any], *args: Any) -> int:
    """Returns XLA's temporary memory, on each device, of `fn` compiled for arguments like these."""
    lowered = jax.jit(fn).lower(*args)
    analysis: Any = lowered.compile(QUICK.get(jax.default_backend())).memory_analysis()
    return int(analysis.temp_size_in_bytes)


def temp_bytes_on(mesh: Mesh, net: Layer, loss: Layer | None, batch: Any) -> int:
    """Returns XLA's temporary memory, on each device, of loss and gradients with `batch` (specs) split over `mesh`."""
    whole = whole_on(mesh)
    even = all(leaf.shape[0] % mesh.size == 0 for leaf in jax.tree.leaves(batch))
    params = jax.eval_shape(objective(net, loss).init, jax.random.key(0), batch)
    lying = lambda tree, where: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)
    return temp_bytes_of(data_parallel(value_and_grad(net, loss), mesh), lying(params, whole),
                         lying(batch, split_over(mesh) if even else whole))


def _key(drawn: Plan) -> str:
    return repr((sorted(drawn.schedules.items()), sorted(drawn.settings.items())))


class _Search:
    """The plans of one net, each foretold once."""

    def __init__(self, net: Layer, loss: Layer | None, batch: Any, needs: Needs | None = None) -> None:
        self.net, self.loss, self.batch = net, loss, batch
        self.measure = needs or (lambda net: temp_bytes(net, loss, self.params, batch))
        self.params = jax.eval_shape(lambda key: objective(net, loss).init(key, batch), jax.random.key(0))
        self.known: dict[str, tuple[int, int, int]] = {}
        self.found: dict[str, list[Site]] = {}
        self.measured: dict[str, Plan] = {}
        self.needs: dict[int, int] = {}
        self.off: dict[bool, float] = {}
        self.base = Plan(net, 0, 0)

    def of(self, schedules: Mapping[str, Schedule], settings: Mapping[str, Setting]) -> Plan:
        drawn = Plan(self.net, 0, 0, 0, 0, dict(schedules), dict(settings))
        drawn = replace(drawn, net=with_plan(self.net, drawn))
        flops, traffic = (max(0, a - b) for a, b in zip(self.counted(drawn)[1:], self.counted(self.base)[1:]))
        return replace(drawn, again_flops=flops, again_bytes=traffic)

    def counted(self, drawn: Plan) -> tuple[int, int, int]:
        """Bytes at the peak, FLOPs, and bytes that products read and write."""
        key = _key(drawn)
        if key not in self.known:
            jaxpr = jax.make_jaxpr(value_and_grad(drawn.net, self.loss))(self.params, self.batch).jaxpr
            self.known[key] = max(1, peak_of(jaxpr)), flops_of(jaxpr), traffic_of(jaxpr)
        return self.known[key]

    def foretold(self, drawn: Plan) -> int:
        """Corrected by half of what was foretold wrong of its like, whole tiles or cut ones, for the peak may stand elsewhere.

        Of which the same is counted, that needs the same: what differs saves nothing.
        """
        counted, known = self.counted(drawn)[0], self.measured.get(_key(drawn))
        needs = known.temp_bytes if known else self.needs.get(counted)
        return needs or round(counted * sqrt(self.off.get(bool(drawn.settings), 1.0)))

    def compiled(self, drawn: Plan) -> Plan:
        key = _key(drawn)
        if key not in self.measured:
            predicted, needs = self.foretold(drawn), self.measure(drawn.net)
            self.measured[key] = replace(drawn, temp_bytes=needs, predicted_bytes=predicted)
            self.needs[self.counted(drawn)[0]] = needs
            self.off[bool(drawn.settings)] = needs / self.counted(drawn)[0]
        return self.measured[key]

    def tried(self, budget: float) -> list[Plan]:
        """The net as it stands, and until one fits what should; the thriftiest last where none does."""
        found = [self.compiled(self.base)]
        while len(found) < TRIES and found[0].temp_bytes > budget:
            last = len(found) == TRIES - 1 and all(p.temp_bytes > budget for p in found)
            drawn = self.cheapest(0 if last else budget)
            if _key(drawn) in map(_key, found):
                break
            found.append(self.compiled(drawn))
        return found

    def cheapest(self, budget: float) -> Plan:
        """The cheapest found that should fit; where none should, the thriftiest."""
        thriftiest = now = self.thriftiest()
        while self.foretold(now) > budget:
            drawn = [self.of({**now.schedules, path: schedule}, now.settings) for path, schedule in self.sites(now)]
            fits = [p for p in drawn if self.foretold(p) <= budget]
            best = min(fits, key=lambda p: p.cost) if fits else min(drawn, key=self.foretold, default=now)
            if self.foretold(best) >= self.foretold(now):
                break
            now = best
        budget = max(budget, self.foretold(now))
        best = self.relaxed(now, budget)
        for path, schedule in self.sites(best) if best.settings else ():  # what one more saves, larger tiles may need
            if self.of({path: schedule}, {}).cost < best.cost:
                other = self.milder(self.of({**now.schedules, path: schedule}, thriftiest.settings), budget)
                best = other if self.foretold(other) <= budget and other.cost < best.cost else best
        return best

    def thriftiest(self) -> Plan:
        """Every layer at the setting that needs least, the others being what they are."""
        now, choices = self.base, self.choices()
        for path, offered in [*choices.items()] * (2 if len(choices) > 1 else 1):
            rest = {other: setting for other, setting in now.settings.items() if other != path}
            drawn = [self.of({}, rest), *(self.of({}, {**rest, path: setting}) for setting in offered)]
            now = min(drawn, key=self.foretold)
        return now

    def relaxed(self, now: Plan, budget: float) -> Plan:
        """Without the schedules that it need not have, then with the mildest settings, within the budget."""
        for path in now.schedules:
            rest = self.of({other: s for other, s in now.schedules.items() if other != path}, now.settings)
            now = rest if self.foretold(rest) <= budget else now
        return self.milder(now, budget)

    def milder(self, now: Plan, budget: float) -> Plan:
        """Of every layer's settings the mildest that fits: none, or the first of those offered."""
        for path, offered in self.choices().items():
            others = {other: setting for other, setting in now.settings.items() if other != path}
            drawn = (self.of(now.schedules, s) for s in (others, *({**others, path: setting} for setting in offered)))
            now = next((p for p in drawn if self.foretold(p) <= budget), now)
        return now

    def choices(self) -> dict[str, list[Setting]]:
        """What every layer with settings offers, as it is called."""
        offered: dict[str, list[Setting]] = {}

        def noted(path: str, layer: Layer) -> Layer:
            if layer.tuning is None:
                return layer
            settings = layer.tuning.settings

            def forward(params: Tree, x: Any) -> tuple[Any, Any]:
                offered[path] = list(settings(jax.eval_shape(lambda: x)))
                return layer.forward(params, x)

            return replace(layer, forward=forward)

        jax.eval_shape(objective(map_layers_with_path(self.net, noted), self.loss).forward, self.params, self.batch)
        return {path: settings for path, settings in offered.items() if settings}

    def sites(self, now: Plan) -> Iterator[tuple[str, Schedule]]:
        """Where a schedule may still stand, with those that save a twentieth of all there is."""
        worth = self.foretold(now) / 20
        for site in self.sites_with(now.settings):
            whole = site.peak((len(site.own),))
            if site.path not in now.schedules:
                yield from ((site.path, schedule) for schedule in site.thriftier() if whole - site.peak(schedule) > worth)

    def sites_with(self, settings: Mapping[str, Setting]) -> list[Site]:
        key = repr(sorted(settings.items()))
        if key not in self.found:
            self.found[key] = sites_of(objective(with_settings(self.net, settings), self.loss), self.params, self.batch)
        return self.found[key]
