"""Who pays for a conversion: the mean hides that some classes, slices and examples lose most of what is lost.

Hooker et al. 2019, "What do compressed deep neural networks forget?", arXiv:1911.05248, found networks of nearly the
same accuracy to differ on a small part of the data, and on some classes far more than on others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import check_values
from separable.conversion.who_pays import intervals
from separable.conversion.who_pays.compare import ACCURACY, AGREEMENT, ERROR, Answers, compare, kind_of
from separable.conversion.who_pays.kept import Sample
from separable.conversion.who_pays.layers import Layer, try_layers
from separable.conversion.who_pays.result import Changed, Far, Group, WhoPays
from separable.conversion.who_pays.slices import masks, read_slices
from separable.conversion.who_pays.swaps import evaluation_copy, read_layers
from separable.cost.count import uncompiled
from separable.errors import InputError

__all__ = ["Changed", "Far", "Group", "Layer", "WhoPays", "read_slices", "who_pays"]

SWAP_EXAMPLES = 1024
SWAP_SECONDS = 300.0


def who_pays(
    dense: nn.Module,
    converted: nn.Module,
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    slices: Mapping[str, Any] | None = None,
    layers: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    answers: str = "auto",
    swap_examples: int = SWAP_EXAMPLES,
    swap_seconds: float = SWAP_SECONDS,
    seed: int = 0,
) -> WhoPays:
    """Compare a converted network with its dense one: by class, by slice, by example, and layer by layer.

    Args:
        dense, converted: run in eval mode, without gradients, on copies of their modules; neither is touched.
        data: examples that neither network learned from: a tensor [N, ...], or an iterable of batches, each a tensor,
            (inputs, labels) or (inputs, labels, files). Several inputs are a tuple, or a dict by name. In a dict that
            is a whole batch, "labels" are the labels. The data is read once. Labels are class numbers [N], -1 where
            there is none; files are names of the examples.
        classes: names of the class numbers.
        slices: named parts of the data, see `masks` in slices.py: {"night": [True, False, ...]}, {"night": [3, 8]} by
            number, {"night": {"a.png", "b.png"}} by file, or {"light": ["day", "night", ...]}, a name an example.
        layers: names of modules to take back one at a time; or {name: [modules]} where more belongs to a layer, as the
            batch norm that its conversion changed; by default all that differ, norms with the layer before them.
        answers: "classes", "values", or "auto": classes where the network gives one output [N, classes].
        swap_examples: how many examples layers are tried on at most; where there are more, a random sample, in which
            changed answers are drawn more often and count less.
        swap_seconds: no further examples are tried after this time; each layer has then seen the same ones.
        seed: of the sample.

    Raises:
        InputError: data that cannot be read, outputs that do not match or are not finite, labels that are no classes,
            a slice without examples, a layer that is not in both networks.

    >>> dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> damaged = nn.Sequential(dense[0], nn.ReLU(), nn.Linear(16, 4))
    >>> found = who_pays(dense, damaged, torch.randn(64, 8))
    >>> found.measure, found.layers[0].name, found.layers[0].difference
    ('agreement', '2', 1.0)
    """
    _check(dense, converted, classes, answers, swap_examples, swap_seconds)
    dense, converted = (
        evaluation_copy(name, uncompiled(model)) for name, model in (("dense", dense), ("converted", converted))
    )
    named = read_layers(layers, dense, converted)
    seen = compare(dense, converted, data, answers, Sample(swap_examples, seed))
    parts = {name: mask[seen.number] for name, mask in masks(slices, seen.examples, seen.files).items()}
    names = _names(seen, classes)
    members = {name: (seen.label if seen.measure != AGREEMENT else seen.dense) == i for i, name in names.items()}
    groups = [("class", *one) for one in members.items()] + [("slice", *one) for one in parts.items()]
    groups = [one for one in groups if one[2].any()]
    found, tried = try_layers(dense, converted, seen, named, groups, swap_seconds)
    whole = torch.ones(len(seen.number), dtype=torch.bool)
    return WhoPays(
        seen.measure,
        _groups(seen, {"all": whole})[0],
        _groups(seen, members),
        _groups(seen, parts),
        _changed(seen, names),
        _far(seen),
        found,
        tried,
        seen.examples - len(seen.number),
        seen.shown,
    )


def _check(dense: Any, converted: Any, classes: Any, answers: Any, swap_examples: Any, swap_seconds: Any) -> None:
    check_values("dense", dense)
    check_values("converted", converted)
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Sequence)):
        raise InputError("classes", classes, "must be the names of the classes, in the order of their numbers")
    if answers not in ("auto", "classes", "values"):
        raise InputError("answers", answers, 'must be "auto", "classes" or "values"')
    if isinstance(swap_examples, bool) or not isinstance(swap_examples, int) or swap_examples < 2:
        raise InputError("swap_examples", swap_examples, "must be a whole number of at least 2")
    if isinstance(swap_seconds, bool) or not isinstance(swap_seconds, (int, float)) or not swap_seconds > 0:
        raise InputError("swap_seconds", swap_seconds, "must be a positive number")


def _names(seen: Answers, classes: Sequence[str] | None) -> dict[int, str]:
    """A name for each class number that occurs, as a label or as an answer."""
    numbers = torch.cat([seen.label, seen.dense, seen.converted]).unique().tolist()
    numbers = [number for number in numbers if number >= 0]
    if classes is not None and numbers and numbers[-1] >= len(classes):
        raise InputError("classes", f"{len(classes)} names", f"must have one for class {numbers[-1]}")
    return {n: str(n) if classes is None else str(classes[n]) for n in numbers}


def _groups(seen: Answers, members: Mapping[str, Tensor]) -> list[Group]:
    """A group for each mask that holds an example; the largest loss first, of equal ones the most examples lost."""
    groups = [_group(name, seen, mask) for name, mask in members.items() if mask.any()]
    if seen.measure == ACCURACY:
        tests = intervals.holm([intervals.mcnemar(group.lost, group.won) for group in groups])
        for group, p in zip(groups, tests, strict=True):
            group.p = p
    return sorted(groups, key=lambda group: (-group.loss, -group.lost))


def _group(name: str, seen: Answers, mask: Tensor) -> Group:
    n = int(mask.sum())
    if seen.measure == ERROR:
        errors = seen.error[mask]
        low, high = intervals.mean_interval(errors) or (None, None)
        return Group(name, n, float(errors.mean()), None if low is None else max(low, 0.0), high)
    was, now = ((given == seen.target)[mask] for given in (seen.dense, seen.converted))
    lost, won = int((was & ~now).sum()), int((now & ~was).sum())
    if seen.measure == AGREEMENT:
        return Group(name, n, lost / n, *intervals.share_interval(lost, n), lost=lost)
    low, high = intervals.paired_interval(lost, won, n)
    right = int(was.sum())
    return Group(name, n, (lost - won) / n, low, high, right / n, (right - lost + won) / n, lost, won)


def _changed(seen: Answers, names: Mapping[int, str]) -> list[Changed]:
    """Lost, then won, then other; of each, those first that the network that was right, or the dense, was surest of."""
    found = []
    for i in (seen.dense != seen.converted).nonzero().flatten().tolist():
        number, dense, converted = (int(column[i]) for column in (seen.number, seen.dense, seen.converted))
        kind = kind_of(dense, converted, int(seen.target[i]))
        label = names.get(int(seen.label[i]))
        sure = float(seen.dense_probability[i]), float(seen.converted_probability[i])
        file = None if seen.files is None else seen.files[number]
        found.append(Changed(number, file, kind, label, names[dense], sure[0], names[converted], sure[1]))
    order = ("lost", "won", "other")

    def rank(one: Changed) -> tuple[int, float, int]:
        sure = one.converted_probability if one.kind == "won" else one.dense_probability
        return order.index(one.kind), -sure, one.index

    return sorted(found, key=rank)


def _far(seen: Answers) -> list[Far]:
    if seen.measure != ERROR:
        return []
    order = seen.error.argsort(descending=True).tolist()
    files = seen.files
    return [
        Far(number, None if files is None else files[number], float(seen.error[i]))
        for i, number in ((i, int(seen.number[i])) for i in order)
    ]
