"""Fit each layer's new form to what the dense one gave, on real activations, layer after layer; no gradient step.

A layer reads what the network before it, already converted, really gives, and is fitted to what the dense layer gave on
the dense network's own input, so that it also repairs what earlier layers lost. What is fitted is the layer with its
norm; where that is added to a shortcut, the sum: the last convolution of a residual block absorbs the shortcut's error.
Source: He, Zhang and Sun 2017, arXiv:1707.06168, section 3.2 (reconstruction of the whole residual branch).
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from separable.conversion import thin, watch
from separable.conversion.fitting import Fitting, behind, empty_layer, from_moments
from separable.conversion.forms import DENSE, FORMS
from separable.conversion.kept import Kept
from separable.conversion.removal import REMOVED, remove, removed
from separable.conversion.streams import Walk, own_structure
from separable.conversion.survey import Site, Survey
from separable.errors import InputError
from separable.inputs import Inputs
from separable.progress import track

Chosen = dict[str, tuple[str, int]]  # by a layer's name its form and its rank


class Request(NamedTuple):
    """What a walk of the new network hands out at a layer: its input, and what its output will be added to."""

    name: str
    x: Tensor
    shortcut: Tensor | None


@torch.inference_mode(False)
@torch.no_grad()
def calibrate(survey: Survey, chosen: Chosen, known: Kept | None = None) -> tuple[nn.Module, dict[str, float]]:
    """The network with the chosen layers in their forms, fitted, and each layer's error.

    Args:
        survey: of the dense network; its data is what the layers are fitted on.
        chosen: for the names of layers a form's name and a rank.
        known: of this choice, where each layer is kept as soon as it is fitted, and taken from if it is there.

    Returns:
        The network, and for each layer fitted the mean squared error of what it gives (after its norm, shortcut and
        ReLU) over the variance of what the dense network gives there.

    Raises:
        InputError: a form that there is none of, NaN or infinity inside (names the layer), or a network whose layers
            run in an order that depends on the data.
    """
    for name, (form, _) in chosen.items():
        if form not in (*FORMS, *thin.THIN, DENSE.name, REMOVED):
            raise InputError("chosen", f"{name}: {form}", f"must be one of {', '.join((*FORMS, REMOVED))}")
    network = copy.deepcopy(survey.model)
    chosen = _with_what_is_behind(survey, network, chosen)
    sites = {site.name: site for site in survey.convertible if site.name in chosen}
    for name, site in sites.items():
        if len(site.sizes) > 1:  # run several times: fitted to the dense network's inputs of all its calls
            form, rank = chosen[name]
            conv = network.get_submodule(name)
            network = replace(network, conv, from_moments(conv, FORMS[form], rank, site.known))
    kept = _make_thin(survey, network, chosen)
    halting = {name: site for name, site in sites.items() if len(site.sizes) == 1}
    known = known or Kept(None)
    network, errors = _with_known(network, halting, chosen, known)
    fittings = _fittings(survey, network, halting, chosen, kept)
    walks = [Walk(_new_walk(own_structure(network), batch, halting)) for batch in survey.inputs]
    layer: nn.Module | None = None
    try:
        for _ in track(range(len(fittings)), "calibrating", len(errors) + len(fittings), done=len(errors)):
            fitting = fittings.pop(0)  # with all its targets it goes before the next one is fitted
            site = fitting.site
            layer, errors[site.name] = _fitted(survey, fitting, walks, layer)
            network = replace(network, network.get_submodule(site.name), layer)
            known.keep_layer(site.name, _parts(network, site, layer), errors[site.name])
    finally:
        for walk in walks:
            walk.close()
    return network, errors


def _with_what_is_behind(survey: Survey, network: nn.Module, chosen: Chosen) -> Chosen:
    """Remove the chosen blocks, in place. Returns what is left to fit: the other layers, and the dense ones behind."""
    gone = removed(survey.blocks, {name: form for name, (form, _) in chosen.items()})
    remove(network, gone)
    without = {name for block in gone for name in block.layers}
    first = next((site.name for site in survey.convertible if site.name in chosen), "")
    fitted = dict.fromkeys(behind(survey, first), (DENSE.name, 1)) if first else {}
    return {name: form for name, form in (fitted | chosen).items() if name not in without}


def _with_known(
    network: nn.Module, halting: dict[str, Site], chosen: Chosen, known: Kept
) -> tuple[nn.Module, dict[str, float]]:
    """The network with the layers that were fitted before, which are `halting` no longer, and their errors.

    Layers fitted after them read what they would have read had all been fitted at once.
    """
    errors = {}
    for name, site in list(halting.items()):
        form, rank = chosen[name]
        conv = network.get_submodule(name)
        layer = empty_layer(conv, site, FORMS.get(form, DENSE), rank)
        error = known.layer(name, _parts(network, site, layer))
        if error is not None:
            network, errors[name] = replace(network, conv, layer), error
            del halting[name]
    return network, errors


def _parts(network: nn.Module, site: Site, layer: nn.Module) -> dict[str, nn.Module]:
    """All that the fit of a layer changes."""
    return {"layer": layer} | ({"norm": network.get_submodule(site.norm)} if site.norm else {})


def _make_thin(survey: Survey, network: nn.Module, chosen: Chosen) -> dict[str, Tensor]:
    """Take channels from between the layers chosen for it, in place; by the first one's name those that it keeps."""
    return {
        first: make_thin(survey, network, second, chosen[second][1])
        for second, first in survey.pairs.items()
        if second in chosen and chosen[second][0] == thin.SECOND
    }


