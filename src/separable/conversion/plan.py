"""Choose for each layer an order and a rank, or to leave it dense, under one budget for the whole network.

Each layer's possible forms are fitted on the dense network's own activations (forms.py), which gives what each costs
and how far it moves the network's outputs. The choice minimises the sum of these errors: a knapsack with one form a
layer, solved by dynamic programming over the budget in small steps, costs rounded up so that it is never exceeded.
"""

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from separable.conversion import forms, latency
from separable.conversion.forms import DENSE, Form
from separable.conversion.survey import Site, Survey
from separable.errors import InputError
from separable.progress import track

MEASURES = ("macs", "params", "latency")
_STEPS = 20_000  # the budget's resolution; 50 layers round up by at most 0.25 %
_LATENCY_ATTEMPTS = 4


@dataclass
class Choice:
    """What becomes of one layer. error: share of its output's variance that the fit loses on calibration data."""

    name: str
    order: str | None  # None: left dense
    rank: int | None
    error: float
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    ms_before: float | None = None
    ms_after: float | None = None
    note: str = ""  # why a layer stayed dense

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(survey: Survey, budget: dict[str, float]) -> list[Choice]:
    """One choice for each convolution that `survey` found, in its order.

    Args:
        survey: as `survey` gives it.
        budget: one of {"macs": b}, {"params": b}, {"latency": b}. Up to 1, b is a share of the dense network's; above
            1, a count of multiply-adds for one example, or of parameters. Latency is a share of the measured latency.

    Raises:
        InputError: a budget that is not of this form, that is more than the dense network has, or that cannot be met
            (says the best that can). Of MACs and parameters this is known, and told, before anything is fitted.
    """
    measure, amount = read_budget(budget)
    room = math.inf if measure == "latency" else _room(survey, budget)
    sites = track(survey.convertible, "fitting forms")
    options = {site.name: forms.forms(survey, site, measure == "latency") for site in sites}
    forms.weigh(survey, options)
    if measure == "latency":
        chosen = _plan_latency(survey, options, amount)
    else:
        found = _choose(options, measure, room)
        assert found is not None, "the cheapest forms are within the room"
        chosen = found
    return [_choice(site, chosen.get(site.name)) for site in survey.sites]


def read_budget(budget: Any) -> tuple[str, float]:
    """The measure and the amount of a budget of one entry."""
    if not isinstance(budget, dict) or len(budget) != 1 or next(iter(budget)) not in MEASURES:
        raise InputError("budget", str(budget), 'must be one of {"macs": b}, {"params": b} or {"latency": b}')
    measure, amount = next(iter(budget.items()))
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount) or amount <= 0:
        raise InputError("budget", str(budget), "must be a positive number: a share up to 1, or a count")
    if measure == "latency" and amount > 1:
        raise InputError("budget", str(budget), "latency is a share of the dense network's: more than 0, at most 1")
    return measure, float(amount)


def _room(survey: Survey, budget: dict[str, float]) -> int:
    """What a budget of MACs or parameters leaves to the convolutions that can change, checked from shapes alone."""
    measure, amount = read_budget(budget)
    whole = getattr(survey, measure)
    if amount > whole:
        rule = f"is more than the dense network's {whole:,}; there is nothing to convert"
        raise InputError("budget", str(budget), rule)
    limit = math.floor(amount * whole) if amount <= 1 else math.floor(amount)
    spent = whole - sum(getattr(site, measure) for site in survey.convertible)
    least = spent + sum(min(getattr(f, measure) for f in forms.cheaper(survey, s)) for s in survey.convertible)
    if least > limit:
        best = f"{least / whole:.4f} of the dense network's {whole:,}" if amount <= 1 else f"{least:,} of {whole:,}"
        raise InputError("budget", str(budget), f"cannot be met; the least {measure} this network can have is {best}")
    return limit - spent


def build(survey: Survey, model: nn.Module, choices: list[Choice]) -> nn.Module:
    """`model`, a copy of the surveyed network, with the chosen separable layers in closed form in their places."""
    for choice in choices:
        if choice.order is not None and choice.rank is not None:
            conv = model.get_submodule(choice.name)
            site = next(site for site in survey.sites if site.name == choice.name)
            model = forms.replace(model, conv, forms.start(conv, choice.order, choice.rank, site.moments))
    return model


