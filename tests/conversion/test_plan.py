"""The plan is the best of all combinations, within every budget at once, and takes nothing slower than dense."""

import itertools
import math
import random

import pytest

from separable.conversion.plan import SLACK, choose, read_budget
from separable.conversion.table import Option
from separable.errors import InputError


def table(seed, layers=4, timed=False):
    draw = random.Random(seed)
    found = {}
    for i in range(layers):
        size = draw.choice([10, 100, 1000])
        dense = Option(None, 0, 100 * size, 50 * size, ms=1.0 * size if timed else None)
        found[f"layer{i}"] = [dense]
        for rank in range(1, draw.randint(3, 5)):
            share = draw.uniform(0.05, 0.95)
            option = Option("form", rank, int(share * dense.macs), int(draw.uniform(0.05, 0.95) * dense.params))
            option.loss = option.change = (1 - share) ** 2 * draw.uniform(0.5, 2)
            option.ms = draw.uniform(0.1, 1.3) * size if timed else None
            found[f"layer{i}"].append(option)
    return found


def total(plan, measure):
    return sum(getattr(option, measure) or 0.0 for option in plan.values())


def everything(many):
    return [dict(zip(many, plan, strict=True)) for plan in itertools.product(*many.values())]


def brute(many, limits):
    kept = [plan for plan in everything(many) if all(total(plan, m) <= limit for m, limit in limits.items())]
    return min(kept, key=lambda plan: total(plan, "change"), default=None)


@pytest.mark.parametrize("seed", range(25))
def test_the_plan_is_the_best_of_all_combinations_under_one_budget_or_several(seed):
    many = table(seed)
    whole = {measure: sum(getattr(options[0], measure) for options in many.values()) for measure in ("macs", "params")}
    for shares in ({"macs": 0.9}, {"macs": 0.5}, {"macs": 0.3, "params": 0.6}, {"macs": 0.6, "params": 0.3}, {}):
        limits = {measure: share * whole[measure] for measure, share in shares.items()}
        wanted, found = brute(many, limits), choose(many, limits)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert list(found) == list(many)
            assert all(total(found, measure) <= limit for measure, limit in limits.items())
            assert total(found, "change") <= total(wanted, "change") * 1.001 + 1e-9


@pytest.mark.parametrize("seed", range(25))
def test_with_times_the_fastest_of_those_that_change_little_more_is_taken(seed):
    many = table(seed, timed=True)
    whole = sum(options[0].ms for options in many.values())
    useful = {name: [o for o in options if o.form is None or o.ms < options[0].ms] for name, options in many.items()}
    for share in (0.9, 0.6, 0.4):
        limits = {"ms": share * whole}
        least, found = brute(useful, limits), choose(many, limits)
        assert (found is None) == (least is None)
        if found is None:
            continue
        assert all(o.form is None or o.ms < many[name][0].ms for name, o in found.items()), "slower than dense"
        assert total(found, "ms") <= limits["ms"] * (1 + 1e-9)
        bound = SLACK * total(least, "change")
        assert total(found, "change") <= bound * 1.002 + 1e-9
        near = [p for p in everything(useful) if total(p, "change") <= bound and total(p, "ms") <= limits["ms"]]
        assert total(found, "ms") <= min(total(p, "ms") for p in near) * 1.002


def test_nothing_changes_where_nothing_is_faster():
    many = table(0, timed=True)
    for options in many.values():
        for option in options[1:]:
            option.ms = options[0].ms * 1.01
    assert all(option.form is None for option in choose(many, {}).values())
    assert choose(many, {"ms": 0.99 * sum(options[0].ms for options in many.values())}) is None


def test_an_option_that_was_not_timed_where_others_were_is_left_out():
    many = {
        "a": [
            Option(None, 0, 100, 100, ms=1.0),
            Option("f", 1, 10, 10, 0.1, 0.1),
            Option("f", 2, 50, 50, 0.2, 0.2, 0.5),
        ]
    }
    assert choose(many, {"macs": 60})["a"].rank == 2
    assert choose(many, {"macs": 20}) is None


def test_many_layers_are_planned_exactly_enough():
    many = table(3, layers=60)
    limit = 0.5 * sum(options[0].macs for options in many.values())
    found = choose(many, {"macs": limit})
    assert total(found, "macs") <= limit
    # The Lagrangian bound holds for every multiplier: no plan changes less.
    bound = max(
        sum(min(o.change + price * o.macs for o in options) for options in many.values()) - price * limit
        for price in (10 ** (k / 20) for k in range(-160, 0))
    )
    assert total(found, "change") <= 1.02 * bound


BAD = {
    "unknown": ({"flops": 0.5}, "must hold one or several of"),
    "empty": ({}, "must hold one or several of"),
    "no dict": (0.5, "must hold one or several of"),
    "negative": ({"macs": -1}, "positive"),
    "zero": ({"params": 0}, "positive"),
    "nan": ({"macs": math.nan}, "must be a number"),
    "text": ({"macs": "half"}, "must be a number"),
    "true": ({"macs": True}, "must be a number"),
    "latency above one": ({"latency": 3}, "at most 1"),
    "accuracy gained": ({"accuracy": 0.5}, "may be lost in points"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_budget_is_one_sentence(case):
    budget, rule = BAD[case]
    with pytest.raises(InputError, match=rule) as caught:
        read_budget(budget)
    assert "\n" not in str(caught.value)


def test_several_budgets_are_read_at_once():
    assert read_budget({"macs": 0.5, "params": 1000, "latency": 1}) == {"macs": 0.5, "params": 1000.0, "latency": 1.0}
