"""A plan for a share of the fastest dense network's time.

Layers' times do not add up to the network's, least of all where layers are small. So whole networks are timed, and a
linear model of what they take says what a layer's milliseconds and its multiply-adds are worth in this network. The
plan of least change that keeps the share by this model is timed, the model is fitted again, and so on. A measurement
may be off by some percent: a plan is taken where it keeps the share both as measured and by the model.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from separable.conversion.plan import Plan, cheapest, choose, in_table
from separable.conversion.table import Option, Table

_ATTEMPTS = 8
_NEAR = 0.97  # of the share, from which a plan is not worth another
_STEP = 0.03  # of the share, that a plan has to be faster than one that was too slow
_ERROR = 0.04  # of a share that was measured
_NEARBY = 0.2  # of the share wanted: as far from it, an error counts half
_PRIOR_ERROR = 0.3  # of each number of the model, before any network was timed
_LEAST_WORTH = 1e-3
_ROUNDING = 1 + 1e-6


class _Model(NamedTuple):
    """The share of time of a plan, from its shares of the layers' milliseconds and of their multiply-adds."""

    constant: float
    ms: float
    macs: float


class _Measured(NamedTuple):
    plan: Plan
    share: float  # of the fastest dense network's time


class LatencyPlans:
    """Plans for shares of time, made of one table; every network that was timed serves all of them."""

    def __init__(self, table: Table, dense_share: float):
        """dense_share: time of the dense network where others will run, over its time where it is fastest."""
        self.table = table
        dense: Plan = {name: many[0] for name, many in table.items()}
        self._dense = _Measured(dense, dense_share)
        self._ms, self._macs = (max(_sum(dense, measure), 1e-30) for measure in ("ms", "macs"))
        self._measured: dict[Any, _Measured] = {_key(dense): self._dense}

    def note(self, plan: Plan, share: float) -> None:
        """What a network of this plan takes; it replaces what was known."""
        if _key(plan) != _key(self._dense.plan) and all(option.ms is not None for option in plan.values()):
            self._measured[_key(plan)] = _Measured(plan, share)

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
        if self._dense.share <= wanted * _ROUNDING and _within(self._dense.plan, limits):
            return self._dense.plan, self._dense.share
        aim, left = wanted, _ATTEMPTS
        while left:
            model = self._model(wanted)
            plan, keeps_aim = self._planned(limits, aim, model)
            if plan is None:
                break
            if _key(plan) not in self._measured:
                share = share_of_time(plan)
                self.note(plan, share)
                aim, left = wanted, left - 1
                if share >= _NEAR * wanted and self._keeps(plan, wanted, self._model(wanted)):
                    break
            elif not keeps_aim or self._keeps(plan, wanted, model):
                break
            else:
                aim = self._predicted(plan, model) - _STEP * wanted
        model = self._model(wanted)
        changed = [one for one in self._measured.values() if one is not self._dense]
        allowed = [one for one in changed if _within(one.plan, limits)]
        kept = [one.plan for one in allowed if one.share <= wanted * _ROUNDING]
        sure = [plan for plan in kept if self._keeps(plan, wanted, model)]
        least = min((one.share for one in allowed), default=math.inf)
        return min(sure or kept, key=lambda plan: _sum(plan, "change"), default=None), least

    def _keeps(self, plan: Plan, wanted: float, model: _Model) -> bool:
        return max(self._predicted(plan, model), self._measured[_key(plan)].share) <= wanted * _ROUNDING

    def _predicted(self, plan: Plan, model: _Model) -> float:
        return sum(number * share for number, share in zip(model, self._shares(plan), strict=True))

    def _shares(self, plan: Plan) -> tuple[float, float, float]:
        """What the model's numbers are multiplied by."""
        return 1.0, _sum(plan, "ms") / self._ms, _sum(plan, "macs") / self._macs

    def _planned(self, limits: Mapping[str, float], aim: float, model: _Model) -> tuple[Plan | None, bool]:
        """The plan of least change that keeps `aim` by the model, else the fastest; and whether it keeps it.

        Forms that are slower than their dense layers are taken where the other limits cannot be kept without them.
        """
        every = {name: self._worth(many, model) for name, many in self.table.items()}
        faster = {name: self._worth(_faster(many), model) for name, many in self.table.items()}
        found = choose(faster, {**limits, "ms": aim - model.constant})
        plan = found or cheapest(faster, "ms", limits) or cheapest(every, "ms", limits)
        return in_table(self.table, plan), found is not None

    def _worth(self, options: list[Option], model: _Model) -> list[Option]:
        """With the share of the network's time that they are worth in the place of their milliseconds."""
        ms, macs = model.ms / self._ms, model.macs / self._macs
        return [dataclasses.replace(o, ms=None if o.ms is None else ms * o.ms + macs * o.macs) for o in options]

    def _model(self, wanted: float) -> _Model:
        """By least squares, of what was timed, networks near the share wanted counting most, and of a prior.

        The prior: milliseconds and multiply-adds are worth the same, and nothing takes time besides.
        """
        import numpy as np
        from scipy.optimize import lsq_linear

        half = self._dense.share / 2
        rows, sides = [np.eye(3) / _PRIOR_ERROR], [np.array([0.0, half, half]) / _PRIOR_ERROR]
        for plan, share in self._measured.values():
            if math.isfinite(share):
                error = _ERROR * share * (1 + abs(share / wanted - 1) / _NEARBY)
                rows.append(np.array([self._shares(plan)]) / error)
                sides.append(np.array([share]) / error)
        least = [-np.inf, _LEAST_WORTH, _LEAST_WORTH]
        return _Model(*lsq_linear(np.concatenate(rows), np.concatenate(sides), (least, np.inf)).x.tolist())


def _faster(options: list[Option]) -> list[Option]:
    """The dense layer, and what takes less time than it."""
    dense_ms = options[0].ms or 0.0
    return [options[0], *(option for option in options[1:] if option.ms is not None and option.ms < dense_ms)]


def _within(plan: Plan, limits: Mapping[str, float]) -> bool:
    return all(_sum(plan, measure) <= limit for measure, limit in limits.items())


def _key(plan: Plan) -> tuple[tuple[str, str | None, int], ...]:
    return tuple((name, option.form, option.rank) for name, option in plan.items())


def _sum(plan: Plan, measure: str) -> float:
    return sum(getattr(option, measure) or 0.0 for option in plan.values())
