"""Export to ONNX: one file, standard operators only, any batch, compared with torch before it is called done."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from separable.atomic import write_beside
from separable.errors import InputError, first_line, need
from separable.inputs import own_copy
from separable.store.verify import BATCHES, at_batch, check_network, example_inputs, first_difference

_LARGEST_BYTES = 2**31 - 2**20  # protobuf's limit for one file, less the graph
_ORDER_OF_SUMS = 10  # times the tolerance of the dtype: another runtime adds in another order
_STANDARD = ("", "ai.onnx")


def export_onnx(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    file: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> None:
    """Write the network as ONNX; the model itself stays as it is, in its mode.

    Args:
        model: exported in evaluation mode.
        example: a batch the network takes, or a tuple of batches for several inputs; the file takes any batch size.
        file: appears when onnxruntime has given torch's outputs, at batch 1 and 3, from what was written.
        about: kept in the file's metadata as JSON, a key each: "preparation", "classes", ...
        overwrite: replace a file of that name.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing; the model is no module, the example no tensor; it cannot
            be exported with a free batch; an output has not the batch first; an operator is not standard; the outputs
            differ; the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 9, 9), folder + "/net.onnx")
    """
    model = check_network(model)
    inputs = example_inputs(example, {})
    if inputs is None:
        raise InputError("example", example, "must be a tensor with a batch dimension, or several")
    onnx, runtime = (need(package, "deploy", "to export") for package in ("onnx", "onnxruntime"))
    need("onnxscript", "deploy", "to export")
    name = type(model).__name__
    evaluated = copy.deepcopy(model).cpu().eval()
    size_bytes = sum(t.numel() * t.element_size() for t in [*evaluated.parameters(), *evaluated.buffers()])
    if size_bytes > _LARGEST_BYTES:
        raise InputError("model", name, f"has {size_bytes / 1e9:.2f} GB of weights, and one ONNX file holds 2 GB")
    with write_beside(file, overwrite=overwrite, argument="file") as beside:
        proto = _to_proto(evaluated, at_batch(inputs, 2), name)
        _check_standard(proto, name)
        for key, value in (about or {}).items():
            proto.metadata_props.add(key=key, value=json.dumps(value.to_json() if hasattr(value, "to_json") else value))
        beside.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(str(beside), full_check=True)
        _check_outputs(evaluated, inputs, beside, runtime, name)


def _to_proto(model: nn.Module, inputs: Sequence[Tensor], name: str) -> Any:
    """The exported graph; batch 2, since torch.export takes a 1 for a constant."""
    batch = torch.export.Dim("batch", min=1, max=2**20)
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    try:
        with silence():
            program = torch.onnx.export(
                model,
                tuple(inputs),
                input_names=names,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch wraps whatever stops an export in types of its own
        raise InputError("model", name, f"cannot be exported: {innermost_reason(error)}") from error
    assert program is not None
    return program.model_proto


def innermost_reason(error: BaseException) -> str:
    """The first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporters talk on every channel there is, the older one from C++ as well; what matters they raise."""
    before, from_c = logging.root.manager.disable, getattr(torch._C, "_jit_onnx_log", None)
    logging.disable(logging.CRITICAL)
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)
        if from_c is not None:
            torch._C._jit_onnx_log = from_c


def _check_standard(proto: Any, name: str) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(proto.graph) if node.domain not in _STANDARD})
    foreign += sorted(f"function {function.name}" for function in proto.functions)
    if foreign:
        raise InputError("model", name, f"needs operators that are not ONNX's own: {', '.join(foreign)}")
    standard = [entry for entry in proto.opset_import if entry.domain in _STANDARD]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the graphs inside them (the branches of If, the body of Loop)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _check_outputs(model: nn.Module, inputs: Sequence[Tensor], file: Path, runtime: ModuleType, name: str) -> None:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no type of their own
        rule = f"was exported, but onnxruntime cannot run it: {innermost_reason(error)}"
        raise InputError("model", name, rule) from error
    for batch in BATCHES:
        given = at_batch(inputs, batch)
        with torch.no_grad():
            expected = _flat(model(*own_copy(given)))
        _check_batch(expected, batch, name)
        feeds = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), given, strict=True)}
        try:
            actual = [torch.from_numpy(array) for array in session.run(None, feeds)]
        except Exception as error:
            rule = f"was exported, but onnxruntime cannot run it at batch {batch}: {innermost_reason(error)}"
            raise InputError("model", name, rule) from error
        problem = first_difference(expected, actual, _ORDER_OF_SUMS)
        if problem:
            raise InputError("model", name, f"was exported, but onnxruntime disagrees at batch {batch}: {problem}")


def _check_batch(outputs: Sequence[Tensor], batch: int, name: str) -> None:
    """Both sides agree on a network that joins the samples of a batch (`reshape(1, -1)`), which is no free batch."""
    for output in outputs:
        if output.dim() < 1 or output.shape[0] != batch:
            rule = f"gives an output of shape {list(output.shape)} at batch {batch}; each must have the batch first"
            raise InputError("model", name, rule)


def _flat(outputs: Any) -> list[Tensor]:
    """The tensors of an output in torch.export's order."""
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
