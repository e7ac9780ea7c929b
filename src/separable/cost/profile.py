"""Measure what a network costs on this machine, beside what it costs on paper, layer by layer.

Roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785): a layer takes at least the larger of
FLOPs / peak rate and bytes / bandwidth. "compute" and "memory" say which; "overhead" says that neither explains half of
the time measured.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from separable.cost.count import Count, LayerCount, as_inputs, count, uncompiled
from separable.cost.machine import Limits, Machine
from separable.cost.operations import PRODUCTS
from separable.cost.saving import Saving, compare_with_separable
from separable.cost.subnormal import ADVICE, Subnormal, in_words, subnormal_activations, subnormal_weights
from separable.cost.timing import Key, time_in_turn
from separable.errors import InputError
from separable.inputs import Example
from separable.progress import track

if TYPE_CHECKING:
    from rich.table import Table

_BUSY = 0.2  # a disturbance of this share says that other work ran
_SAMPLES = 6  # of the machine's limits, before the network runs and after


@dataclass
class LayerProfile:
    """One layer: its cost on paper, the time it took, the time the machine's limits allow, and what separable takes."""

    count: LayerCount
    measured_ms: float
    predicted_ms: float
    bound: str  # compute, memory or overhead
    resident: bool  # its tensors fit in the caches, so the roof is that of the caches
    separable: Saving | None = None

    def to_json(self) -> dict[str, Any]:
        measured = {n: getattr(self, n) for n in ("measured_ms", "predicted_ms", "bound", "resident")}
        return {**self.count.to_json(), **measured, "separable": self.separable and self.separable.to_json()}


