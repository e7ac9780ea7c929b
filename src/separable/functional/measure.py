"""Time ways of computing the same, to take the fastest: for choices that are made where a program runs."""

import time
from collections.abc import Callable, Mapping
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


def fastest(ways: Mapping[Way, Run], rounds: int) -> dict[Way, float]:
    """The least seconds of each way, in turns after one run that is not counted; the first is what others must beat.

    A way whose first run says that it has no hope is left out.
    """
    once = {name: seconds_of(run) for name, run in ways.items()}
    fixed = next(iter(once.values()))
    left = {name: run for name, run in ways.items() if once[name] <= HOPELESS * fixed + FIRST_CALL}
    if len(left) == 1:
        return {name: once[name] for name in left}
    least = dict.fromkeys(left, float("inf"))
    for _ in range(rounds):
        for name, run in left.items():
            least[name] = min(least[name], seconds_of(run))
    return least
