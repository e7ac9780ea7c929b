"""What a network could become, found out once, then any number of conversions of it under different budgets.

The survey, the table of forms and their times do not depend on a budget; planning takes a moment, and fitting the
chosen forms one pass over the data.
"""

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from separable import cost, runtimes
from separable.conversion import timing
from separable.conversion.batches import Data
from separable.conversion.calibrate import calibrate
from separable.conversion.checkpoint import Checkpoint
from separable.conversion.judge import Judge
from separable.conversion.kept import Kept
from separable.conversion.latency import LatencyPlans
from separable.conversion.plan import Plan, choose, in_table, read_budget, room
from separable.conversion.result import Conversion, choices, fastest_ms, set_as_given
from separable.conversion.survey import SAMPLES, survey
from separable.conversion.table import Table
from separable.conversion.weigh import tabulate
from separable.cost.count import uncompiled
from separable.errors import InputError
from separable.inputs import Example
from separable.progress import say

_FEW = 64  # examples; a fit on fewer is warned of
_HALVINGS = 6  # of the interval of latencies, to 1.6 % of the dense network's time
PARETO = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_COMPARED = ("torch", "torch channels-last", "accelerate", "onnxruntime", "openvino")
_MISSED, _REFITS = 1.03, 2  # times a latency budget that a fitted network may take, and tighter plans where it does not
_ROUNDS, _SECONDS = 21, 12.0  # of a comparison


