"""Examples kept from one pass over the data: a random sample to try layers on, and the few that a page shows.

Layers are tried on a sample in two strata, the examples whose answer changed and the others. Changed answers are few,
and only they and what a swap breaks tell layers apart, so they are preferred, up to half of the room. To count them
alone would flatter every layer: whatever moves the outputs turns some of them back. So the others are sampled too, and
each stratum counts by its share of the data, which leaves the estimates without bias.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from separable.inputs import Inputs


class Highest:
    """The inputs with the highest priorities among all that were offered, at most `room` of them."""

    def __init__(self, room: int):
        self.room, self.offered = room, 0
        self._heap: list[tuple[float, int, Inputs]] = []

    def offer(self, priority: float, number: int, inputs: Callable[[], Inputs]) -> None:
        """`inputs` is called only where they are kept."""
        self.offered += 1
        if len(self._heap) < self.room:
            heapq.heappush(self._heap, (priority, number, inputs()))
        elif self._heap and (priority, number) > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (priority, number, inputs()))

    def narrow(self, room: int) -> None:
        """Never keep more than `room` again; of random priorities the rest is still a fair sample."""
        self.room = room
        while len(self._heap) > room:
            heapq.heappop(self._heap)

    def ranked(self) -> list[tuple[int, Inputs]]:
        """(number, inputs), the highest priority first."""
        return [(number, inputs) for _, number, inputs in sorted(self._heap, key=lambda kept: kept[:2], reverse=True)]


@dataclass
class Kept:
    """One example of the sample."""

    number: int
    inputs: Inputs
    changed: bool


class Sample:
    """At most `room` examples of a stream, drawn at random within each of the two strata."""

    def __init__(self, room: int, seed: int):
        self._room, self._draw = room, random.Random(seed)  # noqa: S311 - a sample, no secret
        self._changed, self._others = Highest(room), Highest(room)

    def offer(self, number: int, changed: bool, inputs: Callable[[], Inputs]) -> None:
        """One more example. Each stratum may fill what the other does not use, and is sure of half."""
        chosen, other = (self._changed, self._others) if changed else (self._others, self._changed)
        half = self._room // 2 if chosen is self._others else self._room - self._room // 2
        other.narrow(max(self._room - min(chosen.offered + 1, half), 0))
        chosen.offer(self._draw.random(), number, inputs)

    @property
    def strata(self) -> dict[bool, int]:
        """How many examples of the data are changed (True), and are not."""
        return {True: self._changed.offered, False: self._others.offered}

    def in_turn(self) -> list[Kept]:
        """The sample in random order, both strata in proportion, so that any first part of it is a sample as well."""
        placed = []
        for changed, stratum in ((True, self._changed), (False, self._others)):
            kept = stratum.ranked()
            placed += [(i / len(kept), not changed, Kept(n, inputs, changed)) for i, (n, inputs) in enumerate(kept)]
        return [kept for _, _, kept in sorted(placed, key=lambda place: place[:2])]
