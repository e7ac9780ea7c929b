"""Features inside the networks: which modules' outputs are matched, and how.

A converted network is a copy of the dense one in which convolutions were replaced under their names, so a module of the
same name and class means the same in both. Matched are the maps that residual blocks and the like give: for each layer
that was replaced, the smallest block that holds it (not a container such as nn.Sequential, and not the whole network);
where there is none, the first module run after it that both networks have. A map that the student misses by more than
the teacher's whole variance before training is no copy's and is not matched. The loss is the mean over the matched of
E (student - teacher)² / Var(teacher), channel by channel, as for an output of values.
Source: Romero et al. 2015, "FitNets", arXiv:1412.6550; here without a regressor, because channels correspond.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.distillation.variance import ChannelMoments
from separable.errors import InputError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def shape_of(tensor: Tensor) -> torch.Size:
    return tensor.shape


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class Watch:
    """What modules gave in the latest call, by name; in the order of their calls.

    keep: what is noted of a map [N, C, ...]: the map itself, or its shape alone.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] | None = None, keep: Callable[[Tensor], Any] = _itself):
        self.modules = {n: m for n, m in network.named_modules() if n and (names is None or n in names)}
        self.keep = keep
        self.given: dict[str, Any] = {}
        self.calls: dict[str, int] = {}

    @contextmanager
    def open(self) -> Iterator["Watch"]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def ran(module: nn.Module, args: Any, output: Any) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 2:
                self.given[name] = self.keep(output)

        return ran

    def clear(self) -> None:
        self.given.clear()
        self.calls.clear()

    def once(self) -> dict[str, Any]:
        """Of modules that were called once and gave a map."""
        return {name: noted for name, noted in self.given.items() if self.calls[name] == 1}


def choose(student: nn.Module, teacher: nn.Module, ours: Watch, theirs: Watch) -> list[str]:
    """Names of the modules to match by the rule above; none where names do not correspond. Both have run once."""
    mine, others = dict(student.named_modules()), dict(teacher.named_modules())
    shapes, wanted = ours.once(), theirs.once()
    order = list(theirs.calls)  # in which they were done: what holds others comes after them
    common = [n for n in order if n in wanted and wanted[n] == shapes.get(n) and type(mine[n]) is type(others[n])]
    units = [name for name in common if not isinstance(others[name], _CONTAINERS)]
    chosen: dict[str, None] = {}
    for changed in _changed(mine, others):
        blocks = [name for name in units if changed.startswith(f"{name}.")]
        later = order[order.index(changed) + 1 :] if changed in order else []
        for name in [max(blocks, key=len)] if blocks else [name for name in later if name in units][:1]:
            chosen[name] = None
    return [name for name in order if name in chosen]


def check(names: Sequence[str], student: nn.Module, teacher: nn.Module, ours: Watch, theirs: Watch) -> list[str]:
    """Names that a user gave, each of which must name a map of the same shape in both networks."""
    for name in names:
        for who, network, watch in (("student", student, ours), ("teacher", teacher, theirs)):
            if name not in dict(network.named_modules()):
                raise InputError("features", name, f"names no module of the {who}")
            if name not in watch.once():
                raise InputError("features", name, f"must be called once in the {who} and give a map [N, C, ...]")
        if ours.given[name] != theirs.given[name]:
            shapes = f"{list(ours.given[name])} in the student, {list(theirs.given[name])} in the teacher"
            raise InputError("features", name, f"gives maps of other shapes: {shapes}")
    return list(names)


class Features:
    """The modules that are matched, and the variance of what the teacher gives there."""

    def __init__(self, names: Sequence[str], student: nn.Module, teacher: nn.Module):
        self.names = list(names)
        self.student, self.teacher = Watch(student, self.names), Watch(teacher, self.names)
        self.variance: dict[str, Tensor] = {}
        self.teachers = {name: ChannelMoments() for name in self.names}
        self.missed = {name: ChannelMoments() for name in self.names}

    def look(self) -> None:
        """Take in the latest call of both, before training."""
        for name in self.names:
            given, target = self.student.given[name], self.teacher.given[name]
            self.teachers[name].add(target, 1)
            self.missed[name].add(given - target, 1)
        self.clear()

    def settle(self, only_alike: bool) -> None:
        """End the look: variances are known. only_alike: leave out what the student misses by more than all of it."""
        self.variance = {name: self.teachers[name].variance() for name in self.names}
        if only_alike:
            self.names = [name for name in self.names if self._missed_share(name) < 1]
            self.variance = {name: self.variance[name] for name in self.names}

    def _missed_share(self, name: str) -> float:
        missed = self.missed[name]
        return float((missed.square / missed.count / self.variance[name].flatten()).mean())

    @contextmanager
    def open(self) -> Iterator[None]:
        with self.student.open(), self.teacher.open():
            yield

    def loss(self) -> Tensor:
        """Of the latest call of both; forgets what they gave."""
        total = torch.zeros(())
        for name in self.names:
            error = (self.student.given[name] - self.teacher.given[name]).square() / self.variance[name]
            total = total + error.mean() / len(self.names)
        self.clear()
        return total

    def clear(self) -> None:
        self.student.clear()
        self.teacher.clear()


def _changed(mine: dict[str, nn.Module], others: dict[str, nn.Module]) -> list[str]:
    """Modules of the teacher that the student has not, or has of another class or other shapes; the outermost alone."""
    found: list[str] = []
    for name, module in others.items():
        if name and not any(name.startswith(f"{outer}.") for outer in found):
            twin = mine.get(name)
            if twin is None or type(twin) is not type(module) or _shapes(twin) != _shapes(module):
                found.append(name)
    return found


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters(recurse=False)]
