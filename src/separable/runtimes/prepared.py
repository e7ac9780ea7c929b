"""One network on one example, made ready in each runtime: a call without arguments that gives its outputs.

Eager, accelerated and compiled networks run on torch's threads. ONNX Runtime and OpenVINO have pools of their own, made
with a network; they read the graph that torch's older exporter writes in milliseconds, in memory, for the shapes of the
example. Where that exporter does not know an operation, the newer one is asked.
"""

import copy
import functools
import io
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from separable.acceleration import accelerate
from separable.errors import InputError, first_line, need
from separable.export import innermost_reason, silence
from separable.inputs import Example, Inputs, own_copy
from separable.runtimes.names import check_name, why_not
from separable.store.verify import check_network

Run = Callable[[], Any]
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_OPSET = 17
_TENSOR = object()  # where a tensor stands among the outputs


def prepare(name: str, model: nn.Module, inputs: Example, threads: int | None = None) -> Run:
    """A call that runs the network on these inputs in one runtime.

    Args:
        name: one of `NAMES`.
        model: in evaluation mode; it stays as it is. Runtimes that change the layout take a copy.
        inputs: a tensor; of several inputs a tuple of what the network takes by position, or a dict of what it takes by
            name. A network that writes into them gets a copy at each call, and they keep their values.
        threads: that the network runs on; as many as torch has now, if not given. Of runtimes within torch, torch's own
            number is set for the length of each call, and is afterwards what it was.

    Returns:
        A function without arguments that gives the outputs as torch tensors, held in lists, tuples and dicts as the
        model's are. It ran once, so that the next call finds it ready.

    Raises:
        InputError: there is no such runtime, or it cannot be used here; the model cannot be run in it; the model is in
            training mode, or does not take the inputs.

    >>> run = prepare("torch", nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval(), torch.zeros(1, 3, 4, 4))
    >>> run().shape
    torch.Size([1, 8, 4, 4])
    """
    check_name(name)
    with torch_threads(threads):
        return Case(model, inputs, threads).prepare(name)