class Study:
    """A network, its data and what its layers could become; `convert` makes a network of it under a budget."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        example: Example | None = None,
        samples: int = SAMPLES,
        target: str | None = None,
        judged: bool = False,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ):
        """See `convert` for the arguments. judged: hold labelled examples back, for budgets of accuracy."""
        self._kept = Checkpoint(checkpoint, resume)
        self.target = timing.check_target(target)
        self.given = uncompiled(model)
        self._judge: Judge | None = None
        if judged:
            if isinstance(data, Iterable) and not isinstance(data, (Tensor, str, bytes, Mapping)):
                data = list(data)  # walked twice: labels are read apart from inputs
            self._judge = Judge(data, samples)
            samples = self._judge.fitted
        self.survey = survey(model, data, example=example, samples=samples)
        if self.survey.examples < _FEW:
            many = "example" if self.survey.examples == 1 else "examples"
            say(f"calibrated on {self.survey.examples} {many}; some hundreds are needed for a fit that holds")
        self._kept.open(self.survey, self.target, self._runtimes())
        self._table: Table | None = None
        self._losses: Table | None = None  # the table without times, where those were forgotten
        self._dense: runtimes.Comparison | None = None
        self._latency_plans: LatencyPlans | None = None

    @property
    def table(self) -> Table:
        """Each layer's options with their losses and times, made when first asked for."""
        if self._table is None:
            table = self._losses or self._kept.table(self.survey, lambda: tabulate(self.survey))
            speed = self._kept.data("yardstick", timing.yardstick, float)
            timing.time_options(self.survey, table, self.target, speed, lambda: self._kept.keep_table(table))
            self._table = table
        return self._table

    def forget_times(self) -> None:
        """Measure times anew when they are next needed, as after a refusal on a busy machine; losses and fits stay."""
        if self._table is not None:
            for option in (option for many in self._table.values() for option in many):
                option.ms = None
            self._losses, self._table = self._table, None
        self._dense = self._latency_plans = None
        self._kept.forget_times()

    @torch.inference_mode(False)
    def convert(self, budget: dict[str, float]) -> Conversion:
        """The network under a budget, its layers fitted and its time measured beside the dense network's."""
        budget = read_budget(budget)
        limits = room(self.survey, budget)
        wanted = _MISSED * budget.get("latency", math.inf)
        if "accuracy" in budget:
            done = self._finished(*self._within_accuracy(budget, limits))
        else:
            done = self._within_latency(budget, limits, wanted)
        if done.share > wanted:
            say(f"latency {budget['latency']:g} was planned; the network takes {done.share:.2f}")
        return done

    def _within_latency(self, budget: dict[str, float], limits: dict[str, float], wanted: float) -> Conversion:
        """Planned again where the fitted network takes more than `wanted`: what it takes is known by then."""
        done = self._made(budget, limits)
        for _ in range(_REFITS):
            if done.share <= wanted or not any(layer.form for layer in done.layers):
                break
            try:
                tighter = self._made(budget, limits)
            except InputError:
                break
            done = min(done, tighter, key=lambda one: one.share)
        return done

    def _made(self, budget: dict[str, float], limits: dict[str, float]) -> Conversion:
        plan = self._plan(budget, limits)
        done = self._finished(plan, *self.fit(plan))
        if self._latency_plans is not None:
            self._latency_plans.note(plan, done.share)
        return done

    def pareto(self, shares: Sequence[float] = PARETO) -> list[Conversion]:
        """Conversions to shares of the fastest dense network's time, for a curve of accuracy against latency.

        Shares that cannot be reached are left out; the table is made once.
        """
        found = []
        for share in shares:
            try:
                found.append(self.convert({"latency": share}))
            except InputError as error:
                if error.argument != "budget":
                    raise
                say(f"latency {share:g}: {error.rule}")
        return found

    def _within_accuracy(
        self, budget: dict[str, float], limits: dict[str, float]
    ) -> tuple[Plan, nn.Module, dict[str, float]]:
        """The fastest network that loses at most so many points on the labelled examples, by halving the interval.

        Without other budgets the dense network is one that loses nothing.
        """
        if self._judge is None:
            raise InputError("budget", str(budget), "a budget of accuracy needs a study that holds labelled data back")
        wanted = self._judge.accuracy(self.survey.model) + budget["accuracy"] / 100
        dense: Plan = {name: many[0] for name, many in self.table.items()}
        best = (dense, *self.fit(dense)) if len(budget) == 1 else None
        low, high = 0.0, budget.get("latency", 1.0)  # of the fastest dense network's time: too fast, slow enough
        share, most = (low + high) / 2 if best else high, 0.0
        for _ in range(_HALVINGS):
            try:
                plan = self._plan({**budget, "latency": share}, limits)
            except InputError:  # not to be had at all
                low = share
            else:
                network, errors = self.fit(plan)
                reached = self._judge.accuracy(network)
                most = max(most, reached)
                say(f"latency {share:.2f}: {reached:.2%} of the labelled examples, {wanted:.2%} wanted")
                if reached >= wanted:
                    best, high = (plan, network, errors), share
                else:
                    low = share
            if low == high:  # not even what is slow enough for the other budgets
                break
            share = (low + high) / 2
        if best is None:
            rule = f"cannot be met at once; {most:.2%} of the labelled examples was reached, {wanted:.2%} is wanted"
            raise InputError("budget", str(budget), rule)
        return best

    def fit(self, plan: Plan) -> tuple[nn.Module, dict[str, float]]:
        chosen = _chosen(plan)
        if not chosen:
            return copy.deepcopy(self.survey.model), {}
        return calibrate(self.survey, chosen, self._kept_of(plan))

    def _kept_of(self, plan: Plan) -> Kept:
        return self._kept.plan(_chosen(plan))

    def _plan(self, budget: dict[str, float], limits: dict[str, float]) -> Plan:
        if "latency" in budget:
            return self._plan_latency(budget, limits)
        found = choose(self.table, limits)
        if found is None:  # only with layers that are slower than the dense ones
            say(f"the budget needs layers that are slower in {self.target} than the dense ones")
            untimed = {n: [dataclasses.replace(o, ms=None) for o in many] for n, many in self.table.items()}
            found = in_table(self.table, choose(untimed, limits))
        if found is None:
            raise InputError("budget", str(budget), "cannot be met by macs and params at once")
        return found

    def _plan_latency(self, budget: dict[str, float], limits: dict[str, float]) -> Plan:
        """Where not even the fastest network found is faster than the fastest dense one, that stays as it is."""
        dense = self.dense_comparison()
        whole, here = fastest_ms(dense, "dense"), dense.of("dense", self.target)
        assert here is not None
        faster = dense.times_as_fast(here)
        if faster is None:
            raise InputError("target", self.target, f"cannot run the dense network: {here.problem}")
        if self._latency_plans is None:
            self._latency_plans = LatencyPlans(self.table, 1 / faster)
        best, least = self._latency_plans.plan(limits, budget["latency"], self.share_of_time)
        if best is not None:
            return best
        if least >= 1 and not limits:
            return {name: many[0] for name, many in self.table.items()}
        if least == math.inf:
            raise InputError("budget", str(budget), f"cannot be met at once by forms that are fast in {self.target}")
        found_least = f"the fastest network found takes {least:.2f} of the fastest dense network's {whole:.3f} ms"
        rule = f"cannot be met in {self.target}; {found_least} for the example, {self.survey.example}"
        raise InputError(
            "budget", str(budget), f"{rule}, measured on this machine as it was; where it was busy, try again"
        )

    def share_of_time(self, plan: Plan) -> float:
        """Of the fastest dense network's, in the target, on weights that say nothing; both timed in turns."""
        return self._kept_of(plan).data("share", lambda: self._share_of_time(plan), float)

    def _share_of_time(self, plan: Plan) -> float:
        network = timing.network(self.survey, plan)
        fastest = self.dense_comparison().fastest("dense")
        assert fastest is not None
        names = list(dict.fromkeys([self.target, fastest.runtime]))
        networks = {"dense": self.survey.model, "rough": network}
        compared = self._compared(networks, names)
        rough = compared.of("rough", self.target)
        faster = None if rough is None else compared.times_as_fast(rough)
        return 1 / faster if faster else math.inf

    def dense_comparison(self) -> runtimes.Comparison:
        """The dense network in every runtime at hand."""
        if self._dense is None:
            networks = {"dense": self.survey.model}
            self._dense = self._kept.comparison("dense", lambda: self._compared(networks, self._runtimes()))
        return self._dense

    def _compared(self, networks: dict[str, nn.Module], names: list[str]) -> runtimes.Comparison:
        return runtimes.compare(networks, self.survey.example, names=names, rounds=_ROUNDS, seconds=_SECONDS)

    def _runtimes(self) -> list[str]:
        return [name for name in _COMPARED if runtimes.why_not(name) is None]

    def _finished(self, plan: Plan, network: nn.Module, errors: dict[str, float]) -> Conversion:
        found = self.survey
        networks = {"dense": found.model, "separable": network}
        compared = self._kept_of(plan).comparison("times", lambda: self._compared(networks, self._runtimes()))
        counted = cost.count(network, found.example)
        layers = choices(found, plan, self._table, errors)
        set_as_given(network, self.given)
        return Conversion(
            network, layers, found.macs, counted.macs // len(found.example), found.params, counted.params,
            self.target, compared, len(found.example),
        )  # fmt: skip


def _chosen(plan: Plan) -> dict[str, tuple[str, int]]:
    return {name: (option.form, option.rank) for name, option in plan.items() if option.form}
