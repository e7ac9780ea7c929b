"""What each layer could become: every form at a few ranks, what it costs and what it loses.

A loss is the share of the variance of the layer's output (after its norm) that the form gives up on the dense network's
own activations, by the Kronecker product of their moments. What that does to the network: weigh.py.
"""

from dataclasses import dataclass
from typing import Any

from separable.conversion import chain, thin
from separable.conversion.forms import FORMS, Form, Shape
from separable.conversion.moments import Whitening
from separable.conversion.patches import grouped_weight
from separable.conversion.removal import REMOVED, Block
from separable.conversion.survey import Site, Survey
from separable.progress import track

_SHARES = [0.03 * 1.25**i for i in range(16)]  # of a layer's multiply-adds, to 0.85
_KEPT = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the channels between two layers
_MULTIPLE = 8  # of ranks from 16 on: whole vectors


@dataclass
class Option:
    """One way to run one layer. loss: of its own output. change: of the network's outputs, predicted."""

    form: str | None  # None: dense
    rank: int
    macs: int
    params: int
    loss: float = 0.0
    change: float = 0.0
    ms: float | None = None
    tied: tuple[str, ...] | None = None  # layers that take options of this rank together


Table = dict[str, list[Option]]


def every_option(survey: Survey, *, fit: bool) -> Table:
    """Of every layer, those included that take channels from two; without `fit` no losses."""
    table = {site.name: options(survey, site, fit=fit) for site in track(survey.convertible, "comparing forms")}
    for second, first in survey.pairs.items():
        _add_thin(survey, table, first, second, fit)
    for block in survey.blocks.values():
        _add_removal(survey, table, block)
    return table


def _add_thin(survey: Survey, table: Table, first: str, second: str, fit: bool) -> None:
    """Fewer channels between two layers, as tied options of both."""
    channels = survey.conv_of(second).in_channels
    losses = survey.elimination(second)[1] if fit else [0.0] * channels
    for share in _KEPT:
        rank = max(1, round(share * channels))
        rank = rank // _MULTIPLE * _MULTIPLE if rank >= 2 * _MULTIPLE else rank
        loss = losses[channels - rank - 1]
        for name, form, lost in ((first, thin.FIRST, 0.0), (second, thin.SECOND, loss)):
            dense = table[name][0]
            less = rank / channels
            biases = _new_biases(survey, name) if form == thin.SECOND else 0
            costs = round(dense.macs * less), round(dense.params * less) + biases
            if not any((o.form, o.rank) == (form, rank) for o in table[name]):
                table[name].append(Option(form, rank, *costs, lost, tied=(first, second)))


def _add_removal(survey: Survey, table: Table, block: Block) -> None:
    """No layers of a block, as tied options of them all; what else changes is counted as its first layer's."""
    inside = [table[name][0] for name in block.layers]
    macs, params = block.macs - sum(o.macs for o in inside), block.params - sum(o.params for o in inside)
    for i, name in enumerate(block.layers):
        costs = (0, 0) if i else (-macs, -params)
        table[name].append(Option(REMOVED, 0, *costs, 1.0, tied=block.layers))


def removal_of(table: Table, name: str) -> Option:
    """The option of a layer that its block goes."""
    return next(option for option in table[name] if option.form == REMOVED)


def _new_biases(survey: Survey, name: str) -> int:
    """Parameters of the bias that a layer without one takes when it is fitted anew."""
    conv = survey.conv_of(name)
    return conv.out_channels if conv.bias is None and survey.site(name).takes_bias(conv) else 0


def options(survey: Survey, site: Site, *, fit: bool = True) -> list[Option]:
    """The layer as it is, then each form that costs less, at ranks a quarter apart; without `fit` no losses."""
    conv = survey.conv(site)
    shape, found = Shape.of(conv), [Option(None, 0, site.macs, site.params)]
    for form in FORMS.values():
        if not form.possible(shape):
            continue
        costs = {}
        for rank in _ranks(site, conv, form, shape):
            macs = _macs(site, conv, form, rank)
            params = chain.params(conv, form, rank, site.takes_bias(conv))
            if macs < site.macs and params < site.params:
                costs[rank] = (macs, params)
        if costs:
            losses = _losses(survey, site, form, list(costs)) if fit else [0.0] * len(costs)
            found += [Option(form.name, r, *costs[r], loss) for r, loss in zip(costs, losses, strict=True)]
    return found


def _macs(site: Site, conv: Any, form: Form, rank: int) -> int:
    """Of one example, in all calls."""
    calls = zip(site.sizes, site.shares, strict=True)
    return round(sum(share * chain.macs(conv, form, rank, *sizes, site.pad) for sizes, share in calls))


def _ranks(site: Site, conv: Any, form: Form, shape: Shape) -> list[int]:
    """The least, and those that take a share of the layer's multiply-adds; from 16 on whole vectors."""
    one = _macs(site, conv, form, 16) / 16
    full, found = form.useful_rank(shape), {1}
    for share in _SHARES:
        rank = int(share * site.macs / one)
        found.add(min(full, rank // _MULTIPLE * _MULTIPLE if rank >= 2 * _MULTIPLE else max(1, rank)))
    return sorted(found)


def _losses(survey: Survey, site: Site, form: Form, ranks: list[int]) -> list[float]:
    conv = survey.conv(site)
    shape, whitening = Shape.of(conv), Whitening(site.known, survey.importance(site))
    return form.losses(whitening.target(form, grouped_weight(conv), shape), shape, ranks)
