"""What a network costs, layer by layer: on paper, on this machine, and made separable."""

import os
from pathlib import Path

import torch

from separable import cost, report
from separable.commands.network import example_of, open_network
from separable.commands.result import Result
from separable.errors import InputError, need


def run(source: str, weights: Path | None, shape: str | None, html: Path | None, threads: int | None) -> Result:
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    if html is not None:
        check_page(html)
    network = open_network(source, weights)
    profile = cost.profile(network.model, example_of(network, shape))
    data = {"network": network.name, **profile.to_json()}
    closing = ""
    if html is not None:
        try:
            report.profile_page(data, html)
        except InputError as error:
            raise InputError("--html", html, error.rule) from error
        closing = f"Page written: {html}"
    return Result(data, [profile.table()], closing)


def check_threads(threads: int) -> None:
    if threads > 4 * (os.cpu_count() or 1):
        raise InputError("--threads", threads, f"is far more than the {os.cpu_count()} processors here")


def check_page(html: Path, option: str = "--html") -> None:
    """Refuse before the measuring, not after it, a page that cannot be made or written."""
    for package in ("jinja2", "matplotlib"):
        need(package, "deploy", "for pages")
    if html.is_dir():
        raise InputError(option, html, "is a folder; name the file to write")
    if not os.access(html.parent, os.W_OK):
        raise InputError(option, html, "is not in a folder that can be written to")