def _choose(options: dict[str, list[Form]], measure: str, limit: float) -> dict[str, Form] | None:
    """The forms of least total error whose costs sum to at most `limit`; None where even the cheapest do not."""
    cheapest = [min(getattr(form, measure) for form in many) for many in options.values()]
    if sum(cheapest) > limit:
        return None
    # costs above the cheapest form, in steps rounded up
    room = limit - sum(cheapest)
    dearest = sum(max(getattr(f, measure) for f in many) for many in options.values()) - sum(cheapest)
    step = max(min(room, dearest) / _STEPS, 1e-12)
    steps = min(_STEPS, math.floor(room / step + 1e-9))
    best = torch.zeros(steps + 1, dtype=torch.float64)  # least error with at most i steps spent
    picks = []
    for many, base in zip(options.values(), cheapest, strict=True):
        rows = torch.full((len(many), steps + 1), torch.inf, dtype=torch.float64)
        for i, form in enumerate(many):
            cost = math.ceil((getattr(form, measure) - base) / step - 1e-9)
            if cost <= steps:
                rows[i, cost:] = best[: steps + 1 - cost] + form.error
        best, pick = rows.min(0)
        picks.append(pick)
    chosen, left = {}, steps
    for (name, many), base, pick in reversed(list(zip(options.items(), cheapest, picks, strict=True))):
        chosen[name] = many[int(pick[left])]
        left -= math.ceil((getattr(chosen[name], measure) - base) / step - 1e-9)
    _spend_rest(options, measure, limit, chosen)
    return chosen


def _spend_rest(options: dict[str, list[Form]], measure: str, limit: float, chosen: dict[str, Form]) -> None:
    """What rounding up left of the budget goes to the better forms it still pays for, the largest gain first."""
    while True:
        rest = limit * (1 + 1e-12) - sum(getattr(form, measure) for form in chosen.values())
        better = [
            (chosen[name].error - form.error, name, form)
            for name, many in options.items()
            for form in many
            if form.error < chosen[name].error and getattr(form, measure) - getattr(chosen[name], measure) <= rest
        ]
        if not better:
            return
        _, name, form = max(better, key=lambda one: one[0])
        chosen[name] = form


def _plan_latency(survey: Survey, options: dict[str, list[Form]], share: float) -> dict[str, Form]:
    """Plan by the layers' own times, then measure the whole network, and plan tighter while it is too slow."""
    ratios = []
    whole = latency.network_ms(survey.model, survey.example)
    fixed = whole - sum(many[0].latency for many in options.values())
    target = share
    for _ in range(_LATENCY_ATTEMPTS):
        found = _choose(options, "latency", target * whole - fixed)
        chosen = found or {name: min(many, key=lambda form: form.latency) for name, many in options.items()}
        choices = [_choice(site, chosen.get(site.name)) for site in survey.sites]
        changed = any(choice.order for choice in choices)
        network = build(survey, copy.deepcopy(survey.model), choices)
        ratios.append(latency.ratio(network, survey.model, survey.example) if changed else 1.0)
        if ratios[-1] <= share:
            return chosen
        if found is None:
            break
        target *= share / ratios[-1]
    raise InputError(
        "budget",
        str({"latency": share}),
        f"cannot be met here; the fastest network found takes {min(ratios):.2f} of the dense network's "
        f"{whole:.2f} ms for an input of shape {list(survey.example.shape)}, measured on this machine as it was; "
        "where it was busy, try again when it is quiet, or give a budget of macs",
    )


def _choice(site: Site, form: Form | None) -> Choice:
    if form is None or form.order == DENSE:
        note = site.kept or "dense is worth its cost here"
        ms = None if form is None else form.ms
        return Choice(site.name, None, None, 0.0, site.macs, site.macs, site.params, site.params, ms, ms, note)
    costs = (site.macs, form.macs, site.params, form.params)
    return Choice(site.name, form.order, form.rank, form.local_error, *costs, form.dense_ms, form.ms)
