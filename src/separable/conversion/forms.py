"""The forms a layer could take, what each costs, and how far each moves the outputs of the network.

A form is fitted on the moments of the dense network's own activations. Its local error is the share of the layer's
output variance that the fit loses; what that does to the network is measured, not assumed: one form of each layer is
put into the network, and the change of the network's outputs for each unit of local error is the layer's sensitivity.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion import latency as timing
from separable.conversion.calibrate import install_constant, output_importance, relative_error
from separable.conversion.factorize import assemble, full_rank, halves
from separable.conversion.least_squares import compose, fit
from separable.conversion.moments import Moments
from separable.conversion.survey import Site, Survey
from separable.functional.separable_conv import ORDERS
from separable.inputs import own_copy
from separable.progress import track

DENSE = "dense"
PROBE_BATCHES = 2
_SMALL_GRAM_SIDE = 1024  # C*K up to which the depthwise half is fitted too, not only the pointwise


@dataclass
class Form:
    """One way to compute a layer. error: predicted change of the network's outputs. ms: where measured."""

    order: str  # DENSE for the layer as it is
    rank: int
    macs: int
    params: int
    local_error: float = 0.0
    error: float = 0.0
    ms: float | None = None
    dense_ms: float | None = None
    dw: Tensor = field(default_factory=lambda: torch.empty(0))
    pw: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def latency(self) -> float:
        assert self.ms is not None
        return self.ms


def cheaper(survey: Survey, site: Site) -> list[Form]:
    """The dense layer, then every separable form that costs less than it, not fitted: shapes alone decide."""
    conv: Any = survey.model.get_submodule(site.name)
    found = [Form(DENSE, 1, site.macs, site.params)]
    for order in ORDERS:
        for rank in ranks(full_rank(conv, order)):
            macs, params = costs(site, conv, order, rank)
            if macs < site.macs and params < site.params:
                found.append(Form(order, rank, macs, params))
    return found


def forms(survey: Survey, site: Site, measure_latency: bool) -> list[Form]:
    """The dense layer, then every separable form that costs less than it, fitted."""
    conv: Any = survey.model.get_submodule(site.name)
    found = cheaper(survey, site)
    importance = output_importance(survey.model, site)
    for form in found[1:]:
        form.dw, form.pw = _fitted(conv, form, site.known, importance)
        form.local_error = relative_error(site.known, compose(form.order, form.dw, form.pw), importance)
    if measure_latency:
        _time(conv, site, found, len(survey.example))
        found = found[:1] + [form for form in found[1:] if form.latency < found[0].latency]
    return found


def ranks(full: int) -> list[int]:
    """Ranks worth fitting: all up to 8, then a fifth more each time."""
    found = list(range(1, min(full, 8) + 1))
    while found[-1] < full:
        found.append(min(full, math.ceil(found[-1] * 1.2)))
    return found


def costs(site: Site, conv, order: str, rank: int) -> tuple[int, int]:
    """MACs for one example and parameters of a form; pointwise first mixes before the stride makes the map smaller."""
    taps = math.prod(conv.kernel_size)
    first = order == "depthwise_first"
    filters = (conv.in_channels if first else conv.out_channels) * rank * taps
    mixing = conv.in_channels * conv.out_channels * rank
    macs = site.places * filters + (site.places if first else site.input_places) * mixing
    return macs, filters + mixing + (conv.out_channels if conv.bias is not None else 0)


def start(conv, order: str, rank: int, moments: Moments | None):
    """The separable layer in closed form, from which calibration starts."""
    return assemble(conv, order, *halves(conv.weight, order, rank, moments))


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with `new` wherever it held `old`, under every name; `new` itself if the model is that layer."""
    if model is old:
        return new
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)
    return model


@torch.no_grad()
def weigh(survey: Survey, options: dict[str, list[Form]]) -> None:
    """Turn local errors into errors of the network, by one probe of a form of middling error for each layer."""
    inputs = torch.cat(
        [batch for batch in survey.inputs[:PROBE_BATCHES] if batch.shape[1:] == survey.inputs[0].shape[1:]]
    )
    dense = _outputs(survey.model(own_copy(inputs)))
    variance = (dense - dense.mean(0)).square().mean().clamp_min(1e-30)
    for name, found in track(options.items(), "weighing layers", len(options)):
        lossy = sorted((form for form in found if form.local_error > 1e-9), key=lambda form: form.local_error)
        if lossy:
            probe = lossy[len(lossy) // 2]
            site = next(site for site in survey.sites if site.name == name)
            changed = _outputs(_with_form(survey, site, probe, inputs))
            sensitivity = float((changed - dense).square().mean() / variance) / probe.local_error
            for form in found:
                form.error = form.local_error * sensitivity


def _with_form(survey: Survey, site: Site, form: Form, inputs: Tensor):
    """What the dense network gives with one layer in this form."""
    model, conv = survey.model, survey.model.get_submodule(site.name)
    norm = copy.deepcopy(model.get_submodule(site.norm)) if site.norm else None
    layer = assemble(conv, form.order, form.dw, form.pw)
    replaced = replace(model, conv, layer)
    try:
        install_constant(replaced, model, site, site.known, compose(form.order, form.dw, form.pw))
        return replaced(own_copy(inputs))
    finally:
        replace(model, layer, conv)
        if norm is not None:
            replaced.get_submodule(site.norm or "").load_state_dict(norm.state_dict())


def _outputs(outputs) -> Tensor:
    """All that a network gives for a batch of N, as [N, values], float64."""
    if isinstance(outputs, Tensor):
        return outputs.detach().double().flatten(1) if outputs.dim() > 1 else outputs.detach().double().unsqueeze(1)
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return torch.cat([_outputs(value) for value in values if isinstance(value, (Tensor, tuple, list, dict))], 1)


def _fitted(conv, form: Form, moments: Moments, importance: Tensor) -> tuple[Tensor, Tensor]:
    small = moments.gram.shape[0] <= _SMALL_GRAM_SIDE
    dw, pw = halves(conv.weight, form.order, form.rank, moments)
    if not small and form.order == "pointwise_first":
        return dw, pw
    return fit(form.order, moments, dw, pw, importance, sweeps=2 if small else 1)


def _time(conv, site: Site, found: list[Form], examples: int) -> None:
    own = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    example = torch.randn((examples, *site.input_shape[1:]), generator=own).to(conv.weight)
    layers = [conv, *(assemble(conv, form.order, form.dw, form.pw) for form in found[1:])]
    for form, ms in zip(found, timing.medians_ms(layers, example), strict=True):
        form.ms = ms * site.calls
        form.dense_ms = found[0].ms