class Case:
    """A network and its example: what the runtimes need of them, made once. Used with torch's threads set."""

    def __init__(self, model: nn.Module, inputs: Example, threads: int | None = None):
        self.model = check_network(model)
        self.name = type(self.model).__name__
        self.inputs = _inputs(inputs)
        self.threads = threads
        if any(module.training for module in self.model.modules()):
            raise InputError("model", self.name, "is in training mode; call eval() first")
        given = own_copy(self.inputs)
        try:
            with torch.no_grad():
                self.outputs = self.model(*given.args, **given.named)
        except Exception as error:  # the user's network may fail in any way on a wrong example
            shapes = ", ".join(str(list(x.shape)) for x in self.inputs.tensors())
            raise InputError("inputs", shapes, f"{self.name} fails on it: {first_line(error)}") from error
        pairs = zip(given.tensors(), self.inputs.tensors(), strict=True)
        self.writes = not all(torch.equal(*pair) for pair in pairs)  # NaN counts as written, which costs a copy

    def prepare(self, name: str) -> Run:
        reason = why_not(name)
        if reason is not None:
            raise InputError("runtime", name, f"cannot be used here: {reason}")
        try:
            run = _PREPARE[name](self)
            run()
        except InputError:
            raise
        except Exception as error:  # each runtime has errors of its own, of no common type
            raise InputError("model", self.name, f"cannot be run by {name}: {innermost_reason(error)}") from error
        return run

    @functools.cached_property
    def onnx(self) -> bytes:
        """The network with these shapes as ONNX, its outputs in one row."""
        flat = _Flat(self.model, self.inputs)
        flat.training = False
        inputs = tuple(self.inputs.tensors())
        names = [f"input_{i}" for i in range(len(inputs))]
        with silence(), torch.no_grad():
            try:
                file: Any = io.BytesIO()  # more than the exporter says that it takes
                given = own_copy(inputs)
                torch.onnx.export(flat, given, file, dynamo=False, opset_version=_OPSET, input_names=names)
                return file.getvalue()
            except Exception:  # an operation that only the newer exporter knows; seconds instead of milliseconds
                need("onnxscript", "deploy", f"to export {self.name}")
                program = torch.onnx.export(flat, own_copy(inputs), dynamo=True, input_names=names, verbose=False)
                assert program is not None
                return program.model_proto.SerializeToString()

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        return {f"input_{i}": x.detach().contiguous().numpy() for i, x in enumerate(self.inputs.tensors())}

    def in_torch(self, model: Callable[..., Any], inputs: Inputs) -> Run:
        """A call of what runs within torch."""
        writes, threads = self.writes, self.threads

        def run() -> Any:
            with torch.no_grad():
                return inputs.call(model) if writes else model(*inputs.args, **inputs.named)

        def run_on_threads() -> Any:
            with torch_threads(threads):
                return run()

        return run if threads is None else run_on_threads

    def as_given(self, arrays: Callable[[], list[Any]]) -> Run:
        """The outputs of an ONNX graph, held as the network's are; what is no tensor is as the network gave it."""
        if isinstance(self.outputs, Tensor):
            return lambda: torch.as_tensor(arrays()[0])
        outputs, structure = pytree.tree_flatten(self.outputs)
        leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in outputs]

        def run() -> Any:
            made = iter(arrays())
            filled = [torch.as_tensor(next(made)) if leaf is _TENSOR else leaf for leaf in leaves]
            return pytree.tree_unflatten(filled, structure)

        return run


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """torch's own number of threads while this is open; None leaves it."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InputError("threads", number, "must be a whole number of at least 1")
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors that a network gives, in one row."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


class _Flat(nn.Module):
    """The network with its tensors in a row, those that it takes and those that it gives: so a graph has them."""

    def __init__(self, network: nn.Module, inputs: Inputs):
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        inputs = self.inputs.map(lambda _: next(given))
        return tuple(tensors_of(self.network(*inputs.args, **inputs.named)))


def _inputs(inputs: Any) -> Inputs:
    given = Inputs.of(inputs)
    if not given.tensors():
        raise InputError("inputs", type(inputs).__name__, "must be a tensor, or a tuple or dict of tensors")
    elsewhere = {x.device.type for x in given.tensors()} - {"cpu"}
    if elsewhere:
        raise InputError("inputs", f"on {elsewhere.pop()}", "must be on the CPU, where these runtimes run")
    return given


def _torch(case: Case) -> Run:
    return case.in_torch(case.model, case.inputs)


def _channels_last(case: Case) -> tuple[nn.Module, Inputs]:
    """A copy of network and inputs whose images and volumes have their channels last."""
    model = copy.deepcopy(case.model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() in _LAYOUTS:
            tensor.data = tensor.data.contiguous(memory_format=_LAYOUTS[tensor.dim()])
    return model, case.inputs.map(lambda x: x.contiguous(memory_format=_LAYOUTS[x.dim()]) if x.dim() in _LAYOUTS else x)


def _torch_channels_last(case: Case) -> Run:
    if not any(x.dim() in _LAYOUTS for x in (*case.inputs.tensors(), *case.model.parameters())):
        rule = "has no channels-last form: no input and no weight has four or five dimensions"
        raise InputError("model", case.name, rule)
    return case.in_torch(*_channels_last(case))


def _compiled(case: Case) -> Run:
    model, inputs = _channels_last(case)

    def forward(*args: Any, **named: Any) -> Any:
        return model(*args, **named)

    # torch.compile keeps what it made by code object, a few for each: with its own, each network starts afresh
    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
    return case.in_torch(torch.compile(own, dynamic=False, options={"freezing": True}), inputs)


def _accelerated(case: Case, dtype: torch.dtype = torch.float32) -> Run:
    network: Any = accelerate(case.model, dtype=dtype)
    network.plan(*case.inputs.args, **case.inputs.named)
    return case.in_torch(network, case.inputs)


def _onnxruntime(case: Case) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(case.onnx, options, providers=["CPUExecutionProvider"])
    given = {entry.name: case.arrays[entry.name] for entry in session.get_inputs()}  # without inputs it does not use
    return case.as_given(lambda: session.run(None, given))


@functools.cache
def _openvino_core() -> Any:
    import openvino

    return openvino.Core()


def _openvino(case: Case, options: dict[str, str]) -> Run:
    core = _openvino_core()
    options = {**options, "INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(case.onnx), "CPU", options)
    request, outputs = compiled.create_infer_request(), compiled.outputs
    given = {entry.any_name: case.arrays[entry.any_name] for entry in compiled.inputs}

    def arrays() -> list[Any]:
        results = request.infer(given, share_inputs=True)  # outputs are copied: the next call writes over its own
        return [results[output] for output in outputs]

    return case.as_given(arrays)


_PREPARE: dict[str, Callable[[Case], Run]] = {
    "torch": _torch,
    "torch channels-last": _torch_channels_last,
    "compile": _compiled,
    "accelerate": _accelerated,
    "accelerate bfloat16": functools.partial(_accelerated, dtype=torch.bfloat16),
    "onnxruntime": _onnxruntime,
    "openvino": functools.partial(_openvino, options={"INFERENCE_PRECISION_HINT": "f32"}),
    "openvino default": functools.partial(_openvino, options={}),
}
