"""Which layers are responsible: the converted network with one layer at a time taken back from the dense one."""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import run
from separable.conversion.who_pays.compare import ERROR, Answers
from separable.conversion.who_pays.examples import fitting
from separable.conversion.who_pays.intervals import mean_interval, stratified_interval
from separable.conversion.who_pays.kept import Kept
from separable.conversion.who_pays.outputs import best, distances, logits_of, relative, tensors_of
from separable.conversion.who_pays.swaps import swapped
from separable.errors import InputError, first_line
from separable.inputs import join
from separable.progress import track

_CHUNK = 16  # examples that every layer is tried on before the clock is looked at
_MOST_GROUPS = 3  # named for each layer


@dataclass
class Layer:
    """What it gives to take one layer back, estimated for all the data; a share of the examples, or of the error.

    recovered: accuracy or agreement that comes back, or by how much the mean relative error falls; low, high: its 95 %
    interval. regained, broken: about how many examples of the data turn right, and wrong. difference: the share of the
    mean squared difference of the outputs that goes; negative where others had adapted to this layer.
    """

    name: str
    modules: list[str]
    recovered: float | None = None
    low: float | None = None
    high: float | None = None
    regained: float | None = None
    broken: float | None = None
    difference: float | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)  # "kind", "name", "recovered": a share of that group
    note: str = ""  # why it cannot be taken back alone

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tried:
    """What the layers were tried on. complete: False where time ran out first."""

    examples: int
    of: int
    changed: int
    of_changed: int
    complete: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Trial:
    """Of one layer, a row an example of the sample: whether the answer is the one asked for, and the distance."""

    right: list[Tensor] = field(default_factory=list)
    distance: list[Tensor] = field(default_factory=list)
    note: str = ""


@torch.no_grad()
def try_layers(
    dense: nn.Module,
    converted: nn.Module,
    answers: Answers,
    layers: Mapping[str, Sequence[str]],
    groups: Sequence[tuple[str, str, Tensor]],
    seconds: float,
) -> tuple[list[Layer], Tried]:
    """Every layer on the sample of `answers`, the one that recovers most first; what cannot be taken back comes last.

    Args:
        groups: (kind, name, mask [N] over the rows of `answers`) of what each layer's part is named for.
        seconds: no further examples are begun after this time.
    """
    kept = answers.sample.in_turn()
    trials = {name: _Trial() for name in layers}
    chunks = [kept[i : i + _CHUNK] for i in range(0, len(kept), _CHUNK)] if layers else []
    end, done = time.monotonic() + seconds, 0
    for chunk in track(chunks, f"taking {len(layers)} layers back, one at a time"):
        if done and time.monotonic() > end:
            break
        _try(dense, converted, answers, layers, trials, chunk)
        done += len(chunk)
    kept, whole = kept[:done], answers.sample.strata
    changed = sum(one.changed for one in kept)
    tried = Tried(done, sum(whole.values()), changed, whole[True], done == sum(len(chunk) for chunk in chunks))
    drawn = _Drawn(answers, kept)
    found = [_layer(name, list(layers[name]), trials[name], answers, drawn, groups) for name in layers]

    def rank(layer: Layer) -> tuple[bool, float, float]:
        return bool(layer.note), -(layer.recovered or 0.0), -(layer.difference or 0.0)

    return sorted(found, key=rank), tried


