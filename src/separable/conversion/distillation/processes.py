"""One run in several processes, started by torch's own launcher: gradients averaged, data shared out, one that writes.

    torchrun --nproc-per-node 2 train.py

Every process walks the same batches and takes its share of each (rows rank, rank + processes, ...), so that a step is
that of one process on the whole batch; batches of a loader with torch's DistributedSampler are shared out already.
Gradients are averaged by torch's DistributedDataParallel.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from separable.progress import hidden

_TIMEOUT = timedelta(minutes=30)  # of one waiting for another, which may be validating or writing


class Processes:
    """This process among those of the run; alone where no launcher started several."""

    def __init__(self, rank: int = 0, count: int = 1):
        self.rank, self.count = rank, count

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def quiet(self) -> AbstractContextManager[None]:
        """Inside it only the process that writes shows progress."""
        return nullcontext() if self.writes else hidden()

    def averaging(self, network: nn.Module) -> nn.Module:
        """The network to call in training: its backward averages gradients over the processes."""
        if self.count == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            return DistributedDataParallel(network, find_unused_parameters=True)

    def weight(self, examples: int) -> float:
        """By which this process multiplies its mean loss, so that the average of all is the mean over all examples."""
        return 1.0 if self.count == 1 else examples * self.count / self.sum([examples])[0]

    def sum(self, values: list[float]) -> list[float]:
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def same(self, value: float) -> float:
        """What the first process has."""
        if self.count == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.broadcast(held, 0)
        return float(held)

    def object(self, value: Any) -> Any:
        """What the first process has, whatever it is."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0)
        return held[0]

    def align(self, network: nn.Module) -> None:
        """Parameters of the first process everywhere; floating-point buffers (batch-norm statistics) averaged."""
        if self.count == 1:
            return
        for parameter in network.parameters():
            plain = parameter.detach().contiguous()  # whatever its memory format
            dist.broadcast(plain, 0)
            parameter.detach().copy_(plain)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.count
            else:
                dist.broadcast(buffer, 0)

    def seed(self) -> None:
        """The same random numbers everywhere from here on: the same batches, if a loader draws them from torch."""
        if self.count > 1:
            torch.manual_seed(int(self.same(float(torch.randint(2**31, ()).item()))))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of torch.distributed where it runs, else those of the launcher's environment, else this one."""
    if not dist.is_available():
        yield Processes()
    elif dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()


def _device() -> Any:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