@dataclass
class Profile:
    """A network measured: the whole, its layers, and the machine; .table() for a terminal, .to_json() for the rest."""

    count: Count
    machine: Machine
    network_ms: float
    spread: float  # the middle half of the passes spans this share of their median
    interrupted_ms: float  # by other work on the machine; see timing.Timing
    fused_ms: float  # spared by layers that run as one in the whole network, and are timed here in parts
    repeats: int
    layers: list[LayerProfile] = field(default_factory=list)
    subnormal: list[Subnormal] = field(default_factory=list)  # weights and activations that slow the processor down

    @property
    def layers_ms(self) -> float:
        """The sum of the layers' times."""
        return sum(layer.measured_ms for layer in self.layers)

    @property
    def outside_ms(self) -> float:
        """What the whole network took beside its layers: Python and the way from a call to its kernel."""
        return self.network_ms + self.fused_ms - self.layers_ms - self.interrupted_ms

    @property
    def busy(self) -> bool:
        """Other work disturbed the measurement: take its times as rough."""
        return self.spread > _BUSY or self.interrupted_ms > _BUSY * self.network_ms

    @property
    def predicted_ms(self) -> float:
        """What the machine's limits allow, layer after layer."""
        return sum(layer.predicted_ms for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        totals = {n: v for n, v in self.count.to_json().items() if n != "layers"}
        times_ms = ("network_ms", "layers_ms", "interrupted_ms", "outside_ms", "fused_ms", "predicted_ms")
        times = {n: getattr(self, n) for n in (*times_ms, "spread", "busy", "repeats")}
        layers, subnormal = [layer.to_json() for layer in self.layers], [found.to_json() for found in self.subnormal]
        made = {"machine": self.machine.to_json(), "torch": torch.__version__, "subnormal": subnormal}
        return {**totals, **times, **made, "layers": layers}

    def table(self) -> "Table":
        """One line for each layer that has MACs, one for each kind of the others, and the total."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = "Cost on paper and on this machine, one forward pass"
        table = Table(title=title, caption=self._caption(), box=SIMPLE_HEAD, padding=0)
        table.add_column("layer", overflow="fold")
        table.add_column("kind", no_wrap=True)
        for heading in ("MMACs", "ms", "roof ms"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("bound", no_wrap=True)
        table.add_column("separable\nMACs / ms", justify="right", no_wrap=True)
        rest: dict[str, list[LayerProfile]] = defaultdict(list)
        for layer in self.layers:
            if layer.count.kind not in PRODUCTS:
                rest[layer.count.kind].append(layer)
                continue
            macs = f"{layer.count.macs / 1e6:,.2f}"
            saved = "" if layer.separable is None else layer.separable.in_words()
            times = (f"{layer.measured_ms:.3f}", f"{layer.predicted_ms:.3f}")
            table.add_row(layer.count.name or "(top)", layer.count.kind, macs, *times, layer.bound, saved)
        table.add_section()
        for kind, some in rest.items():
            times = (f"{sum(x.measured_ms for x in some):.3f}", f"{sum(x.predicted_ms for x in some):.3f}")
            table.add_row(f"{len(some)} layers", kind, "", *times, _dominant(some), "")
        table.add_row("interruptions", "", "", f"{self.interrupted_ms:.3f}", "", "", "")
        table.add_row("outside the layers", "", "", f"{self.outside_ms:.3f}", "", "", "")
        if self.fused_ms:
            table.add_row("spared where layers run as one", "", "", f"{-self.fused_ms:.3f}", "", "", "")
        table.add_section()
        macs, times = f"{self.count.macs / 1e6:,.2f}", (f"{self.network_ms:.3f}", f"{self.predicted_ms:.3f}")
        table.add_row("[bold]whole network", "", macs, *times, "", "")
        return table

    def _caption(self) -> str:
        m = self.machine
        return (
            f"{m.device}, {m.threads} threads: {m.peak_gflops:.0f} GFLOP/s, {m.bandwidth_gb_s:.0f} GB/s from memory, "
            f"{m.cache_gb_s:.0f} GB/s within {m.cache_bytes / 2**20:.0f} MiB of cache. "
            f"Medians of {self.repeats} passes, whose middle half spans {self.spread:.0%} of the median"
            f"{'; this machine was busy: measure again when it is not.' if self.busy else '.'}\n"
            "separable: MACs and measured time of a separable layer of the same shape, as a share of the dense one's"
            + (f"\nSubnormal numbers: {in_words(self.subnormal)}. {ADVICE}" if self.subnormal else "")
        )


def profile(model: nn.Module, example: Example, *, repeats: int = 15, compare: bool = True) -> Profile:
    """Measure a network layer by layer, in evaluation mode, without gradients, with torch's threads as they are set.

    Args:
        model: a module on the device where it is to run; it is left in the mode it was in, statistics untouched.
            Of a model that torch.compile made, the network inside is measured, for the compiled one has no layers.
        example: the input, a tensor [N, ...], or a tuple or dict of several, on the same device; it is not changed.
        repeats: passes of each sort, whole and layer by layer in turn; their medians are given.
        compare: also time a separable layer of the same shape for each dense k x k layer.

    Returns:
        A `Profile`: .network_ms = .layers_ms + .interrupted_ms + .outside_ms - .fused_ms,
        .predicted_ms, .count, .machine, .layers, and .subnormal: the layers whose weights or activations are so small
        that processors are slow; .table() and .to_json().
        `separable.report.profile_page` makes a page of it.

    Raises:
        InputError: as `count`; `repeats` is less than 1; the model and the example are on different devices.

    >>> from torch import nn
    >>> measured = profile(nn.Conv2d(16, 16, 3), torch.zeros(1, 16, 32, 32), repeats=3)
    >>> measured.layers[0].count.macs, measured.layers[0].bound in ("compute", "memory", "overhead")
    (2073600, True)
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InputError("repeats", repeats, "must be a whole number of at least 1")
    model = uncompiled(model)
    inputs = as_inputs(model, example)
    device = inputs.tensors()[0].device
    if device.type == "meta":
        raise InputError("example", f"a tensor on {device}", "has no values to run on; count() needs none")
    with _evaluating(model), torch.inference_mode(False), torch.no_grad():
        counted = count(model, inputs)
        limits = Limits(device)
        _sample(limits)
        timing = time_in_turn(model, inputs, repeats)
        _sample(limits)
        machine = limits.best()
        layers = _layers(counted, timing.layer_ms, machine)
        for layer in track(layers if compare else [], "comparing with separable layers"):
            call = timing.dense.get((layer.count.name, layer.count.kind))
            if call is not None:
                layer.separable = compare_with_separable(call, layer.count, repeats)
        subnormal = [*subnormal_weights(model), *subnormal_activations(model, inputs)]  # in a pass that no clock times
    times = (timing.network_ms, timing.spread, timing.interrupted_ms, timing.fused_ms)
    return Profile(counted, machine, *times, repeats, layers, subnormal)


def _sample(limits: Limits) -> None:
    for _ in range(_SAMPLES):
        limits.sample()


def _layers(counted: Count, layer_ms: dict[Key, float], machine: Machine) -> list[LayerProfile]:
    """The counted layers with their times; what the device runs as another kind of operation stands by itself."""
    known = {(layer.name, layer.kind): layer for layer in counted.layers}
    for key in layer_ms:
        known.setdefault(key, LayerCount(*key))
    layers = []
    for key, layer in known.items():
        if layer.kind == "unused":
            continue
        measured_ms = layer_ms.get(key, 0.0)
        resident = layer.bytes / max(layer.calls, 1) <= machine.cache_bytes
        compute_ms = machine.compute_ms(2 * layer.macs + layer.other_ops)
        memory_ms = machine.memory_ms(layer.bytes, resident)
        least_ms = max(compute_ms, memory_ms)
        bound = "overhead" if measured_ms > 2 * least_ms else "compute" if compute_ms >= memory_ms else "memory"
        layers.append(LayerProfile(layer, measured_ms, least_ms, bound, resident))
    return layers


def _dominant(layers: list[LayerProfile]) -> str:
    """What bounds most of the time of several layers."""
    time_ms: dict[str, float] = defaultdict(float)
    for layer in layers:
        time_ms[layer.bound] += layer.measured_ms
    return max(time_ms, key=lambda bound: time_ms[bound])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode, as it was, after."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
