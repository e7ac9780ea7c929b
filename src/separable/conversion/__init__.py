"""From a trained dense network to a separable one: survey -> factorize -> calibrate -> plan, then distill.

`convert` walks the steps; each is a function of its own for who wants to look closer. docs/conversion.md derives them.

The functions stand before the modules of their names: `separable.conversion.survey` is the function, and the module
`survey` is reached by `from separable.conversion.survey import ...`.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from separable import cost
from separable.conversion.batches import Data
from separable.conversion.calibrate import calibrate
from separable.conversion.distill import Epoch, distill
from separable.conversion.factorize import factorize
from separable.conversion.plan import Choice, build, plan, read_budget
from separable.conversion.survey import SAMPLES, Site, Survey, survey
from separable.cost.count import uncompiled
from separable.progress import say

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Choice",
    "Conversion",
    "Epoch",
    "Site",
    "Survey",
    "calibrate",
    "convert",
    "distill",
    "factorize",
    "plan",
    "survey",
]

_FEW = 64  # examples; a fit on fewer is warned of


@dataclass
class Conversion:
    """A converted network and what was decided for each of its convolutions. MACs are for one example."""

    model: nn.Module = field(repr=False)
    layers: list[Choice]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int

    def to_json(self) -> dict[str, Any]:
        """Everything but the model, as plain values."""
        totals = {name: getattr(self, name) for name in ("macs_before", "macs_after", "params_before", "params_after")}
        return {**totals, "layers": [layer.to_json() for layer in self.layers]}

    def table(self) -> "Table":
        """For a terminal: a row for each convolution, totals last."""
        from rich.table import Table

        table = Table(title="Converted layers", show_footer=True)
        share = self.macs_after / max(self.macs_before, 1)
        table.add_column("layer", footer="whole network")
        table.add_column("form")
        table.add_column("error", justify="right")
        table.add_column("MMACs before", justify="right", footer=f"{self.macs_before / 1e6:.2f}")
        table.add_column("after", justify="right", footer=f"{self.macs_after / 1e6:.2f} ({share:.0%})")
        table.add_column("params before", justify="right", footer=f"{self.params_before:,}")
        table.add_column("after", justify="right", footer=f"{self.params_after:,}")
        timed = any(layer.ms_after is not None for layer in self.layers)
        for heading in ("ms before", "after") if timed else ():
            table.add_column(heading, justify="right")
        for layer in self.layers:
            table.add_row(*_cells(layer, timed))
        return table


def convert(
    model: nn.Module,
    data: Data,
    budget: dict[str, float] | None = None,
    *,
    example: Tensor | None = None,
    samples: int = SAMPLES,
) -> Conversion:
    """Make a trained dense network separable under a budget, its weights carried over, without a gradient step.

    Args:
        model: any network of one tensor; it is not modified. Of one that torch.compile made, the network inside is
            converted.
        data: what it was trained on, prepared as for it, some hundreds of examples: a tensor [N, ...], or an iterable
            of batches, each a tensor or (inputs, labels). Labels are not read.
        budget: one of {"macs": b}, {"params": b}, {"latency": b}. Up to 1, b is a share of what the whole dense network
            has (1: nothing needs to change); above 1 a count of multiply-adds for one example, or of parameters.
            {"macs": 0.6} where not given.
        example: the input that MACs are counted and latency is measured on; the first of the data where not given.
        samples: how many examples of the data are used at most.

    Returns:
        A `Conversion`: the network, in the mode (train or eval) of the one given, and what became of each layer.

    Raises:
        InputError: bad data, NaN in activations (names the layer), nothing that can be made separable, or a budget that
            is more than the dense network has or cannot be met (says the best that can).

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10))
    >>> done = convert(net, torch.randn(64, 3, 8, 8), {"macs": 0.5})
    >>> done.macs_after <= 0.5 * done.macs_before
    True
    """
    budget = {"macs": 0.6} if budget is None else budget
    read_budget(budget)
    model = uncompiled(model)
    found = survey(model, data, example=example, samples=samples)
    examples = sum(len(batch) for batch in found.inputs)
    if examples < _FEW:
        many = "example" if examples == 1 else "examples"
        say(f"calibrated on {examples} {many}; some hundreds are needed for a fit that holds")
    choices = plan(found, budget)
    separable = build(found, copy.deepcopy(model), choices)
    if any(choice.order for choice in choices):
        errors = calibrate(separable, found)
        for choice in choices:
            choice.error = errors.get(choice.name, 0.0)
    counted = cost.count(separable, found.example)
    macs_after = counted.macs // len(found.example)
    say(f"separable: {macs_after / 1e6:.2f} of {found.macs / 1e6:.2f} MMACs")
    return Conversion(separable, choices, found.macs, macs_after, found.params, counted.params)


def _cells(layer: Choice, timed: bool) -> list[str]:
    form = layer.note if layer.order is None else f"{layer.order.replace('_', ' ')}, rank {layer.rank}"
    cells = [layer.name, form, f"{layer.error:.4f}" if layer.order else ""]
    cells += [f"{layer.macs_before / 1e6:.3f}", f"{layer.macs_after / 1e6:.3f}"]
    cells += [f"{layer.params_before:,}", f"{layer.params_after:,}"]
    if timed:
        cells += ["" if ms is None else f"{ms:.3f}" for ms in (layer.ms_before, layer.ms_after)]
    return cells