def _try(dense, converted, answers: Answers, layers, trials: dict[str, _Trial], chunk: list[Kept]) -> None:
    """Every layer on some examples, those of one kind together."""
    kinds: dict[Hashable, list[int]] = {}
    for i, one in enumerate(chunk):
        kinds.setdefault(one.inputs.kind(), []).append(i)
    order = [i for some in kinds.values() for i in some]
    back = torch.tensor(order).argsort()
    batches = [(fitting(dense, join([chunk[i].inputs for i in some])), some) for some in kinds.values()]
    rows = torch.tensor([_row(answers, one) for one in chunk])
    target = answers.target[rows]
    outputs = [tensors_of(run(dense, inputs, who="the dense network"), len(some), "dense") for inputs, some in batches]
    for name, modules in layers.items():
        trial = trials[name]
        if trial.note:
            continue
        right, distance = [], []
        try:
            with swapped(converted, dense, modules) as network:
                for (inputs, some), dense_outputs in zip(batches, outputs, strict=True):
                    given = run(network, inputs, who="the network")
                    distance.append(distances(dense_outputs, tensors_of(given, len(some), "converted")))
                    logits = None if answers.measure == ERROR else logits_of(given, len(some))
                    if logits is not None:
                        right.append(best(logits)[0] == target[torch.tensor(some)])
        except (RuntimeError, ValueError, IndexError) as error:  # channels or outputs of other shapes
            reason = error.rule if isinstance(error, InputError) else first_line(error)
            trial.note = f"cannot be taken back alone: {reason}"
            continue
        trial.distance.append(torch.cat(distance)[back])
        if right:
            trial.right.append(torch.cat(right)[back])


def _row(answers: Answers, one: Kept) -> int:
    """Where an example stands in `answers`, whose numbers ascend."""
    return int(torch.searchsorted(answers.number, one.number))


class _Drawn:
    """The sample as an estimate of all the data: each example stands for its part of its stratum."""

    def __init__(self, answers: Answers, kept: list[Kept]):
        self.everything = len(answers.number)
        self.rows = torch.tensor([_row(answers, one) for one in kept])
        changed = torch.tensor([one.changed for one in kept])
        if len(kept) == self.everything:
            self.strata = [(torch.ones(len(kept), dtype=torch.bool), 1.0)]
        else:
            whole = answers.sample.strata
            self.strata = [(changed == s, size / self.everything) for s, size in whole.items() if (changed == s).any()]
        self.weight = torch.zeros(len(kept), dtype=torch.float64)
        for inside, share in self.strata:
            self.weight[inside] = share * self.everything / int(inside.sum())

    def share(self, values: Tensor) -> float:
        """The mean over all the data of what `values` holds for the sample."""
        return float((self.weight * values).sum() / self.everything)

    def interval(self, gain: Tensor) -> tuple[float, float]:
        """Of the share of a gain of 1, 0 or -1 an example."""
        counts = [
            (share, int((gain[inside] > 0).sum()), int((gain[inside] < 0).sum()), int(inside.sum()))
            for inside, share in self.strata
        ]
        return stratified_interval(counts)


def _layer(
    name: str,
    modules: list[str],
    trial: _Trial,
    answers: Answers,
    drawn: _Drawn,
    groups: Sequence[tuple[str, str, Tensor]],
) -> Layer:
    if trial.note or not trial.distance:
        return Layer(name, modules, note=trial.note)
    distance, scale = torch.cat(trial.distance), answers.scale
    before, after = (drawn.share(relative(d, scale).square()) for d in (answers.distance[drawn.rows], distance))
    layer = Layer(name, modules, difference=1 - after / before if before > 0 else 0.0)
    if answers.measure == ERROR:
        gain = answers.error[drawn.rows] - relative(distance, scale)
        layer.low, layer.high = mean_interval(gain) or (None, None)
    else:
        before_right = (answers.converted == answers.target)[drawn.rows]
        gain = torch.cat(trial.right).double() - before_right.double()
        layer.regained, layer.broken = (drawn.weight[one].sum().item() for one in (gain > 0, gain < 0))
        layer.low, layer.high = drawn.interval(gain)
    layer.recovered = drawn.share(gain)
    layer.groups = _parts(drawn, gain, groups)
    return layer


def _parts(drawn: _Drawn, gain: Tensor, groups: Sequence[tuple[str, str, Tensor]]) -> list[dict[str, Any]]:
    """The groups that recover most, where they recover more than twice what chance would give or take."""
    weighted = drawn.weight * gain
    found: list[dict[str, Any]] = []
    for kind, name, mask in groups:
        inside = weighted[mask[drawn.rows]]
        if float(inside.sum()) > 2 * float(inside.square().sum().sqrt()):
            found.append({"kind": kind, "name": name, "recovered": float(inside.sum() / mask.sum())})
    return sorted(found, key=lambda one: -one["recovered"])[:_MOST_GROUPS]
