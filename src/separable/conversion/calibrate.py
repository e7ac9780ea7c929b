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
from separable.conversion.fitting import Fitting, can_be_refitted, empty_layer, from_moments
from separable.conversion.forms import DENSE, FORMS
from separable.conversion.kept import Kept
from separable.conversion.removal import remove, removed
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
        InputError: NaN or infinity inside (names the layer), or a network whose layers run in an order that depends on
            the data.
    """
    network = copy.deepcopy(survey.model)
    chosen = _without_blocks(survey, network, chosen)
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
    dense_walks = [Walk(_dense_walk(own_structure(survey.model), batch, halting)) for batch in survey.inputs]
    walks = [Walk(_new_walk(own_structure(network), batch, halting)) for batch in survey.inputs]
    layer: nn.Module | None = None
    try:
        for _ in track(range(len(halting)), "calibrating", len(errors) + len(halting), done=len(errors)):
            fitting = _next_fitting(survey, dense_walks, halting, chosen, network, kept)
            site = fitting.site
            layer, errors[site.name] = _fitted(fitting, walks, layer, network)
            network = replace(network, network.get_submodule(site.name), layer)
            known.keep_layer(site.name, _parts(network, site, layer), errors[site.name])
    finally:
        for walk in (*dense_walks, *walks):
            walk.close()
    return network, errors


def _without_blocks(survey: Survey, network: nn.Module, chosen: Chosen) -> Chosen:
    """Take the blocks chosen for it out, in place; what is left to fit: the other layers, and the dense ones behind."""
    gone = removed(survey.blocks, {name: form for name, (form, _) in chosen.items()})
    if not gone:
        return chosen
    remove(network, gone)
    without = {name for block in gone for name in block.layers}
    order = [site.name for site in survey.convertible]
    behind = order[order.index(gone[0].layers[0]) :]
    fitted = {name: (DENSE.name, 1) for name in behind if can_be_refitted(survey, name)} | chosen
    return {name: fitted[name] for name in order if name in fitted and name not in without}


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
    found = {}
    for second, first in survey.pairs.items():
        form, rank = chosen.get(second, ("", 0))
        if form != thin.SECOND:
            continue
        conv, site = survey.conv_of(second), survey.site(second)
        order, _ = survey.elimination(second)
        kept = torch.tensor(sorted(order[len(order) - rank :]))
        thin.thin(network, first, survey.site(first).norm, second, kept)
        thin.write_made_up(network, conv, second, site.known, kept)
        found[first] = kept
    return found


def _next_fitting(
    survey: Survey,
    walks: list[Walk],
    halting: dict[str, Site],
    chosen: Chosen,
    network: nn.Module,
    kept: dict[str, Tensor],
) -> Fitting:
    """The layer at which the dense network halts next, with what it gives there for each batch."""
    fitting: Fitting | None = None
    for walk in walks:
        halt = walk.resume()
        if halt is None or (fitting is not None and halt[0] != fitting.site.name):
            raise InputError("model", type(survey.model).__name__, "runs its layers in another order on other data")
        name, output = halt
        if fitting is None:
            form, rank = chosen[name]
            fitting = Fitting(survey, halting[name], FORMS.get(form, DENSE), rank, network, kept.get(name))
        fitting.add_target(output)
        del halt, output  # the walk alone holds it, so that it goes when the walk goes on
    assert fitting is not None, "a survey has data"
    return fitting


def _fitted(
    fitting: Fitting, walks: list[Walk], before: nn.Module | None, network: nn.Module
) -> tuple[nn.Module, float]:
    """The layer at which the new network halts next, its walks going on with the one `before`; and its error.

    A function of its own, so that what the walks hand out is gone when they go on.
    """
    requests = [walk.resume(before) for walk in walks]
    return fitting.fit([r.x for r in requests], [r.shortcut for r in requests], network)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with `new` wherever it held `old`, under every name; `new` itself if the model is that layer."""
    if model is old:
        return new
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)
    return model


def _dense_walk(model: nn.Module, batch: Inputs, halting: dict[str, Site]) -> Callable[[Walk], None]:
    """Hands out (name, what the layer gives with its norm, and after the sum that it goes into)."""

    def run(walk: Walk) -> None:
        def added(addition: watch.Addition) -> None:
            if addition.name in halting:  # a sum of such sums is followed too
                walk.pause((addition.name, addition.side + addition.other))

        readers = watch.Readers(added)
        for name, site in halting.items():
            if site.added:
                end = model.get_submodule(site.added)
                end.register_forward_hook(lambda m, a, output, name=name: readers.follow(name, output))
            else:  # at the layer itself, as the new network does, though its norm may run after other layers
                norm = model.get_submodule(site.norm) if site.norm else nn.Identity()
                conv = model.get_submodule(name)
                conv.register_forward_hook(lambda m, a, output, name=name, norm=norm: walk.pause((name, norm(output))))
        with readers:
            batch.call(model)

    return run


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
