"""What a conversion gives: the network, what became of each of its layers, and its time beside the dense one's."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from separable import runtimes
from separable.conversion.headline import headline
from separable.conversion.plan import Plan
from separable.conversion.removal import REMOVED, removed
from separable.conversion.survey import Site, Survey
from separable.conversion.table import Option, Table


@dataclass
class Choice:
    """What becomes of one layer. loss: of its output alone, predicted; error: with all before it, as fitted."""

    name: str
    form: str | None  # None: left dense
    rank: int | None
    loss: float
    error: float | None
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    ms_before: float | None = None
    ms_after: float | None = None
    note: str = ""  # why a layer stayed dense

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Conversion:
    """A converted network, what was decided for each of its convolutions, and its time beside the dense one's.

    MACs are for one example; milliseconds for the example that the network was timed on.
    """

    model: nn.Module = field(repr=False)
    layers: list[Choice]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    target: str
    comparison: runtimes.Comparison = field(repr=False)
    batch: int = 1

    @property
    def dense_ms(self) -> float:
        """The dense network in the runtime that is fastest for it."""
        return fastest_ms(self.comparison, "dense")

    @property
    def ms(self) -> float:
        """The converted network in the runtime that it was planned for."""
        row = self.comparison.of("separable", self.target)
        assert row is not None
        return row.ms or math.inf

    @property
    def times_as_fast(self) -> float:
        """As the fastest dense network of all runtimes at hand, each beside it in the same round."""
        row = self.comparison.of("separable", self.target)
        return 0.0 if row is None else self.comparison.times_as_fast(row) or 0.0

    @property
    def share(self) -> float:
        """Of the fastest dense network's time, that the converted network takes."""
        return 1 / self.times_as_fast if self.times_as_fast else math.inf

    def headline(self, points: float | None = None) -> str:
        """The line that matters. points: of accuracy, gained or (below 0) lost, where that was measured."""
        return headline(self.to_json(), points)

    def to_json(self) -> dict[str, Any]:
        """Everything but the model, as plain values."""
        names = ("macs_before", "macs_after", "params_before", "params_after", "target", "batch")
        totals = {name: getattr(self, name) for name in names}
        times = {"dense_ms": self.dense_ms, "ms": self.ms, "times_as_fast": self.times_as_fast}
        layers = [layer.to_json() for layer in self.layers]
        return {**totals, **times, "comparison": self.comparison.to_json(), "layers": layers}

    def table(self) -> Any:
        """For a terminal: a row for each convolution, totals last."""
        from separable.conversion.layer_table import layer_table

        return layer_table(self.to_json())


def choices(survey: Survey, plan: Plan, table: Table | None, errors: Mapping[str, float]) -> list[Choice]:
    """What becomes of every convolution, also of those in blocks that went and of those that have no options."""
    blocks = removed(survey.blocks, {name: option.form for name, option in plan.items()})
    gone = tuple(f"{block.name}." for block in blocks)
    return [
        _gone(site, table) if site.name.startswith(gone) else _choice(site, plan.get(site.name), table, errors)
        for site in survey.sites
    ]


def _choice(site: Site, option: Option | None, table: Table | None, errors: Mapping[str, float]) -> Choice:
    before, error = _dense_ms(site, table), errors.get(site.name)
    if option is None or option.form is None:
        note, costs = site.kept or "dense is worth its cost here", (site.macs, site.macs, site.params, site.params)
        note = note if error is None else "dense, fitted anew behind layers that changed"
        return Choice(site.name, None, None, 0.0, error, *costs, before, before, note)
    costs = (site.macs, option.macs, site.params, option.params)
    return Choice(site.name, option.form, option.rank, option.loss, error, *costs, before, option.ms)


def _gone(site: Site, table: Table | None) -> Choice:
    """Of any layer in a block that went, also of one without options."""
    before = _dense_ms(site, table)
    return Choice(site.name, REMOVED, None, 1.0, None, site.macs, 0, site.params, 0, before, before and 0.0)


def _dense_ms(site: Site, table: Table | None) -> float | None:
    return None if table is None or site.name not in table else table[site.name][0].ms


def set_as_given(network: nn.Module, given: nn.Module) -> None:
    """Modes and gradients as in the network that was given; new layers take those of the layer that they replace."""
    modes = {name: module.training for name, module in given.named_modules()}
    wants = {name: parameter.requires_grad for name, parameter in given.named_parameters()}

    def nearest(name: str) -> bool:
        while name not in modes:  # the network itself, of the name "", is
            name = name.rpartition(".")[0]
        return modes[name]

    for name, module in network.named_modules():
        module.training = nearest(name)
    for name, parameter in network.named_parameters():
        if name in wants:
            parameter.requires_grad_(wants[name])
        else:
            layer = name.rpartition(".")[0]
            while layer and f"{layer}.weight" not in wants:
                layer = layer.rpartition(".")[0]
            parameter.requires_grad_(wants.get(f"{layer}.weight" if layer else "weight", True))


def fastest_ms(comparison: runtimes.Comparison, network: str) -> float:
    row = comparison.fastest(network)
    return math.inf if row is None or row.ms is None else row.ms
