"""Networks timed in a process of their own, one for each number of threads: pools of threads are made once a process.

What is measured first there is memory, in forks of it, while it runs no other thread.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable import progress, runtimes
from separable.commands.network import open_network
from separable.errors import InputError, first_line

_ENDING_S = 10.0  # that a process with its results told may take to clean up after runtimes


@dataclass
class Named:
    """A network as it is opened again in another process, and the shapes of its inputs without the batch."""

    name: str
    source: str
    weights: Path | None
    shapes: list[tuple[int, ...]]


@dataclass
class Job:
    """What to measure on one number of threads; all runtimes that can be used here where none are named."""

    networks: list[Named]
    batches: list[int]
    threads: int
    names: list[str] | None
    rounds: int


def inputs_of(network: Named, model: nn.Module, batch: int) -> tuple[Tensor, ...]:
    """Random numbers of the network's own type; the same in every process."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((batch, *shape), generator=generator).to(dtype) for shape in network.shapes)


def measured(job: Job) -> list[dict[str, Any]]:
    """A comparison for each batch, as plain data with "batch", from a fresh process.

    Raises:
        InputError: what the process found wrong with what was asked.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=False)
    with _environment(OPENBLAS_NUM_THREADS="1"):  # numpy would start its threads as it is imported
        process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that measured on {job.threads} threads ended: {process.exitcode}") from None
    else:
        process.join(_ENDING_S)
    finally:
        process.terminate()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _work(job: Job, sender: Connection) -> None:
    try:
        with progress.shown():
            sender.send(_comparisons(job))
    except InputError as error:
        sender.send(error)
    except Exception as error:  # of a type that may not travel
        sender.send(RuntimeError(f"{type(error).__name__}: {first_line(error)}"))
    except KeyboardInterrupt:
        pass  # the other process says so


def _comparisons(job: Job) -> list[dict[str, Any]]:
    torch.set_num_threads(1)  # until memory is measured
    with progress.hidden():
        models = {network.name: open_network(network.source, network.weights).model for network in job.networks}
    examples = {
        batch: {network.name: inputs_of(network, models[network.name], batch) for network in job.networks}
        for batch in job.batches
    }
    chosen, _ = runtimes.choose(job.names)
    cases = [(batch, name, runtime) for batch in job.batches for name in models for runtime in chosen]
    memory = {
        (batch, name, runtime): runtimes.peak_bytes(runtime, models[name], examples[batch][name], job.threads)
        for batch, name, runtime in progress.track(cases, "measuring memory")
    }
    torch.set_num_threads(job.threads)
    found = []
    for batch in job.batches:
        progress.say(f"Batch {batch}, threads {job.threads}")
        compared = runtimes.compare(models, examples[batch], names=job.names, rounds=job.rounds)
        for row in compared.rows:
            row.memory_bytes = memory[batch, row.network, row.runtime]
        found.append({"batch": batch, **compared.to_json()})
    return found


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
