"""Watch a network run, one aten operation at a time, and say which layer each operation belongs to.

An operation belongs to the module that owns the parameter or buffer it uses, which is how a layer that computes with
its children's weights shows as those children; one that uses none belongs to the innermost module that is running.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from separable.cost import operations
from separable.cost.operations import Operation

OnOperation = Callable[[str, Operation, Any], None]  # name of the layer, what was done, what `around` gave


class ModuleStack:
    """Names of the modules that are running, innermost last; after an error, which of them failed."""

    def __init__(self, model: nn.Module):
        self._model = model
        self.names = {id(module): name for name, module in model.named_modules()}
        self.running: list[str] = [""]
        self._failed: tuple[nn.Module, tuple] = (model, ())
        self._error: Exception | None = None

    @contextmanager
    def watch(self) -> Iterator["ModuleStack"]:
        """Note each module's forward while this is open.

        Not by hooks: a layer may take another path where its parts are hooked, as separable layers do, and the path
        to be counted and timed is the one that users run.
        """
        own = {module: vars(module).get("forward") for module in self._model.modules()}
        try:
            for module in own:
                vars(module)["forward"] = self._noting(module, module.forward)
            yield self
        finally:
            for module, forward in own.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = forward

    def _noting(self, module: nn.Module, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def noted(*args, **kwargs):
            self.running.append(self.names[id(module)])
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                if error is not self._error:  # the modules around the one that failed see the same error pass
                    self._error, self._failed = error, (module, args)
                raise
            finally:
                self.running.pop()

        return noted

    def where(self) -> str:
        """The innermost layer that failed in words: its name, what it is, the shapes it was given."""
        module, args = self._failed
        name = self.names[id(module)]
        given = ", ".join(str(list(t.shape)) for t in args if isinstance(t, Tensor))
        kind = f"{type(module).__name__}({'' if list(module.children()) else module.extra_repr()})"
        layer = f"layer {name!r} ({kind})" if name else kind
        return f"{layer} given {given}" if given else layer


class Owners:
    """Which module owns a parameter, a buffer, or a tensor made of those alone (a transposed or normalised weight)."""

    def __init__(self, model: nn.Module):
        self._names: dict[int, list[str]] = {}
        self._kept: list[Tensor] = []  # an id stays a tensor's own as long as the tensor lives
        self._made_of: dict[int, tuple[Tensor, ...]] = {id(p): (p,) for p in model.parameters()}
        everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        for name, tensor in everything:
            self._names.setdefault(id(tensor), []).append(name.rpartition(".")[0])
            self._kept.append(tensor)

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._names

    def of(self, tensor: Tensor, running: str) -> str:
        """The owner's name; of several (shared weights) the one that is running."""
        names = self._names[id(tensor)]
        inside = [n for n in names if n == running or n.startswith(f"{running}.")]
        return (inside or names)[0]

    def parameters(self, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The parameters that these tensors are or are made of."""
        return tuple({id(p): p for t in operands for p in self._made_of.get(id(t), ())}.values())

    def derive(self, result: Tensor, operands: tuple[Tensor, ...]) -> None:
        """A result of owned tensors alone is owned as the first of them is."""
        if operands and all(id(t) in self._names for t in operands) and id(result) not in self._names:
            self._names[id(result)] = self._names[id(operands[0])]
            self._made_of[id(result)] = self.parameters(operands)
            self._kept.append(result)


class Gradients:
    """Which tensors a training step needs gradients of: those that hang on a trainable parameter."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]):
        self._needed = {id(t): t for t in (*model.parameters(), *inputs) if t.requires_grad}

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._needed

    def flow(self, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        if name != "aten::detach" and any(id(t) in self._needed for t in operands):
            self._needed.update((id(t), t) for t in results if t.is_floating_point() or t.is_complex())


class Trace(TorchDispatchMode):
    """Reports every operation with its layer to `on_operation`; `around` runs it (and may time it)."""

    def __init__(
        self, model: nn.Module, stack: ModuleStack, gradients: Gradients, on_operation: OnOperation, around=None
    ):
        super().__init__()
        self.stack, self.owners, self.gradients = stack, Owners(model), gradients
        self.on_operation, self.around = on_operation, around or _run
        self.prepare: Callable[[Any, tuple, dict], tuple[tuple, dict]] | None = None
        self.fused = False  # inside an operation that is reported as a whole

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.prepare is not None:
            args, kwargs = self.prepare(func, args, kwargs)
        output, extra = self.around(func, args, kwargs)
        operands = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        results = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
        if not self.fused:
            op = operations.describe(func, args, kwargs, output, self.owners.__contains__, self.gradients.__contains__)
            if op is not None:
                self.report(op, extra)
        self.gradients.flow(func._schema.name, operands, results)
        for result in results:
            self.owners.derive(result, tuple(operands))
        return output

    def report(self, op: Operation, extra: Any) -> None:
        running = self.stack.running[-1]
        owned = [t for t in op.operands if t in self.owners]
        others = [t for t in op.operands if t not in self.owners]
        op.weight, op.input = next(iter(owned), None), next(iter(others), None)
        op.parameters = self.owners.parameters(op.operands) if others else ()  # else it only prepares a weight
        self.on_operation(self.owners.of(owned[0], running) if owned else running, op, extra)


class FusedAttention(TorchFunctionMode):
    """Reports scaled_dot_product_attention as one operation where the device has it as several.

    Its least bytes are those of query, key, value, mask and result: the scores need never reach memory.
    """

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.trace.fused:
            return func(*args, **kwargs)
        self.trace.fused = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.trace.fused = False
        operands = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        op = Operation("attention", operands, result, bytes=operations.bytes_moved(operands, result))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        needs_gradient = self.trace.gradients.__contains__
        operations.attention(op, *(named[n] for n in ("query", "key", "value")), needs_gradient=needs_gradient)
        self.trace.report(op, None)
        return result


def _run(func, args, kwargs):
    return func(*args, **kwargs), None


def on_meta() -> Callable[[Any, tuple, dict], tuple[tuple, dict]]:
    """A `prepare` that moves to the meta device whatever a network makes elsewhere while it runs."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # the original beside its twin, so that its id stays its own

    def twin(value):
        if isinstance(value, Tensor) and value.device.type != "meta":
            if id(value) not in moved:
                moved[id(value)] = (value, meta_twin(value))
            return moved[id(value)][1]
        return torch.device("meta") if isinstance(value, torch.device) else value

    def prepare(func, args, kwargs):
        args, kwargs = pytree.tree_map(twin, (args, kwargs))
        if any(a.name == "device" for a in func._schema.arguments) and not any(
            isinstance(a, Tensor) for a in pytree.tree_leaves(args)
        ):
            kwargs = {**kwargs, "device": torch.device("meta")}
        return args, kwargs

    return prepare


def meta_twin(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and type on the meta device, which stores nothing."""
    if tensor.layout != torch.strided:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty.requires_grad_(tensor.requires_grad and tensor.is_leaf)