def make_thin(survey: Survey, network: nn.Module, second: str, rank: int) -> Tensor:
    """Take channels from between two layers, in place; the second makes up for them. Returns those that stay."""
    first, site, conv = survey.pairs[second], survey.site(second), survey.conv_of(second)
    order, _ = survey.elimination(second)
    kept = torch.tensor(sorted(order[len(order) - rank :]))
    thin.thin(network, first, survey.site(first).norm, second, kept)
    thin.write_made_up(network, conv, second, site.known, kept)
    return kept


def _fittings(
    survey: Survey, network: nn.Module, halting: dict[str, Site], chosen: Chosen, kept: dict[str, Tensor]
) -> list[Fitting]:
    """Of the layers in the order in which they run, each with a sample of what the dense network gives there."""
    found: dict[str, Fitting] = {}
    for batch in track(survey.inputs, "running the dense network"):
        order: list[str] = []

        def give(name: str, output: Tensor, order: list[str] = order) -> None:
            if name not in found:
                form, rank = chosen[name]
                found[name] = Fitting(survey, halting[name], FORMS.get(form, DENSE), rank, network, kept.get(name))
            found[name].add_target(output)
            order.append(name)

        _run_dense(own_structure(survey.model), batch, halting, give)
        if order != list(found):
            raise _other_order(survey)
    return list(found.values())


def _fitted(survey: Survey, fitting: Fitting, walks: list[Walk], before: nn.Module | None) -> tuple[nn.Module, float]:
    """The layer at which the new network halts next, its walks going on with the one `before`; and its error.

    A function of its own, so that what the walks hand out is gone when they go on.
    """
    requests = [walk.resume(before) for walk in walks]
    if any(request is None or request.name != fitting.site.name for request in requests):
        raise _other_order(survey)
    return fitting.fit([r.x for r in requests], [r.shortcut for r in requests])


def _other_order(survey: Survey) -> InputError:
    return InputError("model", type(survey.model).__name__, "runs its layers in another order on other data")


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with `new` wherever it held `old`, under every name; `new` itself if the model is that layer."""
    if model is old:
        return new
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)
    return model


def _run_dense(model: nn.Module, batch: Inputs, halting: dict[str, Site], give: Callable[[str, Tensor], None]) -> None:
    """Give of each layer its name and what it makes with its norm, after the sum that it goes into."""

    def added(addition: watch.Addition) -> None:
        if addition.name in halting:  # a sum of such sums is followed too
            give(addition.name, addition.side + addition.other)

    readers = watch.Readers(added)
    for name, site in halting.items():
        if site.added:
            end = model.get_submodule(site.added)
            end.register_forward_hook(lambda m, a, output, name=name: readers.follow(name, output))
        else:  # at the layer itself, as the new network does, though its norm may run after other layers
            norm = model.get_submodule(site.norm) if site.norm else nn.Identity()
            conv = model.get_submodule(name)
            conv.register_forward_hook(lambda m, a, output, name=name, norm=norm: give(name, norm(output)))
    with readers:
        batch.call(model)


class _Pending(nn.Module):
    """In the place of a layer that is not fitted yet: it waits for the layer where its output is needed.

    Of a layer whose output is added to a shortcut that is at the sum; until then zeros stand for the output.
    """

    def __init__(self, conv: nn.Module, site: Site, walk: Walk):
        super().__init__()
        self.site, self.walk = site, walk
        self.x: Tensor | None = None
        self._meta = copy.deepcopy(conv).to("meta")

    def forward(self, input: Tensor) -> Tensor:  # named as a convolution's is
        if self.site.added:
            self.x = input.clone()  # the network may write into its own before the sum
            return input.new_zeros(self._meta(input.to("meta")).shape)
        return self.walk.pause(Request(self.site.name, input, None))(input)


def _new_walk(model: nn.Module, batch: Inputs, halting: dict[str, Site]) -> Callable[[Walk], None]:
    """Hands out a `Request` for each layer and goes on with the layer that is the answer."""

    def run(walk: Walk) -> None:
        network = model
        pending: dict[str, _Pending] = {}

        def added(addition: watch.Addition) -> None:
            if addition.name not in pending:
                return
            waiting = pending[addition.name]
            assert waiting.x is not None, "the layer ran before its sum"
            layer = walk.pause(Request(addition.name, waiting.x, addition.other))
            output, norm = layer(waiting.x), halting[addition.name].norm
            waiting.x = None
            addition.side.copy_(network.get_submodule(norm)(output) if norm else output)

        readers = watch.Readers(added)
        for name, site in halting.items():
            pending[name] = _Pending(network.get_submodule(name), site, walk)
            network = replace(network, network.get_submodule(name), pending[name])
            if site.added:
                end = network.get_submodule(site.added)
                end.register_forward_hook(lambda m, a, output, name=name: readers.follow(name, output))
        with readers:
            batch.call(network)

    return run
