"""Networks side by side in every runtime: outputs compared first, then all of them timed in turns.

Every other round runs backwards. The first calls of a turn find the caches as another network left them and are not
clocked. On one thread the processor time of the whole process is taken, which on a shared machine leaves out the turns
of other programs; on several the clock.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from separable import __version__, _native
from separable.cost import processor
from separable.cost.timing import spread
from separable.errors import InputError
from separable.inputs import Example
from separable.progress import track
from separable.runtimes.names import FLOAT32, NAMES, threads_in_words, why_not
from separable.runtimes.prepared import Case, Run, tensors_of, torch_threads

EXACT, ROUGH = (
    1e-4,
    0.1,
)  # of the largest number: how far outputs may be off, in float32 and where a runtime rounds more
_BUSY = 0.2  # a middle half that spans this share of the median says that other work ran
_CALLS, _LONG_S = 3, 0.1  # clocked in a turn; of calls longer than this, one
_WARM_S = 2e-3  # of calls before the clocked ones of a turn, of which there is at least one
_LEAST_ROUNDS = 3  # however long they take


@dataclass
class Timed:
    """A network in a runtime: milliseconds of the clocked calls of each round, or the problem that it has there."""

    network: str
    runtime: str
    rounds_ms: list[list[float]] = field(default_factory=list)
    error: float | None = None  # of the worst output, as a share of its largest number
    memory_bytes: int | None = None
    problem: str = ""

    @property
    def times_ms(self) -> list[float]:
        return [ms for turn in self.rounds_ms for ms in turn]

    @property
    def ms(self) -> float | None:
        return statistics.median(self.times_ms) if self.times_ms else None

    @property
    def quartiles_ms(self) -> tuple[float, float] | None:
        """Between them lies the middle half of the calls."""
        if len(self.times_ms) < 2:
            return (self.times_ms[0], self.times_ms[0]) if self.times_ms else None
        low, _, high = statistics.quantiles(self.times_ms, n=4, method="inclusive")
        return low, high

    def to_json(self) -> dict[str, Any]:
        low, high = self.quartiles_ms or (None, None)
        return {
            "network": self.network,
            "runtime": self.runtime,
            "ms": self.ms,
            "low_ms": low,
            "high_ms": high,
            "error": self.error if self.error is None or math.isfinite(self.error) else None,
            "memory_bytes": self.memory_bytes,
            "problem": self.problem,
        }


@dataclass
class Comparison:
    """Networks in runtimes on one example, from `compare`. The first network is what others are compared with."""

    rows: list[Timed]
    unusable: dict[str, str]  # runtimes that were left out, and why
    threads: int
    rounds: int

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(row.network for row in self.rows))

    def of(self, network: str, runtime: str) -> Timed | None:
        return next((row for row in self.rows if (row.network, row.runtime) == (network, runtime)), None)

    def fastest(self, network: str, runtimes: Sequence[str] = FLOAT32) -> Timed | None:
        """Where the network takes the least time, among runtimes that compute in float32; None if it runs in none."""
        mine = [row for row in self.rows if row.network == network and row.runtime in runtimes and row.rounds_ms]
        return min(mine, key=lambda row: row.ms or math.inf, default=None)

    def times_as_fast(self, row: Timed) -> float | None:
        """The time of the first network in its fastest float32 runtime over this one: the median of all rounds.

        Both are taken from the same round. A processor that others use too is fast for some seconds and slow for
        some, and medians of two networks may fall into different ones.
        """
        first = self.fastest(self.networks[0])
        if first is None or not row.rounds_ms:
            return None
        pairs = zip(first.rounds_ms, row.rounds_ms, strict=True)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)

    @property
    def busy(self) -> bool:
        """Other work disturbed the measurement: take its times as rough."""
        best = [row for row in map(self.fastest, self.networks) if row is not None]
        return any(spread(row.times_ms) > _BUSY for row in best)

    def to_json(self) -> dict[str, Any]:
        fastest = {network: self.fastest(network) for network in self.networks}
        return {
            "threads": self.threads,
            "clock": "processor" if self.threads == 1 else "wall",
            "rounds": self.rounds,
            "busy": self.busy,
            "processor": processor(),
            "isa": _native.isa(),
            "versions": versions(),
            "unusable": self.unusable,
            "fastest": {network: row.runtime if row else None for network, row in fastest.items()},
            "rows": [row.to_json() | {"times_as_fast": self.times_as_fast(row)} for row in self.rows],
        }

    def table(self) -> Group:
        return table_of(self.to_json())


def compare(
    networks: Mapping[str, nn.Module],
    inputs: Example | Mapping[str, Example],
    *,
    names: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = 15,
    seconds: float | None = None,
) -> Comparison:
    """Time all networks in all runtimes, their outputs compared with eager torch's before.

    Args:
        networks: by name, in evaluation mode; the first is what others are compared with.
        inputs: for all networks a tensor, or a tuple of what they take by position; or for each under its name, which
            may be a dict of what the network takes by name too.
        names: of the runtimes; all that can be used here, if not given.
        threads: as many as torch has now, if not given. Pools of threads are made once a process: compare numbers of
            threads in processes of their own.
        rounds: turns of each network in each runtime.
        seconds: after which no more than three rounds are made; none if not given.

    Returns:
        A row for each. A network that a runtime refuses, or whose outputs are off there by more than 1e-4 of their
        largest number (a tenth where it computes in bfloat16), has no time, and its row says so.

    Raises:
        InputError: no network; one in training mode or that does not take its inputs; an unknown runtime, or one asked
            for by name that cannot be used here.

    >>> found = compare({"a": nn.Conv2d(3, 4, 1).eval()}, torch.zeros(1, 3, 8, 8), names=["torch"], rounds=2)
    >>> found.fastest("a").runtime
    'torch'
    """
    if not networks:
        raise InputError("networks", "{}", "must hold at least one network")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError("rounds", rounds, "must be a whole number of at least 1")
    if isinstance(inputs, Mapping) and set(inputs) != set(networks):
        raise InputError("inputs", list(inputs), f"must be for {', '.join(networks)}, each under its name")
    chosen, unusable = choose(names)
    with torch_threads(threads):
        rows, calls = [], []
        for network, model in networks.items():
            case = Case(model, inputs[network] if isinstance(inputs, Mapping) else inputs)
            for runtime in track(chosen, f"preparing {network}"):
                row, run = _checked(network, runtime, case)
                rows.append(row)
                if run is not None:
                    calls.append((row, run))
        rounds = _take_turns(calls, rounds, math.inf if seconds is None else seconds)
        return Comparison(rows, unusable, torch.get_num_threads(), rounds)


def choose(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The runtimes to compare, and those left out with the reason.

    Raises:
        InputError: one asked for by name is unknown or cannot be used here.
    """
    reasons = {name: why_not(name) for name in (NAMES if names is None else dict.fromkeys(names))}
    unusable = {name: reason for name, reason in reasons.items() if reason is not None}
    if names is not None and unusable:
        name, reason = next(iter(unusable.items()))
        raise InputError("runtime", name, f"cannot be used here: {reason}")
    return [name for name in reasons if name not in unusable], unusable


