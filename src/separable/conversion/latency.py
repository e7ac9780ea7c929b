"""A plan for a share of the fastest dense network's time.

Layers' times do not add up to the network's, least of all where layers are small. So whole networks are timed: planned
by a limit on the sum of their layers' times, and planned again, tighter or looser, until one keeps the share and leaves
little of it unused. The same is done by a limit on multiply-adds, and of the two plans the one of less change is taken.
"""

import math
from collections.abc import Callable, Mapping

from separable.conversion.plan import Plan, cheapest, choose
from separable.conversion.table import Table

_ATTEMPTS = 5  # at each of the two
_NEAR = 0.95  # of the share, from which a plan is not worth another

ShareOfTime = Callable[[Plan], float]


def plan_latency(
    table: Table, limits: Mapping[str, float], wanted: float, dense_ms: tuple[float, float], share_of_time: ShareOfTime
) -> tuple[Plan | None, float]:
    """The plan of least change that keeps the share, and the least share that was found.

    Args:
        table: options with their times.
        limits: of "macs" and "params", kept by every plan.
        wanted: share of the fastest dense network's time.
        dense_ms: milliseconds of the dense network where it is fastest, and in the target.
        share_of_time: the share that a network of a plan really takes.

    Returns:
        None for the plan where none was found that keeps the share.
    """
    fastest_ms, here_ms = dense_ms
    layers_ms, macs = (sum(getattr(many[0], m) or 0.0 for many in table.values()) for m in ("ms", "macs"))
    begun = {"ms": (wanted * fastest_ms - here_ms + layers_ms, fastest_ms), "macs": (wanted * macs, macs)}
    least, plans = math.inf, []
    for measure, (allowed, scale) in begun.items():
        plan, share = _search(table, limits, wanted, measure, allowed, scale, share_of_time)
        least = min(least, share)
        plans += [] if plan is None else [plan]
    return min(plans, key=_change, default=None), least


def _change(plan: Plan) -> float:
    return sum(option.change for option in plan.values())


def _search(
    table: Table, limits: Mapping[str, float], wanted: float, measure: str, allowed: float, scale: float,
    share_of_time: ShareOfTime,
) -> tuple[Plan | None, float]:  # fmt: skip
    """The loosest plan that keeps the share, by limits on one measure (first: allowed; of the whole: scale)."""
    whole = sum(getattr(many[0], measure) or 0.0 for many in table.values())
    least, best = math.inf, None
    kept: float | None = None  # the largest limit that kept the share,
    missed: float | None = None  # and the smallest that did not
    for attempt in range(_ATTEMPTS):
        found = choose(table, {**limits, measure: min(allowed, limits.get(measure, math.inf))})
        plan = found or cheapest(table, measure, limits)
        if plan is None:  # what is left out for its time alone keeps the other limits
            break
        taken = share_of_time(plan)
        least = min(least, taken)
        if taken <= wanted:
            best, kept = plan, allowed
        else:
            missed = allowed
        if _NEAR * wanted <= taken <= wanted or (found is None and best is None):
            break
        if kept is not None and missed is not None:
            allowed = (kept + missed) / 2
        else:
            further = 1.1 + 0.5 * attempt  # than the limit says: else it may be neared for ever from one side
            allowed -= further * (taken - wanted) * scale
        if allowed >= whole:  # nothing to change, and within the budget
            break
    return best, least
