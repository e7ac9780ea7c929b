"""The networks as they run in training: a faster twin of the student on its parameters, the teacher without autograd.

On processors the twin holds our depthwise convolutions and batch norms and its filters lie channels last, as its inputs
do: half of the time of a step in torch's default layout. The teacher runs in `accelerate`'s native program, unless
features inside it are read. Measured in benchmarks/distill_steps.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable.acceleration import Accelerated, accelerate
from separable.conversion.batches import MISFITS, run
from separable.conversion.distillation.data import Batch, Source, read
from separable.conversion.distillation.loss import by_name
from separable.conversion.distillation.processes import Processes
from separable.errors import InputError
from separable.progress import say


class Pair:
    """Student and teacher on the same batches."""

    def __init__(self, student: nn.Module, teacher: nn.Module, twin: nn.Module):
        self.student, self.teacher, self.twin, self.guide = student, teacher, twin, teacher
        self._planned: set[str] = set()

    def prepare(self, are_features_read: bool) -> None:
        """Let the teacher run in native kernels, unless features inside it are read."""
        place = next(self.teacher.parameters(), torch.empty(0))
        if not are_features_read and place.device.type == "cpu" and place.dtype == torch.float32:
            with suppress(InputError):  # it is accelerated already
                self.guide = accelerate(self.teacher, tune=False)  # fixed kernels: a resumed run gives the same bits

    def read(self, raw: Any, source: Source, processes: Processes | None = None) -> Batch:
        """A batch of `source`, of which this one of several processes takes its share."""
        place = next(self.student.parameters())
        share = (0, 1) if processes is None or source.is_shared_out else (processes.rank, processes.count)
        return read(raw, source.name, place.device, place.dtype, share)

    @torch.no_grad()
    def teach(self, batch: Batch, source: str) -> Any:
        """What the teacher gives."""
        self._plan(batch)
        target = run(self.guide, batch.inputs, source, "the teacher")
        if not all(bool(torch.isfinite(tensor).all()) for _, tensor in by_name(target)):
            raise InputError("teacher", type(self.teacher).__name__, f"gives NaN or infinite values for {source}")
        return target

    def _plan(self, batch: Batch) -> None:
        """An accelerated network may answer its first call by torch, in other bits: a resumed run must not see them."""
        if isinstance(self.guide, Accelerated):
            shapes = str(batch.inputs)
            if shapes not in self._planned:
                self._planned.add(shapes)
                with suppress(*MISFITS):  # which the call itself will tell
                    self.guide.plan(*batch.inputs.args, **batch.inputs.named)

    def give(self, network: nn.Module, batch: Batch, source: str) -> Any:
        """What the student gives, run as `network`."""
        return run(network, batch.inputs, source, "the student")


@contextmanager
def twin(student: nn.Module) -> Iterator[nn.Module]:
    """A network of faster layers on the student's own parameters and buffers, so that to train one is to train both."""
    place = next(student.parameters())
    if place.device.type != "cpu" or place.dtype != torch.float32:
        yield student
        return
    try:
        network = accelerate(student, training=True)
    except InputError as error:
        say(f"trained as it is, without faster layers: {error.rule}")
        network = student
    _tie(network, student)
    moved = _to_channels_last(student)
    try:
        yield network
    finally:
        for parameter in moved:
            parameter.data = parameter.data.contiguous()
        _tie(student, network)  # a module may have put new buffers in place of the shared ones


def _tie(network: nn.Module, other: nn.Module) -> None:
    """Let `network` hold the parameters and buffers that `other` holds under the same names."""
    for name, module in other.named_modules(remove_duplicate=False):
        tied = network.get_submodule(name)
        tied._parameters.update(module._parameters)
        tied._buffers.update(module._buffers)


def _to_channels_last(student: nn.Module) -> list[nn.Parameter]:
    """Change how filters lie in memory; those that lay otherwise, to be changed back."""
    moved = []
    for parameter in student.parameters():
        if parameter.dim() in (4, 5) and parameter.is_contiguous():
            last = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=last)
            moved.append(parameter)
    return moved


@contextmanager
def modes_kept(*networks: nn.Module) -> Iterator[None]:
    """Each module comes back in the mode, train or eval, that it was in."""
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def set_training(student: nn.Module, freeze_norms: bool) -> None:
    """Training mode; batch norms that are frozen, or shall be, keep their statistics."""
    student.train()
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            is_frozen = module.affine and not any(p.requires_grad for p in module.parameters())
            if freeze_norms or is_frozen:
                module.eval()