def _checked(network: str, runtime: str, case: Case) -> tuple[Timed, Run | None]:
    """The call to time, if it gives what eager torch gives."""
    row = Timed(network, runtime)
    try:
        run = case.prepare(runtime)
    except InputError as error:
        row.problem = error.rule
        return row, None
    row.error = relative_error(run(), case.outputs)
    if row.error <= (EXACT if runtime in FLOAT32 else ROUGH):
        return row, run
    row.problem = f"gives another output: off by {row.error:.1e} of the largest number"
    return row, None


def relative_error(actual: Any, expected: Any) -> float:
    """How far the worst tensor is off, as a share of its largest number; infinite where shapes or structure differ.

    Of whole numbers, such as classes, the share that differs.

    >>> relative_error({"a": torch.tensor([1.0, 2.2])}, {"a": torch.tensor([1.0, 2.0])}) < 0.11
    True
    """
    given, wanted = ([tensor.detach() for tensor in tensors_of(outputs)] for outputs in (actual, expected))
    if [x.shape for x in given] != [x.shape for x in wanted]:
        return math.inf
    return max(map(_error, given, wanted), default=0.0)


def _error(given: Tensor, wanted: Tensor) -> float:
    equal = (given == wanted) | (given != given) & (wanted != wanted)  # NaN equals NaN here
    if bool(equal.all()):
        return 0.0
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return float((~equal).double().mean())
    sizes = wanted.abs().double()
    largest = float(sizes[sizes.isfinite()].max()) if bool(sizes.isfinite().any()) else 0.0
    off = (given - wanted).abs().double()[~equal].nan_to_num(math.inf)
    return float(off.max()) / max(largest, 1e-30)


