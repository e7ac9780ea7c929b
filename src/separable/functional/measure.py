"""Time ways of computing the same, to take the fastest: for choices that are made where a program runs."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

HOPELESS = 3.0  # times the first way's time, from which another is run once only
FIRST_CALL = 3e-3  # seconds that torch may spend on preparing a shape that it has not met

Run = Callable[[], Any]
Way = TypeVar("Way")


def clock_of_work() -> Callable[[], float]:
    """On one thread its processor time, which leaves out the turns of other programs."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds_of(run: Run) -> float:
    clock = clock_of_work()
    start = clock()
    run()
    return clock() - start


def fastest(ways: Mapping[Way, Run], rounds: int, wanted: Collection[Way] = (), in_a_row: int = 1) -> dict[Way, float]:
    """The least seconds of each way, in turns after one run that is not counted; the first is what others must beat.

    A way whose first run says that it has no hope is left out, but for those that are wanted in any case. In each turn
    a way runs so many times in a row: after the first run the caches hold what it reads.
    """
    once = {name: seconds_of(run) for name, run in ways.items()}
    most = HOPELESS * next(iter(once.values())) + FIRST_CALL
    left = {name: run for name, run in ways.items() if once[name] <= most or name in wanted}
    if len(left) == 1:
        return {name: once[name] for name in left}
    least = dict.fromkeys(left, float("inf"))
    for _ in range(rounds):
        for name, run in left.items():
            least[name] = min(least[name], *(seconds_of(run) for _ in range(in_a_row)))
    return least


@contextmanager
def reproducible() -> Iterator[None]:
    """Ask for the same kernels in every run: a run that goes on must not choose others by a measurement of its own."""
    asked = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it finds faults, and takes a pass over each new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=only_warns)
        memory.fill_uninitialized_memory = fills
