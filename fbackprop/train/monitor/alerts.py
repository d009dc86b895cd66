"""What the monitor says and when: Alert, Thresholds with their reasons, and the latch that says a thing once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from ...errors import Problem


@dataclass(frozen=True)
class Alert:
    """One thing that goes wrong from `step` on, or, with ended=True, no longer does. text: one sentence for people.

    layer: its path, "" where it is the whole net. number: what was measured, in the unit of the kind's threshold.
    """

    step: int
    kind: str
    layer: str
    number: float
    text: str
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a condition holds, each with its reason; the second of a pair is where it has clearly ended."""

    # dy of a layer over dy of the last one, both as norms. Three decimal places are where float32 updates of a first layer stop
    # showing beside those of the last; two sigmoid layers cost 1/16, residual branches started small 1/100
    vanishing: tuple[float, float] = (1e-3, 1e-2)
    # the same upwards: a norm lifts embeddings of size 0.02 to size 1, and 36 is seen there in health; ten times that is not
    exploding: tuple[float, float] = (300.0, 100.0)
    # share of units of a relu that are 0 in the whole batch: half of what the layer can say. By chance narrow layers have 0.3
    dead: tuple[float, float] = (0.5, 0.4)
    # share of outputs where the slope is below 4 % of its largest; the last layer may be as sure as it likes
    saturated: tuple[float, float] = (0.5, 0.4)
    # norm of a step's update over that of all weights: at a tenth, ten steps replace the net. Healthy: 1e-4 to 3e-2
    rate_high: tuple[float, float] = (0.1, 0.03)
    # and the loss is above this multiple of the first one, or above the second whatever the updates
    risen: tuple[float, float] = (1.05, 2.0)
    # the same of the layer that moves most: at 1e-4 it takes 10,000 steps in one direction to replace a layer
    rate_low: tuple[float, float] = (1e-4, 3e-4)
    # a loss is a spike this many median deviations above the median of the last `window` steps (13 sigma of normal noise) ...
    spike: float = 20.0
    # ... and by this share of the loss at the start: late in training losses are small and vary by factors
    spike_share: float = 0.5
    # a plateau is early when the loss has lost less than this share since the start ...
    plateau: float = 0.05
    # ... and less than this share in the last `plateau_steps`
    plateau_slope: float = 0.01
    plateau_steps: int = 100
    # norm of a layer's weights over that halfway back to the start: any power of the steps above 0.6, so no saturation
    growing: tuple[float, float] = (1.5, 1.2)
    # and over that at the first look: weights started small grow by as much while they still learn
    grown: float = 2.0
    # and over that of all layers: what is smaller may double without the net growing
    layer_share: float = 0.1
    # and meanwhile the loss has lost less than this share of its start
    unpaid: float = 0.02
    look: int = 10  # steps from one look at losses and norms to the next
    window: int = 20  # steps a median is taken over
    patience: int = 100  # steps before a rate is called too low or a plateau a plateau
    hold: int = 2  # looks (for what a probe sees: probes) a condition has to hold, or to have ended, in a row

    @classmethod
    def of(cls, text: str | None) -> Thresholds:
        """Returns thresholds by a text such as `vanishing=1e-4:1e-3,spike=30`.

        Raises Problem for a bad name or number.
        """
        changes: dict[str, Any] = {}
        for part in (text or "").split(",") if text else []:
            name, _, numbers = part.partition("=")
            default = getattr(cls, name.strip(), None)
            wanted = len(default) if isinstance(default, tuple) else 1
            try:
                kind = int if isinstance(default, int) else float
                values = tuple(kind(number) for number in numbers.split(":"))
            except ValueError:
                values = ()
            if name.strip() not in {field.name for field in fields(cls)} or len(values) != wanted:
                shapes = ", ".join(f"{f.name}=X{':Y' * isinstance(f.default, tuple)}" for f in fields(cls))
                raise Problem(f"alerts: expected some of {shapes} with commas between, got {part!r}")
            changes[name.strip()] = values if wanted > 1 else values[0]
        return cls(**changes)


class Finding(NamedTuple):
    """One look at one condition. over: clearly not so any more; between `holds` and `over` nothing changes."""

    kind: str
    layer: str
    number: float
    holds: bool
    over: bool
    text: str


SUDDEN = ("loss spike", "rate too high", "non-finite")  # said at the first look


class Latch:
    """Says a condition once when it has held long enough, and once when it has been over as long."""

    def __init__(self, hold: int) -> None:
        self.hold = hold
        self.raised: dict[str, Finding] = {}
        self.count: dict[str, int] = {}

    def look(self, step: int, finding: Finding) -> list[Alert]:
        kind, before = finding.kind, self.raised.get(finding.kind)
        due = finding.holds if before is None else finding.over
        self.count[kind] = self.count.get(kind, 0) + 1 if due else 0
        if self.count[kind] < (1 if before is None and kind in SUDDEN else self.hold):
            return []
        self.count[kind] = 0
        if before is None:
            self.raised[kind] = finding
            return [Alert(step, kind, finding.layer, finding.number, finding.text)]
        del self.raised[kind]
        text = f"{kind} is over{f' in layer {before.layer}' if before.layer else ''}."
        return [Alert(step, kind, before.layer, finding.number, text, ended=True)]
