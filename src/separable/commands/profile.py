"""What a network costs, layer by layer: on paper, on this machine, and made separable."""

from pathlib import Path

import torch

from separable import cost, report
from separable.commands.network import example_of, open_network
from separable.commands.result import Result


def run(source: str, weights: Path | None, shape: str | None, html: Path | None, threads: int | None) -> Result:
    if threads is not None:
        torch.set_num_threads(threads)
    network = open_network(source, weights)
    profile = cost.profile(network.model, example_of(network, shape))
    data = {"network": network.name, **profile.to_json()}
    closing = ""
    if html is not None:
        report.profile_page(data, html)
        closing = f"Page written: {html}"
    return Result(data, [profile.table()], closing)
