"""Milliseconds of each option of a layer where the network will run, in its neighbourhood: with the norm and the
activation that the runtime fuses into it.

Of each form a few ranks are timed, in turns with the dense layer; between them time is linear in multiply-adds. What
the runtime takes to be called at all is taken off: a whole network pays it once.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from separable import runtimes
from separable.conversion import chain, thin
from separable.conversion.calibrate import replace
from separable.conversion.forms import FORMS
from separable.conversion.removal import REMOVED, remove, removed
from separable.conversion.survey import Site, Survey
from separable.conversion.table import Option, Table
from separable.errors import InputError
from separable.functional.measure import fastest, seconds_of
from separable.progress import track

TARGETS = ("accelerate", "onnxruntime", "openvino", "torch")
_RANKS = 3  # of a form
_ROUNDS = (4, 30)  # at least and at most, as many as take:
_SECONDS = 15e-3  # of the dense layer
_LEAST_SHARE = 0.05  # of a measured time, that is left where the call is taken off
Times = dict[tuple[str | None, int], float]  # milliseconds of a form and a rank
_HOPELESS = 4.0  # times the least loss at no more multiply-adds, from which a form is not timed


def default_target() -> str:
    """accelerate where the native library stands, else torch."""
    return "torch" if runtimes.why_not("accelerate") else "accelerate"


def check_target(target: str | None) -> str:
    if target is None:
        return default_target()
    if target not in TARGETS:
        raise InputError("target", target, f"must be one of {', '.join(TARGETS)}")
    reason = runtimes.why_not(target)
    if reason is not None:
        raise InputError("target", target, f"cannot be used here: {reason}")
    return target


def time_options(survey: Survey, table: Table, target: str, keep: Callable[[], None] = lambda: None) -> None:
    """Fill in `ms` of every option that may be chosen: of all calls of the layer, for the survey's example.

    keep: called after each layer that was timed. Layers whose times stand in the table already are not timed again.
    """
    known: dict[Any, Times] = {}
    call_s = _call_s(target)
    for site in track(survey.convertible, f"timing forms in {target}"):
        conv = survey.conv(site)
        roles = site.name in survey.pairs, site.name in survey.pairs.values()
        key = (repr(conv), tuple(site.sizes), tuple(site.shares), bool(site.norm), site.rectified, roles)
        if table[site.name][0].ms is not None:  # by a run that was stopped
            known.setdefault(key, {(o.form, o.rank): o.ms for o in table[site.name] if o.ms is not None})
            continue
        if key not in known:
            known[key] = _time_site(survey, site, table[site.name], target, call_s)
        for option in table[site.name]:
            option.ms = known[key].get((option.form, option.rank))
        keep()
    _time_removals(survey, table, target, call_s)
    keep()


def _time_site(survey: Survey, site: Site, options: list[Option], target: str, call_s: float) -> Times:
    conv, (given, _) = survey.conv(site), site.sizes[0]
    own = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    maps = max(1, round(len(survey.example) * site.shares[0]))
    x = torch.randn((maps, conv.in_channels, *given), generator=own).to(conv.weight)
    calls: dict[tuple[str | None, int], Callable[[], Any]] = {}
    for option in [options[0], *_worth_timing(options)]:
        block = neighbourhood(survey, site, option)
        try:
            read = x[:, : option.rank] if option.form == thin.SECOND else x
            calls[option.form, option.rank] = runtimes.prepare(target, block, read)
        except InputError:
            if option.form is None:
                raise
    rounds = _rounds(seconds_of(next(iter(calls.values()))))
    measured = {
        name: max(seconds - call_s, _LEAST_SHARE * seconds) * 1e3 * len(site.sizes)
        for name, seconds in fastest(calls, rounds).items()
    }
    return measured | _between(options, measured)


def _time_removals(survey: Survey, table: Table, target: str, call_s: float) -> None:
    """Without a block go its layers' milliseconds, and what it takes beyond them, counted as its first layer's."""
    known: dict[Any, float] = {}
    for block in track(survey.blocks.values(), f"timing blocks in {target}"):
        module = survey.model.get_submodule(block.name)
        key = (repr(module), block.shape)
        options = [next(o for o in table[name] if o.form == REMOVED) for name in block.layers]
        if options[0].ms is not None:
            continue
        if key not in known:
            own = torch.Generator().manual_seed(0)
            x = torch.randn(block.shape, generator=own).to(next(module.parameters()))
            run = runtimes.prepare(target, module, x)
            rounds = _rounds(seconds_of(run))
            known[key] = max(fastest({"block": run, "again": run}, rounds)["block"] - call_s, 0.0) * 1e3
        layers_ms = sum(table[name][0].ms or 0.0 for name in block.layers)
        for i, option in enumerate(options):
            option.ms = 0.0 if i else min(0.0, layers_ms - known[key])


def _rounds(seconds: float) -> int:
    """Of a measurement that takes so long."""
    least, most = _ROUNDS
    return min(max(least, int(_SECONDS / seconds)), most)


def _call_s(target: str) -> float:
    """What the target takes for a network that computes next to nothing."""
    run = runtimes.prepare(target, nn.ReLU().eval(), torch.zeros(1, 1, 1))
    return fastest({"call": run, "again": run}, _ROUNDS[1])["call"]


def neighbourhood(survey: Survey, site: Site, option: Option) -> nn.Module:
    """The layer in this form with what a runtime takes into it."""
    parts: list[nn.Module] = [layer(survey, site, option)]
    if site.norm:
        norm = survey.model.get_submodule(site.norm)
        parts.append(thin.narrow_norm(norm, torch.arange(option.rank)) if option.form == thin.FIRST else norm)
    if site.rectified:
        parts.append(nn.ReLU())
    return nn.Sequential(*parts).eval()


def network(survey: Survey, plan: Mapping[str, Option]) -> nn.Module:
    """All layers in the forms of a plan, as `layer` makes them."""
    made = copy.deepcopy(survey.model)
    remove(made, removed(survey.blocks, {name: option.form for name, option in plan.items()}))
    for site in survey.convertible:
        option = plan[site.name]
        if option.form in FORMS:
            made = replace(made, made.get_submodule(site.name), layer(survey, site, option))
    for second, first in survey.pairs.items():
        if plan[second].form == thin.SECOND:
            thin.thin(made, first, survey.site(first).norm, second, torch.arange(plan[second].rank))
    return made


def layer(survey: Survey, site: Site, option: Option) -> nn.Module:
    """The layer in this form on random weights, or as it is."""
    conv = survey.conv(site)
    if option.form is None:
        return conv
    if option.form in thin.THIN:
        side = "outputs" if option.form == thin.FIRST else "inputs"
        return thin.narrow(conv, **{side: torch.arange(option.rank)})
    bias = conv.weight.new_zeros(conv.out_channels) if site.takes_bias(conv) else None
    chained = chain.assemble(conv, FORMS[option.form], option.rank, None, bias, site.pad)
    own = torch.Generator().manual_seed(0)
    for weight in chained.parameters():
        fan = max(1, weight[0].numel())
        weight.data.copy_(torch.randn(weight.shape, generator=own) / fan**0.5)
    return chained


def _worth_timing(options: list[Option]) -> list[Option]:
    """A few ranks of each form that is not far behind another of as many multiply-adds."""
    found = [option for option in options if option.form in thin.THIN]
    alone = [option for option in options if option.form in FORMS]
    for form in FORMS:
        mine = [
            option
            for option in alone
            if option.form == form
            and option.loss <= _HOPELESS * min(o.loss for o in alone if o.macs <= option.macs) + 1e-6
        ]
        if mine:
            found += [mine[i] for i in sorted({round(k * (len(mine) - 1) / (_RANKS - 1)) for k in range(_RANKS)})]
    return found


def _between(options: list[Option], measured: Times) -> Times:
    """Of ranks between two that were timed."""
    found: Times = {}
    for form in FORMS:
        timed = [o for o in options if o.form == form and (form, o.rank) in measured]
        for low, high in itertools.pairwise(timed):
            for option in options:
                if option.form == form and low.macs < option.macs < high.macs:
                    share = (option.macs - low.macs) / (high.macs - low.macs)
                    ends = measured[form, low.rank], measured[form, high.rank]
                    found[form, option.rank] = ends[0] + share * (ends[1] - ends[0])
    return found
