"""Accuracy against time: networks for several shares of the fastest dense network's time, from one table of forms."""

from typing import Any

from rich.table import Table

from separable import conversion
from separable.commands.evaluate import accuracy
from separable.data import ImageSet


def pareto(study: conversion.Study, dense_top1: float, test: ImageSet) -> list[dict[str, Any]]:
    """The dense network, then each network that the study finds, with its top-1 on the test images."""
    found: list[dict[str, Any]] = []
    for done in study.pareto():
        if not found:
            found.append(_point("dense", done.dense_ms, 1.0, done.macs_before, done.params_before, dense_top1))
        name = f"latency {done.share:.2f}"
        top1 = accuracy(done.model, test.batches(256, description=f"testing {name}")).top1
        found.append(_point(name, done.ms, done.times_as_fast, done.macs_after, done.params_after, top1))
    return found


def _point(name: str, ms: float, faster: float, macs: int, params: int, top1: float) -> dict[str, Any]:
    return {"name": name, "ms": ms, "times_as_fast": faster, "macs": macs, "params": params, "top1": top1}


def pareto_table(points: list[dict[str, Any]]) -> Table:
    table = Table(title="Accuracy against time, no gradient step", title_justify="left")
    for heading in ("network", "ms", "times as fast", "top-1", "MMACs", "parameters"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for one in points:
        cells = [f"{one['ms']:.3f}", f"{one['times_as_fast']:.2f}", f"{one['top1']:.2%}"]
        table.add_row(one["name"], *cells, f"{one['macs'] / 1e6:,.2f}", f"{one['params']:,}")
    return table
