"""A plan for a share of the fastest dense network's time.

Layers' times do not add up to the network's, least of all where layers are small. So whole networks are timed, and a
line through what they take says what a layer's milliseconds and its multiply-adds are worth in this network. The plan
of least change that keeps the share by this line is timed, the line is drawn anew, and so on. A measurement may be off
by some percent: a plan is taken where it keeps the share both as measured and by the line through all of them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from separable.conversion.plan import Plan, cheapest, choose
from separable.conversion.table import Option, Table

_ATTEMPTS = 8
_NEAR = 0.97  # of the share, from which a plan is not worth another
_TIGHTER = 0.97  # of what is aimed at, where the line leads to a plan that is known to take too long
_ERROR = 0.04  # of a share that was measured
_NEARBY = 0.2  # of the share wanted: as far from it a network counts half
_PRIOR_ERROR = 0.3  # of the line's numbers, before any network was timed
_LEAST_WORTH = 1e-3


class _Line(NamedTuple):
    """The share of time of a plan, from its shares of the layers' milliseconds and of their multiply-adds."""

    constant: float
    ms: float
    macs: float


class _Timed(NamedTuple):
    plan: Plan
    share: float  # of the fastest dense network's time


class LatencyPlans:
    """The networks of one table whose time is known, and plans by what they tell."""

    def __init__(self, table: Table, dense_share: float):
        """dense_share: time of the dense network where others will run, over its time where it is fastest."""
        self.table = table
        self._dense: Plan = {name: many[0] for name, many in table.items()}
        self._timed: dict[Any, _Timed] = {}
        self.note(self._dense, dense_share)

    def note(self, plan: Plan, share: float) -> None:
        """What a network of this plan takes; it replaces what was known."""
        self._timed[_key(plan)] = _Timed(plan, share)

    def plan(
        self, limits: Mapping[str, float], wanted: float, share_of_time: Callable[[Plan], float]
    ) -> tuple[Plan | None, float]:
        """The plan of least change that keeps the share `wanted`, and the least share of a changed network.

        Args:
            limits: of "macs" and "params", kept by every plan.
            wanted: share of the fastest dense network's time.
            share_of_time: the share that a network of a plan really takes.

        Returns:
            None for the plan where none was found that keeps the share.
        """
        aim, left = wanted, _ATTEMPTS
        while left:
            plan, within = self._planned(limits, aim, self._line(wanted))
            if plan is None:  # what is left out for its time alone keeps the other limits
                break
            if _key(plan) not in self._timed:
                self.note(plan, share_of_time(plan))
                left -= 1
                if self._timed[_key(plan)].share >= _NEAR * wanted and self._keeps(plan, wanted):
                    break
            elif not within or self._keeps(plan, wanted):
                break
            else:
                aim *= _TIGHTER
        allowed = [o for o in self._timed.values() if all(_sum(o.plan, m) <= limit for m, limit in limits.items())]
        kept = [one.plan for one in allowed if self._keeps(one.plan, wanted)]
        least = min((one.share for one in allowed if one.plan is not self._dense), default=math.inf)
        return min(kept, key=lambda plan: _sum(plan, "change"), default=None), least

    def _keeps(self, plan: Plan, wanted: float) -> bool:
        line = self._line(wanted)
        told = line.constant + sum(share * worth for share, worth in zip(self._shares(plan), line[1:], strict=True))
        return max(told, self._timed[_key(plan)].share) <= wanted

    def _shares(self, plan: Plan) -> tuple[float, float]:
        """Of the dense layers' milliseconds, and of their multiply-adds."""
        ms, macs = (_sum(plan, m) / max(_sum(self._dense, m), 1e-30) for m in ("ms", "macs"))
        return ms, macs

    def _planned(self, limits: Mapping[str, float], aim: float, line: _Line) -> tuple[Plan | None, bool]:
        """The plan of least change that keeps the share by the line, else the fastest; and whether it keeps it."""
        fast = {name: self._worth(_faster(many), line) for name, many in self.table.items()}
        found = choose(fast, {**limits, "ms": aim - line.constant})
        every = {name: self._worth(many, line) for name, many in self.table.items()}
        plan = found or cheapest(every, "ms", limits)
        if plan is None:
            return None, False
        given = {name: {(o.form, o.rank): o for o in many} for name, many in self.table.items()}
        return {name: given[name][o.form, o.rank] for name, o in plan.items()}, found is not None

    def _worth(self, options: list[Option], line: _Line) -> list[Option]:
        """With the share of the network's time that they are worth in the place of their milliseconds."""
        ms, macs = line.ms / _sum(self._dense, "ms"), line.macs / max(_sum(self._dense, "macs"), 1)
        return [dataclasses.replace(o, ms=None if o.ms is None else ms * o.ms + macs * o.macs) for o in options]

    def _line(self, wanted: float) -> _Line:
        """Least squares: of what was timed, nearer to what is wanted counting more, and of what is expected of any."""
        import numpy as np
        from scipy.optimize import lsq_linear

        dense_share = self._timed[_key(self._dense)].share
        rows, sides = [np.eye(3) / _PRIOR_ERROR], [np.array([0.0, dense_share / 2, dense_share / 2]) / _PRIOR_ERROR]
        for plan, share in self._timed.values():
            if math.isfinite(share):
                error = _ERROR * share * (1 + abs(share / wanted - 1) / _NEARBY)
                rows.append(np.array([[1.0, *self._shares(plan)]]) / error)
                sides.append(np.array([share]) / error)
        least = [-np.inf, _LEAST_WORTH, _LEAST_WORTH]
        return _Line(*lsq_linear(np.concatenate(rows), np.concatenate(sides), (least, np.inf)).x.tolist())


def _faster(options: list[Option]) -> list[Option]:
    """The dense layer, and what takes less time than it."""
    dense_ms = options[0].ms or 0.0
    return [options[0], *(option for option in options[1:] if option.ms is not None and option.ms < dense_ms)]


def _key(plan: Plan) -> tuple[tuple[str, str | None, int], ...]:
    return tuple((name, option.form, option.rank) for name, option in plan.items())


def _sum(plan: Plan, measure: str) -> float:
    return sum(getattr(option, measure) or 0.0 for option in plan.values())
