"""Compute steps with torch, on the same runs of memory: the judge of native programs, and what runs without them."""

from separable.acceleration.steps import Runs, Step


def run(steps: list[Step], runs: Runs) -> None:
    """Compute every step in order; what they make is added to `runs`."""
    for step in steps:
        step.run(runs)
