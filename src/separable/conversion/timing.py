"""Milliseconds of each option of a layer where the network will run, in its neighbourhood: with the norm and the
activation that the runtime fuses into it, between two pointwise layers.

A runtime keeps maps in a layout of its own, and changes it where a network begins and ends; inside a network no layer
pays for that. So the first of the two layers makes the map of a single channel, and the second one channel of what
comes out. What these two take alone is taken off, and with it what a call takes: a network pays that once.
A processor that other programs use too is fast for some seconds and slow for some. So each measurement has a yardstick,
a product of matrices timed in the same turns, and all are brought to one speed.
Of each form a few ranks are timed, in turns with the dense layer. A processor fills its vectors whole, so that time
grows in steps: between what was timed it is linear in the multiply-adds that whole vectors take.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from separable import runtimes
from separable.conversion import chain, thin
from separable.conversion.calibrate import replace
from separable.conversion.forms import FORMS, Shape
from separable.conversion.patches import PLAIN
from separable.conversion.removal import remove, removed
from separable.conversion.survey import Site, Survey
from separable.conversion.table import Option, Table, removal_of
from separable.errors import InputError
from separable.functional.measure import fastest, seconds_of
from separable.progress import track

TARGETS = ("accelerate", "onnxruntime", "openvino", "torch")
_RANKS = 3  # of a form
_ROUNDS = (4, 12)  # at least and at most, as many as take:
_SECONDS = 15e-3  # of the dense layer
_SHORT, _IN_A_ROW = 1e-3, 3  # seconds of a dense layer, below which each way runs so many times in each of its turns
_SQUARE = torch.ones(128, 128)
_PRODUCTS = 8  # of it with itself: a yardstick that fits into a cache, and is long enough to fill it
_LEAST_SHARE = 0.05  # of a measured time, that is left where its surroundings are taken off
Times = dict[tuple[str | None, int], float]  # milliseconds of a form and a rank
_VECTORS, _LEAST_VECTOR = {"AVX512": 16, "AVX2": 8}, 4  # floats of a vector, by what torch calls the processor
_HOPELESS = 3.0  # times the least loss at no more multiply-adds, from which a form is not timed


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


def yardstick() -> float:
    """Seconds of what processors' speeds are compared by, now."""
    return fastest({"yardstick": _products, "again": _products}, _ROUNDS[1], in_a_row=_IN_A_ROW)["yardstick"]


def _products() -> None:
    for _ in range(_PRODUCTS):
        _SQUARE @ _SQUARE


def time_options(
    survey: Survey, table: Table, target: str, yardstick_s: float, keep: Callable[[], None] = lambda: None
) -> None:
    """Fill in `ms` of every option that may be chosen: of all calls of the layer, for the survey's example.

    Args:
        yardstick_s: what `yardstick` gave once; all times are brought to that speed.
        keep: called after each layer that was timed. Layers whose times stand in the table are not timed again.
    """
    known: dict[Any, Times] = {}
    clock = _Clock(survey, target, yardstick_s)
    for site in track(survey.convertible, f"timing forms in {target}"):
        conv = survey.conv(site)
        roles = site.name in survey.pairs, site.name in survey.pairs.values()
        key = (repr(conv), tuple(site.sizes), tuple(site.shares), bool(site.norm), site.rectified, roles)
        if table[site.name][0].ms is not None:  # by a run that was stopped
            known.setdefault(key, {(o.form, o.rank): o.ms for o in table[site.name] if o.ms is not None})
            continue
        if key not in known:
            known[key] = clock.options_ms(site, table[site.name])
        for option in table[site.name]:
            option.ms = known[key].get((option.form, option.rank))
        keep()
    _time_removals(survey, table, clock, keep)


def _time_removals(survey: Survey, table: Table, clock: "_Clock", keep: Callable[[], None]) -> None:
    """Without a block go its layers' milliseconds, and what it takes beyond them, counted as its first layer's.

    A block that the target cannot run by itself is not timed, and so stays.
    """
    known: dict[Any, float | None] = {}
    for block in track(survey.blocks.values(), f"timing blocks in {clock.target}"):
        module = survey.model.get_submodule(block.name)
        layers_ms = sum(table[name][0].ms or 0.0 for name in block.layers)
        first, *others = (removal_of(table, name) for name in block.layers)
        key = (repr(module), block.shape)
        if first.ms is not None:  # by a run that was stopped
            known[key] = layers_ms - first.ms
            continue
        if key not in known:
            known[key] = clock.block_ms(module, block.shape)
        block_ms = known[key]
        if block_ms is not None:
            first.ms = layers_ms - block_ms
            for option in others:
                option.ms = 0.0
        keep()


class _Side(NamedTuple):
    """A map [maps, channels, ...] that a pointwise layer makes or reads of which only some channels are there."""

    shape: tuple[int, ...]
    channels: int

    @property
    def share(self) -> float:
        return self.channels / self.shape[1]


