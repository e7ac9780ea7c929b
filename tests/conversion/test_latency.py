"""A share of time is kept by whole networks, whatever layers' times say, and other budgets are kept with it."""

import random

import pytest

from separable.conversion.latency import LatencyPlans
from separable.conversion.table import Option


def table(seed, layers=5, forms=6):
    """Forms of less change take more time and more multiply-adds, roughly."""
    draw = random.Random(seed)
    found = {}
    for i in range(layers):
        dense = Option(None, 0, 1000, 100, ms=1.0)
        found[f"layer{i}"] = [dense]
        for rank in range(1, forms + 1):
            share = rank / (forms + 1)
            option = Option("form", rank, round(1000 * share), round(100 * share), ms=share * draw.uniform(0.7, 1.3))
            option.change = (1 - share) ** 2 * draw.uniform(0.5, 2)
            found[f"layer{i}"].append(option)
    return found


def total(plan, measure):
    return sum(getattr(option, measure) for option in plan.values())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("wanted", [0.9, 0.6, 0.4])
def test_the_plan_keeps_the_share_by_the_network_s_own_clock(seed, wanted):
    """Where layers' times are too large by half, and the network has a part that no plan changes."""
    many, asked = table(seed), []

    def share_of_time(plan):
        asked.append(plan)
        return (0.5 + total(plan, "ms") / 1.5) / (0.5 + 5 / 1.5)

    plan, least = LatencyPlans(many, 1.0).plan({}, wanted, share_of_time)
    assert share_of_time(plan) <= wanted
    assert share_of_time(plan) > 0.85 * wanted, "little is left unused"
    assert least <= wanted
    kept = [total(one, "change") for one in list(asked) if share_of_time(one) <= wanted]
    assert total(plan, "change") <= 1.2 * min(kept), "the model may doubt one that is at the limit"


def test_where_layers_times_say_nothing_multiply_adds_plan():
    draw, many = random.Random(0), table(1)
    for options in many.values():
        for option in options[1:]:
            option.ms = draw.uniform(0.1, 0.9)
    plan, _ = LatencyPlans(many, 1.0).plan({}, 0.5, lambda plan: total(plan, "macs") / 5000)
    assert 0.42 < total(plan, "macs") / 5000 <= 0.5


@pytest.mark.parametrize("wanted", [0.9, 0.5])
def test_limits_on_other_measures_are_kept(wanted):
    many = table(2)
    plan, _ = LatencyPlans(many, 1.0).plan({"params": 150}, wanted, lambda plan: total(plan, "ms") / 5)
    assert total(plan, "params") <= 150
    assert total(plan, "ms") / 5 <= wanted


def test_nothing_is_given_where_what_is_fast_does_not_keep_the_limits():
    many = table(3)
    for options in many.values():
        for option in options[1:]:
            option.ms = 0.5 if option.rank == 6 else 1.5  # the small ones are slower than the dense layer
    plan, least = LatencyPlans(many, 1.0).plan({"macs": 1000}, 0.4, lambda plan: total(plan, "ms") / 5)
    assert plan is None
    assert least > 1, "the slow ones were tried, and take longer"


def test_a_share_that_no_network_has_gives_none_and_the_least():
    plan, least = LatencyPlans(table(4), 1.0).plan({}, 0.01, lambda plan: 0.2 + total(plan, "ms") / 5)
    assert plan is None
    assert 0.2 < least < 0.5


def test_a_dense_network_that_keeps_the_share_stays():
    plan, share = LatencyPlans(table(0), 1.0).plan({}, 1.0, lambda plan: pytest.fail("timed for nothing"))
    assert all(option.form is None for option in plan.values())
    assert share == 1.0


def test_a_network_that_turned_out_too_slow_is_planned_faster_and_budgets_share_what_is_known():
    """On random weights everything seems fast; the fitted networks take longer."""
    many = table(5)
    plans, asked = LatencyPlans(many, 1.4), []

    def share_of_time(plan):
        asked.append(plan)
        return 0.8 * total(plan, "ms") / 5

    first, _ = plans.plan({}, 0.5, share_of_time)
    plans.note(first, 0.56)
    second, _ = plans.plan({}, 0.5, share_of_time)
    assert second != first
    assert share_of_time(second) <= 0.5
    assert plans.plan({}, 0.5, lambda plan: pytest.fail("it is known"))[0] == second
    looser, _ = plans.plan({}, 0.7, share_of_time)
    assert total(looser, "change") < total(first, "change")
    assert all(asked.count(plan) == 1 for plan in asked if plan != second)


@pytest.mark.parametrize("share", [float("inf"), 0.3])
def test_where_no_measurement_follows_the_table_it_ends(share):
    """A block that can go has costs below zero; the network may be refused by the runtime, or always take as long."""
    dense = Option(None, 0, 1000, 100, ms=1.0)
    gone = Option("removed", 0, -800, -80, change=0.1, ms=-0.8)
    half = Option("form", 1, 500, 50, change=0.01, ms=0.5)
    plan, least = LatencyPlans({"layer": [dense, half, gone]}, 1.0).plan({}, 0.05, lambda plan: share)
    assert plan is None
    assert least == share


def test_what_was_never_timed_teaches_nothing():
    many, seen = table(7), []
    plans, untaught = LatencyPlans(many, 1.0), LatencyPlans(many, 1.0)
    slow = {name: Option("form", 1, 10, 1, ms=None) for name in many}
    plans.note(slow, 1.3)

    def share_of_time(plan):
        seen.append(plan)
        return total(plan, "ms") / 5

    assert plans.plan({}, 0.5, share_of_time) == untaught.plan({}, 0.5, share_of_time)
