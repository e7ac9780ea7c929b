"""Count what a network costs before it runs: multiply-adds, parameters, bytes moved, layer by layer.

Counts are exact for one forward pass on the meta device, where no arithmetic is done; time is never guessed here (see
profile.py). Units are in the names: _macs, bytes. One MAC is 2 FLOPs. The rule for each operation: operations.py.
Source: Howard et al. 2017, "MobileNets", arXiv:1704.04861, section 3.1; Williams et al. 2009, "Roofline" (intensity).
"""

import copy
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import separable.errors
from separable.cost import trace
from separable.cost.operations import PRODUCTS, Operation
from separable.errors import InputError
from separable.inputs import Example, Inputs

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class LayerCount:
    """What one layer costs in one pass, over all its calls.

    A module whose work is of several kinds (attention and the products before it) has one row for each kind.
    """

    name: str
    kind: str  # one of operations.PRODUCTS, else norm, activation, pool, elementwise, copy, unused
    params: int = 0
    macs: int = 0
    training_macs: int = 0
    bytes: int = 0
    other_ops: int = 0
    calls: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    weight_shape: tuple[int, ...] = ()

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved: (2 * macs + other_ops) / bytes."""
        return (2 * self.macs + self.other_ops) / self.bytes if self.bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "intensity": self.intensity}


@dataclass
class Count:
    """What a network costs: totals, and a row for each layer in the order of first use."""

    layers: list[LayerCount] = field(default_factory=list)

    @property
    def params(self) -> int:
        """Trainable and frozen parameters, shared ones once, those that the pass did not use included."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, linear layers and attention products, forward."""
        return sum(layer.macs for layer in self.layers)

    @property
    def training_macs(self) -> int:
        """Multiply-adds of a training step: forward, gradients of inputs, gradients of weights."""
        return sum(layer.training_macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """The least that is moved when layers run one after another: inputs, weights and outputs, each once a call."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def other_ops(self) -> int:
        """Arithmetic that is not in macs: normalisation, activation, pooling, sums."""
        return sum(layer.other_ops for layer in self.layers)

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved: (2 * macs + other_ops) / bytes."""
        return (2 * self.macs + self.other_ops) / self.bytes if self.bytes else 0.0

    def table(self) -> "Table":
        """One line for each layer that has MACs, one for each kind of the others, and the total, for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(title="Cost on paper, one forward pass", box=SIMPLE_HEAD, padding=0)
        table.add_column("layer", overflow="fold")
        table.add_column("kind", no_wrap=True)
        for heading in ("params", "MMACs", "to train", "MB", "FLOP/B"):
            table.add_column(heading, justify="right", no_wrap=True)
        rest: dict[str, LayerCount] = {}
        for layer in self.layers:
            if layer.kind in PRODUCTS:
                table.add_row(layer.name or "(top)", layer.kind, *_cells(layer))
            else:
                row = rest.setdefault(layer.kind, LayerCount("", layer.kind))
                row.calls += 1
                row.params, row.bytes = row.params + layer.params, row.bytes + layer.bytes
                row.other_ops += layer.other_ops
        table.add_section()
        for row in rest.values():
            table.add_row(f"{row.calls} layers", row.kind, *_cells(row))
        table.add_section()
        table.add_row("[bold]total", "", *_cells(self))
        return table

    def to_json(self) -> dict[str, Any]:
        """The same as numbers and text: totals, and "layers", a list of dicts."""
        totals = ("params", "macs", "training_macs", "bytes", "other_ops", "intensity")
        return {**{name: getattr(self, name) for name in totals}, "layers": [layer.to_json() for layer in self.layers]}


def count(model: nn.Module, example: Example) -> Count:
    """Count what one forward pass of `model` on `example` costs; nothing is computed and the model is left as it is.

    The network is counted in the mode it is in (`model.eval()` for inference: layers such as dropout then vanish).
    A training step is the forward pass, once more for each weight that needs a gradient, and once more for each input
    that hangs on such a weight: the first layer needs no gradient of its input, a frozen layer none of its weight.

    Args:
        model: any module; on any device, the meta device included. Values of its tensors are never read. Of a model
            that torch.compile made, the network inside is counted.
        example: the input, a tensor [N, ...]; of several a tuple of what is taken by position, or a dict of what is
            taken by name. Only shapes and types matter.

    Returns:
        A `Count`: .macs .params .training_macs .bytes .other_ops .intensity .layers, .table() and .to_json().

    Raises:
        InputError: the example does not fit the model (names the layer that refused it), or what the model does depends
            on the values of its tensors, which the meta device does not have (names the line that reads them).

    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1.

    >>> from torch import nn
    >>> counted = count(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10))
    >>> counted.macs == 10 * 10 * 8 * 3 * 3 * 3, counted.params
    (True, 224)
    """
    model = uncompiled(model)
    inputs = as_inputs(model, example)
    with torch.inference_mode(False), torch.no_grad():
        twin, on_meta = _twin(model), inputs.map(trace.meta_twin)
        ledger, stack = Ledger(twin), trace.ModuleStack(twin)
        mode = trace.Trace(twin, stack, trace.Gradients(twin, on_meta.tensors()), ledger.add)
        mode.prepare = trace.on_meta()
        with stack.watch(), mode, trace.FusedAttention(mode):
            try:
                twin(*on_meta.args, **on_meta.named)
            except Exception as error:
                raise misfit(error, stack.where(), inputs) from error
    return Count(ledger.rows())


class Ledger:
    """Adds operations up into one row for each layer and kind."""

    def __init__(self, model: nn.Module):
        self._rows: dict[tuple[str, str], LayerCount] = {}
        self._unclaimed = {id(p): (name, p) for name, p in model.named_parameters()}

    def add(self, name: str, op: Operation, _: Any) -> None:
        row = self._rows.setdefault((name, op.kind), LayerCount(name, op.kind))
        if row.calls == 0:
            row.input_shape = () if op.input is None else tuple(op.input.shape)
            row.output_shape = tuple(op.result.shape)
            row.weight_shape = tuple(op.parameters[0].shape) if op.parameters else ()
        for parameter in op.parameters:  # the first row that uses a parameter has it; shared ones are counted once
            if self._unclaimed.pop(id(parameter), None):
                row.params += parameter.numel()
        row.calls += 1
        row.macs += op.macs
        row.training_macs += op.macs + op.gradient_macs
        row.bytes += op.bytes
        row.other_ops += op.other_ops

    def rows(self) -> list[LayerCount]:
        unused: dict[str, LayerCount] = {}
        for name, parameter in self._unclaimed.values():
            owner = name.rpartition(".")[0]
            unused.setdefault(owner, LayerCount(owner, "unused")).params += parameter.numel()
        return [*self._rows.values(), *unused.values()]


def as_inputs(model: nn.Module, example: Example) -> Inputs:
    """The example as what the model is called with, once both are known to be what they should be."""
    if not isinstance(model, nn.Module):
        raise InputError("model", type(model).__name__, "must be a torch.nn.Module")
    inputs = Inputs.of(example)
    if not inputs.tensors():
        raise InputError("example", type(example).__name__, "must be a tensor, or a tuple or dict of tensors")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InputError("model", name, "has no shape yet; run the model once before counting it")
    return inputs


def misfit(error: Exception, where: str, inputs: Inputs) -> InputError:
    """What is wrong with an example, in one sentence with the layer that refused it."""
    shown = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in inputs.tensors())
    reason = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, (RuntimeError, ValueError)) or not reason:
        reason = f"{type(error).__name__}: {reason}"
    line = _users_line(error) if "meta tensor" in reason.lower() else ""
    if line:
        return InputError("example", shown, f"{where} reads values, which a count does not have, in {line} ({reason})")
    return InputError("example", shown, f"{where} refuses it: {reason}")


def uncompiled(model: Any) -> Any:
    """The network inside what torch.compile made of one, which has the same parameters; anything else as it is."""
    return getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model


def _users_line(error: Exception) -> str:
    """The innermost line that is neither torch's nor this library's; empty if there is none."""
    ours = [str(Path(file).parent) for file in (torch.__file__, separable.errors.__file__)]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(ours))]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _twin(model: nn.Module) -> nn.Module:
    """A copy whose tensors are on the meta device: nothing large is copied, nothing in the original can change."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = trace.meta_twin(tensor)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError("model", type(model).__name__, f"cannot be copied to be counted: {reason}") from error


def _cells(row: Any) -> list[str]:
    trained = f"{row.training_macs / 1e6:,.2f}" if row.training_macs else ""
    macs = f"{row.macs / 1e6:,.2f}" if row.macs else ""
    return [f"{row.params:,}", macs, trained, f"{row.bytes / 1e6:,.2f}", f"{row.intensity:,.1f}"]
