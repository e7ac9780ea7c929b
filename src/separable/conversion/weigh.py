"""What a layer's loss does to the network: measured by probes, not assumed.

One form of each layer is put into the dense network, and the change of the network's outputs for each unit of loss is
the layer's sensitivity. Forms differ as well: what takes whole channels away changes the network more than noise of the
same energy. By how much is measured at a few layers, and taken to be the same at all.
"""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from separable.conversion import thin
from separable.conversion.calibrate import make_thin, replace
from separable.conversion.fitting import behind, from_moments
from separable.conversion.forms import FORMS
from separable.conversion.removal import REMOVED, remove
from separable.conversion.streams import own_structure
from separable.conversion.survey import Site, Survey
from separable.conversion.table import Option, Table, every_option, removal_of
from separable.inputs import Inputs, join, tensors
from separable.progress import track

_PROBE_LOSS = 0.1
_LAYER_PASSES, _FORM_PASSES = 1.5, 0.75  # of the data through the network, for all probes of layers, and of forms
_PROBE_EXAMPLES = (2, 64)  # of one probe, at least and at most
_REFERENCE = "polyadic"  # the form that layers are probed with, where they can have it
_FORMS_AT = 2  # layers, at which forms are compared
_MOST_FACTOR = 4.0
_LEAST, _MOST = 3.0, 10.0  # shares and times of the median that a sensitivity is held within: one probe tells no more


def tabulate(survey: Survey) -> Table:
    """Every option of every layer, with its loss and the change that it is predicted to make."""
    table = every_option(survey, fit=True)
    weigh(survey, table)
    return table


@torch.no_grad()
def weigh(survey: Survey, table: Table) -> None:
    """Turn losses into changes of the network.

    A probe shows what a loss does that nothing repairs. Each later layer is fitted to what really reaches it, and takes
    back a part; the change that remains is taken to be the probe's over the number of layers from there to the end, a
    rule of thumb. What the first layer loses of the input, no later layer can find elsewhere. A loss counts against
    what is left of the output, as noise against a signal: half of an output lost in one layer is worse than a tenth
    lost in each of five.
    """
    probes = _Probes(survey, _LAYER_PASSES / len(survey.convertible))
    sensitivities = {}
    for i, site in enumerate(track(survey.convertible, "weighing layers")):
        options = table[site.name]
        found = probes.of(site, options, _REFERENCE) or probes.of(site, options, *FORMS, thin.SECOND)
        if found is not None:
            later = 0 if i == 0 else len(survey.convertible) - 1 - i
            sensitivities[site.name] = found / (1 + later)
    _weigh_removals(survey, table, probes)
    if not sensitivities:
        return
    factors = _factors(survey, table)
    median = statistics.median(sensitivities.values())
    for name, sensitivity in sensitivities.items():
        held = min(max(sensitivity, median / _LEAST), median * _MOST) or 1.0  # 0: outputs that show nothing
        for option in table[name]:
            if option.form != REMOVED:
                option.change = held * factors.get(option.form, 1.0) * _odds(option)


def _factors(survey: Survey, table: Table) -> dict[str | None, float]:
    """How much more a form changes the network than the reference does for the same loss: the mean of logarithms.

    Never less: where an unrepaired probe shows less, nothing of it is left once the layers behind are fitted.
    """
    found: dict[str | None, float] = {}
    probes = _Probes(survey, _FORM_PASSES / (_FORMS_AT * (len(FORMS) + 1)))
    for form in track([*FORMS, thin.SECOND], "weighing forms"):
        sites = [site for site in survey.convertible if any(o.form == form and o.loss > 1e-9 for o in table[site.name])]
        shares = []
        for site in sites[:: max(1, math.ceil(len(sites) / _FORMS_AT))]:
            one, reference = (probes.of(site, table[site.name], name) for name in (form, _REFERENCE))
            if one and reference:
                shares.append(math.log(one / reference))
        if shares and form != _REFERENCE:
            found[form] = min(max(1.0, math.exp(statistics.mean(shares))), _MOST_FACTOR)
    return found


def _weigh_removals(survey: Survey, table: Table, probes: "_Probes") -> None:
    """A block taken out of the dense network is a probe whose loss is known: the rule of thumb stays."""
    for block in track(survey.blocks.values(), "weighing blocks"):
        network = own_structure(survey.model)
        remove(network, [block])
        option = removal_of(table, block.layers[0])
        later = len(behind(survey, block.layers[-1]))
        option.change = probes.change(outputs_of(probes.inputs.call(network))) / (1 + later)


class _Probes:
    """The dense network with one layer in another form, on a few examples; each is run once."""

    def __init__(self, survey: Survey, share: float):
        """share: of the examples, that each probe sees."""
        self.survey = survey
        least, most = _PROBE_EXAMPLES
        number = min(max(least, round(share * survey.examples)), most)
        alike = [batch for batch in survey.inputs if batch.kind() == survey.inputs[0].kind()]
        self.inputs: Inputs = join(alike)[:number]
        self.dense = outputs_of(self.inputs.call(survey.model))
        self.known: dict[tuple[str, str | None, int], float] = {}

    def change(self, changed: list[Tensor]) -> float:
        return change(changed, self.dense)

    def of(self, site: Site, options: list[Option], *forms: str) -> float | None:
        """The change for a unit of loss, by the option of these forms whose loss is nearest to what probes are for."""
        lossy = [option for option in options if option.form in forms and option.loss > 1e-9]
        if not lossy:
            return None
        option = min(lossy, key=lambda option: abs(math.log(option.loss / _PROBE_LOSS)))
        key = (site.name, option.form, option.rank)
        if key not in self.known:
            given = self._narrow(site, option) if option.form == thin.SECOND else self._replaced(site, option)
            self.known[key] = self.change(outputs_of(given)) / _odds(option)
        return self.known[key]

    def _replaced(self, site: Site, option: Option) -> Any:
        survey, conv = self.survey, self.survey.conv(site)
        layer = from_moments(conv, FORMS[option.form or ""], option.rank, site.known, survey.importance(site), site.pad)
        network = own_structure(survey.model)
        return self.inputs.call(replace(network, network.get_submodule(site.name), layer))

    def _narrow(self, site: Site, option: Option) -> Any:
        network = own_structure(self.survey.model)
        make_thin(self.survey, network, site.name, option.rank)
        return self.inputs.call(network)


def _odds(option: Option) -> float:
    return option.loss / max(1 - option.loss, 1e-3)


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
