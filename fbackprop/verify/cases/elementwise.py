"""Cases and mistakes of the elementwise table."""

from __future__ import annotations

from ...layer import Layer
from ...layers import elementwise
from .case import Bugs, Case, Wrong, normal, pinned

CASES: tuple[Case, ...] = (
    *(Case(name, getattr(elementwise, name)(), normal(3, 5)) for name in elementwise.TABLE),
    Case("gelu", elementwise.gelu(approximate=False), normal(3, 5)),
    Case("elu", elementwise.elu(0.5), normal(3, 5)),
    Case("relu", elementwise.relu(), pinned(3, 5), "at 0", "KINK"),
    Case("leaky_relu", elementwise.leaky_relu(0.2), pinned(3, 5), "at 0", "KINK"),
    Case("elu", elementwise.elu(0.5), pinned(3, 5), "at 0", "KINK"),
    Case("tanh", elementwise.tanh(), normal(0, 5), "empty batch"),
)


def _derivative_of(other: Layer) -> Wrong:
    return lambda right: right.given(layer=other).gradients


_OTHERS: dict[str, Wrong] = {
    **{f"the derivative of {name}": _derivative_of(getattr(elementwise, name)()) for name in elementwise.TABLE},
    "the derivative of the other gelu": _derivative_of(elementwise.gelu(approximate=False)),
}
BUGS: Bugs = {name: {text: wrong for text, wrong in _OTHERS.items() if text != f"the derivative of {name}"}
              for name in elementwise.TABLE}