def _take_turns(calls: Sequence[tuple[Timed, Run]], rounds: int, seconds: float) -> int:
    """The number of rounds made."""
    began = time.monotonic()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for i in track(range(rounds), "timing in turns"):
        for row, run in calls if i % 2 else reversed(calls):
            spent_s = first_s = _seconds(run, clock)
            while spent_s < _WARM_S:
                spent_s += _seconds(run, clock)
            calls_now = range(_CALLS if first_s < _LONG_S else 1)
            row.rounds_ms.append([_seconds(run, clock) * 1e3 for _ in calls_now])
        if i + 1 >= _LEAST_ROUNDS and time.monotonic() - began > seconds:
            return i + 1
    return rounds


def _seconds(run: Run, clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started


def versions() -> dict[str, str]:
    """Of what computes here."""
    found = {"separable": __version__, "torch": torch.__version__}
    for package in ("onnxruntime", "openvino"):
        if why_not(package) is None:
            found[package] = metadata.version(package)
    return found


def table_of(data: Mapping[str, Any], where: str = "") -> Group:
    """A comparison for people, from its plain data: a row for each runtime and network, and what to know of them."""
    threads = threads_in_words(data["threads"]) + (where and f", {where}")
    best = set(data["fastest"].items())
    table = Table(title=f"Milliseconds a call, {threads}", title_justify="left")
    for heading in ("runtime", "network", "ms", "middle half", "times as fast", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("runtime", "network") else "right")
    for runtime in dict.fromkeys(row["runtime"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["runtime"] == runtime]
        for row in rows:
            style = "bold" if (row["network"], runtime) in best else None
            table.add_row(runtime if row is rows[0] else "", row["network"], *cells(row), style=style)
        table.add_section()
    return Group(table, *map(Text, notes(data)))


def cells(row: Mapping[str, Any]) -> list[str]:
    """ms, middle half, times as fast and memory of a row as text."""
    memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f}"
    if row["ms"] is None:
        return ["none", "", "", memory]
    faster = "" if row["times_as_fast"] is None else f"{row['times_as_fast']:.2f}"
    return [f"{row['ms']:.3f}", f"{row['low_ms']:.3f} to {row['high_ms']:.3f}", faster, memory]


def notes(data: Mapping[str, Any]) -> list[str]:
    """What a reader of the rows has to know, a sentence each."""
    network = data["rows"][0]["network"]
    fastest = data["fastest"][network]
    said = [f"Times as fast: as {network} in its fastest float32 runtime, {fastest}."] if fastest else []
    if data["busy"]:
        said.append("The machine was busy: take times as rough, and measure again when it is not.")
    said += [f"{row['network']} in {row['runtime']}: {row['problem']}" for row in data["rows"] if row["problem"]]
    return said + [f"Without {name}: {reason}" for name, reason in data["unusable"].items()]