class _Clock:
    """Times parts of a network in the target, between two pointwise layers, whose own time it takes off."""

    def __init__(self, survey: Survey, target: str, yardstick_s: float):
        self.survey, self.target, self.yardstick_s = survey, target, yardstick_s
        self._alone: dict[tuple[int, ...], Callable[[], Any]] = {}

    def options_ms(self, site: Site, options: list[Option]) -> Times:
        """Of the dense layer and a few ranks of each form, and between these; of all calls together."""
        conv, (given, made) = self.survey.conv(site), site.sizes[0]
        maps = max(1, round(len(self.survey.example) * site.shares[0]))
        calls: dict[Any, Callable[[], Any]] = {}
        sides: dict[Any, tuple[_Side, _Side]] = {}
        work = {(option.form, option.rank): _work(conv, option) for option in options}
        for option in [options[0], *_worth_timing(options, work)]:
            inputs = option.rank if option.form == thin.SECOND else conv.in_channels
            outputs = option.rank if option.form == thin.FIRST else conv.out_channels
            around = self._around(conv.weight, inputs, outputs, len(given))
            key = option.form, option.rank
            try:
                calls[key] = self._prepared(around, neighbourhood(self.survey, site, option), (maps, *given))
            except InputError:
                if option.form is None:
                    raise
                continue
            sides[key] = (
                _Side((maps, conv.in_channels, *given), inputs),
                _Side((maps, conv.out_channels, *made), outputs),
            )
        measured = self._without_sides(conv.weight, calls, sides)
        measured = {key: seconds * 1e3 * len(site.sizes) for key, seconds in measured.items()}
        return _between(work, measured) | measured

    def block_ms(self, module: nn.Module, shape: tuple[int, ...]) -> float | None:
        maps, channels, *size = shape
        like = next(module.parameters())
        around = self._around(like, channels, channels, len(size))
        try:
            run = self._prepared(around, module, (maps, *size))
        except InputError:
            return None
        side = _Side(shape, channels)
        return self._without_sides(like, {"block": run}, {"block": (side, side)})["block"] * 1e3

    def _without_sides(
        self, like: Tensor, calls: dict[Any, Callable[[], Any]], sides: dict[Any, tuple["_Side", "_Side"]]
    ) -> dict[Any, float]:
        """Seconds of each call less what its two sides take, which are timed in the same turns."""
        call = (1, 1, *[1] * (len(next(iter(sides.values()))[0].shape) - 2))
        shapes = dict.fromkeys([call, *(side.shape for pair in sides.values() for side in pair)])
        besides: dict[Any, Callable[[], Any]] = {shape: self._sides_alone(like, shape) for shape in shapes}
        besides["yardstick"] = _products
        dense = next(iter(calls.values()))
        dense()
        once = seconds_of(dense)
        rounds, in_a_row = _rounds(once), _IN_A_ROW if once < _SHORT else 1
        seconds = fastest({**calls, **besides}, rounds, wanted=besides, in_a_row=in_a_row)
        slower = seconds["yardstick"] / self.yardstick_s
        found = {}
        for key in calls.keys() & seconds.keys():
            alone = sum(side.share * (seconds[side.shape] - seconds[call]) for side in sides[key]) / 2 + seconds[call]
            found[key] = max(seconds[key] - alone, _LEAST_SHARE * seconds[key]) / slower
        return found

    def _sides_alone(self, like: Tensor, shape: tuple[int, ...]) -> Callable[[], Any]:
        if shape not in self._alone:
            maps, channels, *size = shape
            around = self._around(like, channels, channels, len(size))
            self._alone[shape] = self._prepared(around, nn.Identity(), (maps, *size))
        return self._alone[shape]

    def _around(self, like: Tensor, inputs: int, outputs: int, dims: int) -> tuple[nn.Module, nn.Module]:
        """From one channel to those that a part reads, and from those that it gives to one."""
        pair = [
            nn.utils.skip_init(PLAIN[dims - 1], *ends, 1, bias=False, device=like.device, dtype=like.dtype)
            for ends in ((1, inputs), (outputs, 1))
        ]
        own = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
        for layer in pair:
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=own))
        return pair[0], pair[1]

    def _prepared(
        self, around: tuple[nn.Module, nn.Module], part: nn.Module, shape: tuple[int, ...]
    ) -> Callable[[], Any]:
        """shape: maps and their size."""
        before, after = around
        x = torch.randn((shape[0], 1, *shape[1:]), generator=torch.Generator().manual_seed(0))
        return runtimes.prepare(self.target, nn.Sequential(before, part, after).eval(), x.to(next(before.parameters())))


def _rounds(seconds: float) -> int:
    """Of a measurement that takes so long."""
    least, most = _ROUNDS
    return min(max(least, int(_SECONDS / seconds)), most)


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


def _work(conv: nn.Module, option: Option) -> float:
    """Multiply-adds where the channels inside fill whole vectors."""
    if option.form in FORMS:
        channels = FORMS[option.form].stages(Shape.of(conv), option.rank)[0].outputs
    else:
        channels = option.rank
    vector = _VECTORS.get(torch.backends.cpu.get_cpu_capability(), _LEAST_VECTOR)
    return option.macs * -(-channels // vector) * vector / channels if channels else option.macs


def _worth_timing(options: list[Option], work: Mapping[Any, float]) -> list[Option]:
    """A few ranks of each form that is not far behind another of as many multiply-adds; of equal work the largest."""
    found = []
    alone = [option for option in options if option.form in FORMS]
    for form in (*FORMS, *thin.THIN):
        mine = {
            work[option.form, option.rank]: option
            for option in options
            if option.form == form
            and (
                form in thin.THIN
                or option.loss <= _HOPELESS * min(o.loss for o in alone if o.macs <= option.macs) + 1e-6
            )
        }
        several = list(mine.values())
        places = {round(k * (len(several) - 1) / (_RANKS - 1)) for k in range(_RANKS)} if several else set()
        found += [several[i] for i in sorted(places)]
    return found


def _between(work: Mapping[Any, float], measured: Times) -> Times:
    """Of ranks that take no less than the least and no more than the most that was timed of their form."""
    import numpy as np

    found: Times = {}
    for form in (*FORMS, *thin.THIN):
        timed = sorted((work[key], ms) for key, ms in measured.items() if key[0] == form)
        if timed:
            macs, ms = zip(*timed, strict=True)
            mine = {key: own for key, own in work.items() if key[0] == form and macs[0] <= own <= macs[-1]}
            found |= {key: float(np.interp(own, macs, ms)) for key, own in mine.items()}
    return found
