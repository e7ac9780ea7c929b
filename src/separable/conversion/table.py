"""What each layer could become: every form at a few ranks, what it costs and what it loses.

A loss is the share of the variance of the layer's output (after its norm) that the form gives up on the dense network's
own activations, by the Kronecker product of their moments. What that does to the network is measured, not assumed: one
form of each layer is put into the dense network, and the change of the network's outputs for each unit of loss is the
layer's sensitivity.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from separable.conversion import chain, thin
from separable.conversion.calibrate import replace
from separable.conversion.fitting import from_moments
from separable.conversion.forms import FORMS, Form, Shape
from separable.conversion.moments import Whitening
from separable.conversion.patches import grouped_weight
from separable.conversion.removal import REMOVED, Block, remove
from separable.conversion.streams import own_structure
from separable.conversion.survey import Site, Survey
from separable.inputs import Inputs, join, tensors
from separable.progress import track

_SHARES = [0.03 * 1.25**i for i in range(16)]  # of a layer's multiply-adds, to 0.85
_KEPT = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the channels between two layers
_MULTIPLE = 8  # of ranks from 16 on: whole vectors
_PROBE_LOSS = 0.1
_PROBE_PASSES = 1.5  # of the data through the network, for all probes together
_PROBE_EXAMPLES = (2, 128)  # of one probe, at least and at most
_LEAST, _MOST = 3.0, 10.0  # shares and times of the median that a sensitivity is held within: one probe tells no more


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


def tabulate(survey: Survey) -> Table:
    table = every_option(survey, fit=True)
    weigh(survey, table)
    return table


def every_option(survey: Survey, *, fit: bool) -> Table:
    """Of every layer, those included that take channels from two; without `fit` no losses."""
    table = {site.name: options(survey, site, fit=fit) for site in track(survey.convertible, "comparing forms")}
    for second, first in survey.pairs.items():
        _add_thin(survey, table, first, second, fit)
    for block in survey.blocks.values():
        _add_removal(table, block)
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
            costs = round(dense.macs * less), round(dense.params * less)
            if not any((o.form, o.rank) == (form, rank) for o in table[name]):
                table[name].append(Option(form, rank, *costs, lost, tied=(first, second)))


def _add_removal(table: Table, block: Block) -> None:
    """No layers of a block, as tied options of them all; what else is in it is counted as its first layer's."""
    inside = [table[name][0] for name in block.layers]
    others = [block.macs - sum(o.macs for o in inside), block.params - sum(o.params for o in inside)]
    for i, name in enumerate(block.layers):
        costs = (0, 0) if i else (-others[0], -others[1])
        table[name].append(Option(REMOVED, 0, *costs, 0.0, tied=block.layers))


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


@torch.no_grad()
def weigh(survey: Survey, table: Table) -> None:
    """Turn losses into changes of the network, by one probe of each layer.

    A probe shows what a loss does that nothing repairs. Each later layer is fitted to what really reaches it, and takes
    back a part; the change that remains is taken to be the probe's over the number of layers from there to the end, a
    rule of thumb. What the first layer loses of the input, no later layer can find elsewhere. A loss counts against
    what is left of the output, as noise against a signal: half of an output lost in one layer is worse than a tenth
    lost in each of five.
    """
    inputs = _probed(survey)
    dense = outputs_of(inputs.call(survey.model))
    sensitivities = {}
    for i, site in enumerate(track(survey.convertible, "weighing layers")):
        lossy = [option for option in table[site.name] if option.form in FORMS and option.loss > 1e-9]
        if not lossy:
            continue
        probe = min(lossy, key=lambda option: abs(math.log(option.loss / _PROBE_LOSS)))
        changed = outputs_of(_with_option(survey, site, probe, inputs))
        later = 0 if i == 0 else len(survey.convertible) - 1 - i
        sensitivities[site.name] = change(changed, dense) * (1 - probe.loss) / probe.loss / (1 + later)
    if not sensitivities:
        return
    _weigh_removals(survey, table, inputs, dense)
    median = statistics.median(sensitivities.values())
    for name, sensitivity in sensitivities.items():
        held = min(max(sensitivity, median / _LEAST), median * _MOST) or 1.0  # 0: outputs that show nothing
        for option in table[name]:
            if option.form == REMOVED:
                continue
            option.change = held * option.loss / max(1 - option.loss, 1e-3)


def _weigh_removals(survey: Survey, table: Table, inputs: Inputs, dense: list[Tensor]) -> None:
    """A block taken out of the dense network is a probe whose loss is known: the rule of thumb stays."""
    order = [site.name for site in survey.convertible]
    for block in track(survey.blocks.values(), "weighing blocks"):
        network = own_structure(survey.model)
        remove(network, [block])
        changed = change(outputs_of(inputs.call(network)), dense)
        option = next(o for o in table[block.layers[0]] if o.form == REMOVED)
        option.change = changed / (len(order) - order.index(block.layers[-1]))


def _probed(survey: Survey) -> Inputs:
    """The examples that go through the network once for each layer."""
    least, most = _PROBE_EXAMPLES
    number = min(max(least, round(_PROBE_PASSES * survey.examples / len(survey.convertible))), most)
    alike = [batch for batch in survey.inputs if batch.kind() == survey.inputs[0].kind()]
    return join(alike)[:number]


def _with_option(survey: Survey, site: Site, option: Option, inputs: Inputs) -> Any:
    """What the dense network gives with one layer in this form."""
    conv = survey.conv(site)
    layer = from_moments(conv, FORMS[option.form or ""], option.rank, site.known, survey.importance(site), site.pad)
    replaced = replace(survey.model, conv, layer)
    try:
        return inputs.call(replaced)
    finally:
        replace(replaced, layer, conv)


def change(changed: list[Tensor], dense: list[Tensor]) -> float:
    """Mean over the outputs of their mean squared change over their variance."""
    shares = [
        float((a - b).square().mean() / (b - b.mean(0)).square().mean().clamp_min(1e-30))
        for a, b in zip(changed, dense, strict=True)
    ]
    return sum(shares) / max(1, len(shares))


def outputs_of(outputs: Any) -> list[Tensor]:
    """All tensors of numbers that a network gives."""
    return [tensor.detach().float() for tensor in tensors(outputs) if tensor.is_floating_point()]
