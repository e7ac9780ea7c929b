"""Choose for each layer one of its options, so that the network changes least within its budgets.

One option a layer, the sum of the predicted changes least, the sum of the costs within each budget: a knapsack of
several constraints, solved by branch and bound (scipy's HiGHS) to a thousandth of the least change. Among plans that
change the network little more than the best, the fastest is taken.
"""

import math
from collections.abc import Mapping
from typing import Any

from separable.conversion.survey import Survey
from separable.conversion.table import Option, Table, every_option
from separable.errors import InputError

MEASURES = ("macs", "params", "latency", "accuracy")
DEFAULT = {"latency": 0.6}
SLACK = 1.03  # times the least change, within which time decides
_GAP, _SECONDS = 1e-3, 10.0  # of the least objective that a plan may miss, and of the search for it
_NOISE = 1.1  # times the dense layer's time, up to which a form is not told to be slower
Plan = dict[str, Option]


def read_budget(budget: Any) -> dict[str, float]:
    """A budget whose entries are checked; see `convert`."""
    names = ", ".join(f'"{name}"' for name in MEASURES)
    if not isinstance(budget, dict) or not budget or not set(budget) <= set(MEASURES):
        raise InputError("budget", str(budget), f"must hold one or several of {names}, each with a number")
    for measure, amount in budget.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount):
            raise InputError("budget", str(budget), f"{measure} must be a number")
        if measure == "accuracy":
            if not -100 < amount <= 0:
                raise InputError("budget", str(budget), "accuracy is what may be lost in points: -0.5 for half a point")
        elif amount <= 0:
            raise InputError("budget", str(budget), f"{measure} must be positive: a share up to 1, or a count")
        elif measure == "latency" and amount > 1:
            rule = "latency is a share of the fastest dense network's: more than 0, at most 1"
            raise InputError("budget", str(budget), rule)
    return {measure: float(amount) for measure, amount in budget.items()}


def room(survey: Survey, budget: Mapping[str, float]) -> dict[str, float]:
    """What budgets of MACs and parameters leave to the layers that can change, checked from shapes alone."""
    limits: dict[str, float] = {}
    for measure in ("macs", "params"):
        if measure not in budget:
            continue
        amount, whole = budget[measure], getattr(survey, measure)
        if amount > whole:
            rule = f"is more than the dense network's {whole:,}; there is nothing to convert"
            raise InputError("budget", str(budget), rule)
        limit = math.floor(amount * whole) if amount <= 1 else math.floor(amount)
        spent = whole - sum(getattr(site, measure) for site in survey.convertible)
        table = every_option(survey, fit=False)
        cheap = cheapest(table, measure)
        assert cheap is not None, "each layer can stay as it is"
        least = spent + sum(getattr(option, measure) for option in cheap.values())
        if least > limit:
            best = f"{least / whole:.4f} of the dense network's {whole:,}" if amount <= 1 else f"{least:,} of {whole:,}"
            rule = f"cannot be met; the least {measure} this network can have is {best}"
            raise InputError("budget", str(budget), rule)
        limits[measure] = limit - spent
    return limits


def choose(table: Table, limits: Mapping[str, float]) -> Plan | None:
    """The plan of least change whose "macs", "params" and "ms" sum to at most their limits; None if there is none.

    An option that is slower than its dense layer, or that was not timed where the others were, is left out.
    """
    useful = {name: _useful(many) for name, many in table.items()}
    options = [(name, option) for name, many in useful.items() for option in many if math.isfinite(option.change)]
    least = _solve(table, options, limits, [option.change for _, option in options])
    if least is None or any(option.ms is None for _, option in options):
        return least
    bound = SLACK * sum(option.change for option in least.values()) + 1e-12
    cost = [option.ms or 0.0 for _, option in options]
    return _solve(table, options, {**limits, "change": bound}, cost) or least


def in_table(table: Table, plan: Plan | None) -> Plan | None:
    """A plan that was made of changed copies of options, of the table's own."""
    if plan is None:
        return None
    return {n: next(o for o in table[n] if (o.form, o.rank) == (one.form, one.rank)) for n, one in plan.items()}


def _tied(options: list[tuple[str, Option]]) -> list[list[tuple[int, int]]]:
    """Sums of columns, with signs, that have to be zero: tied options are taken together or not at all."""
    ties: dict[Any, dict[str, int]] = {}
    for column, (name, option) in enumerate(options):
        if option.tied:
            ties.setdefault((option.tied, option.rank), {})[name] = column
    found = []
    for (names, _), columns in ties.items():
        if len(columns) < len(names):
            found += [[(column, 1)] for column in columns.values()]
        else:
            first, *others = columns.values()
            found += [[(first, 1), (other, -1)] for other in others]
    return found


def cheapest(table: Table, measure: str, limits: Mapping[str, float] | None = None) -> Plan | None:
    """The plan of the least sum of "macs", "params" or "ms" within limits; None if there is none.

    What was not timed is not taken for its time. Without limits each layer can stay as it is.
    """
    options = [(name, o) for name, many in table.items() for o in many if getattr(o, measure) is not None]
    options = [(name, option) for name, option in options if math.isfinite(option.change)]
    return _solve(table, options, limits or {}, [getattr(option, measure) for _, option in options])


def _useful(options: list[Option]) -> list[Option]:
    dense_ms = options[0].ms
    if dense_ms is None:
        return options
    return [options[0]] + [o for o in options[1:] if o.ms is not None and o.ms <= _NOISE * dense_ms]


def _solve(
    table: Table, options: list[tuple[str, Option]], limits: Mapping[str, float], objective: list[float]
) -> Plan | None:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows = {name: i for i, name in enumerate(table)}
    sites = [rows[name] for name, _ in options]
    one_each = csr_array((np.ones(len(options)), (sites, range(len(options)))))
    held = [LinearConstraint(one_each, 1, 1)]
    tied = _tied(options)
    if tied:
        signs = [sign for members in tied for _, sign in members]
        places = [(row, column) for row, members in enumerate(tied) for column, _ in members]
        together = csr_array((signs, tuple(zip(*places, strict=True))), shape=(len(tied), len(options)))
        held.append(LinearConstraint(together, 0, 0))
    for measure, limit in limits.items():
        costs = np.array([[getattr(option, measure) for _, option in options]], float)
        scale = max(float(costs.max()), 1e-30)
        held.append(LinearConstraint(costs / scale, -np.inf, limit / scale))
    scaled = np.array(objective) / max(max(objective), 1e-30)
    result = milp(
        scaled, constraints=held, integrality=np.ones(len(options)), bounds=Bounds(0, 1),
        options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
    )  # fmt: skip
    if result.x is None:
        return None
    return {name: option for (name, option), taken in zip(options, result.x, strict=True) if taken > 0.5}
