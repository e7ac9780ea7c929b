"""The line that matters of a conversion: how much faster than the fastest dense network here, and at what loss."""

from collections.abc import Mapping
from typing import Any

from separable.runtimes import threads_in_words

_LEAST_POINTS = 0.005  # below which an accuracy counts as the same


def headline(conversion: Mapping[str, Any], points: float | None = None) -> str:
    """From `Conversion.to_json()`. points: of accuracy, gained or (below 0) lost."""
    comparison, target = conversion["comparison"], conversion["target"]
    batch, threads = conversion["batch"], comparison["threads"]
    if not any(layer["form"] for layer in conversion["layers"]):
        return (
            "Nothing was converted: no form of any layer that the budget allows makes the network faster "
            f"({target}, batch {batch}, {threads_in_words(threads)}); this is the dense network"
        )
    return beside_dense(conversion["times_as_fast"], points, target, comparison["fastest"]["dense"], batch, threads)


def beside_dense(faster: float, points: float | None, runtime: str, dense: str, batch: int, threads: int) -> str:
    """faster: times, than the dense network in its fastest runtime, which is named only where it is another."""
    if faster >= 1:
        said = f"{faster:.2f} times as fast as the fastest dense network here"
    else:
        said = f"Slower: it takes {1 / faster:.2f} times as long as the fastest dense network here"
    place = runtime if runtime == dense else f"{runtime} against {dense}"
    lost = "" if points is None else f", {points_in_words(points)}"
    return f"{said}{lost} ({place}, batch {batch}, {threads_in_words(threads)})"


def points_in_words(points: float) -> str:
    if abs(points) < _LEAST_POINTS:
        return "the same accuracy"
    return f"{abs(points):.2f} points {'lost' if points < 0 else 'gained'}"
