"""Lay the results of steps into one workspace: two that are never needed at once share their place."""

from separable.acceleration.places import Memory
from separable.acceleration.steps import Step

_LINE = 16  # floats in 64 bytes


def lay_out(steps: list[Step], outside: set[Memory]) -> tuple[dict[Memory, int], int]:
    """Offset of each run of memory in floats, a multiple of 64 bytes, and how many floats they need together.

    Largest first, each at the lowest place where it overlaps none that lives at the same time.
    """
    lives: dict[Memory, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        made = [memory for memory in (step.y, step.sums) if memory is not None]
        for memory in (*made, *step.reads):
            if memory not in outside:
                lives[memory] = (lives.get(memory, (i, i))[0], i)
    offsets: dict[Memory, int] = {}
    total = 0
    for memory in sorted(lives, key=lambda m: -m.floats):
        first, last = lives[memory]
        neighbours = [m for m in offsets if lives[m][0] <= last and first <= lives[m][1]]
        at = 0
        for other in sorted(neighbours, key=offsets.__getitem__):
            if at + memory.floats <= offsets[other]:
                break
            at = max(at, offsets[other] + -(-other.floats // _LINE) * _LINE)
        offsets[memory] = at
        total = max(total, at + -(-memory.floats // _LINE) * _LINE)
    return offsets, total
