"""Write a network down: torch.fx follows its forward, and what it calls becomes a list of plain nodes.

The graph is followed in evaluation and in training; where the two differ by a flag alone (dropout, batch norm as
functions), the loaded network keeps that flag. A network that decides by its input's values cannot be written down.
"""

import copy
import inspect
import math
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from separable import functional
from separable.errors import InputError, first_line
from separable.store import modules, values
from separable.store.allowed import ATTRIBUTES, CONTAINERS, FUNCTION_NAMES, METHODS, MODULES
from separable.store.tensors import describe as describe_tensors

# Modules whose constructor makes modules of its own; inside others only what the graph calls by itself can stand.
_WITH_INSIDES = {"torch.nn.MultiheadAttention", *(name for name in MODULES if name.startswith("separable."))}
_ASSERTIONS = ("_assert", "_assert_is_none", "_assert_scalar")
_FRAMEWORK = (Path(torch.__file__).parent, Path(__file__).parent)


def capture(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description {"name", "nodes", "modules", "tensors"}, and the values of the tensors by name.

    Raises:
        InputError: naming the line of the model's code that prevents it.
    """
    _refuse_what_is_hidden(model)
    try:
        model = copy.deepcopy(model)  # following a graph leaves marks
    except Exception as error:
        raise _refusal(model, f"it cannot be copied: {error}") from error
    written: dict[str, Any] = {"name": re.sub(r"\W", "", type(model).__name__) or "Network"}
    if modules.known_class(model) is not None:  # the whole network is one layer: there is no graph
        written["nodes"] = None
    else:
        learner = copy.deepcopy(model)
        graph = _follow(model, training=False)
        flags = _mark_training(model, graph, learner)
        _keep_constants(model, graph)
        written["nodes"] = _encode_graph(graph, model, flags)
    written["modules"] = _describe_modules(model)
    written["tensors"], tensors = describe_tensors(model)
    return written, tensors


class _Proxy(fx.Proxy):
    """Refuses an attribute or method where it is read, so that the error shows the line."""

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS and name not in ATTRIBUTES and not name.startswith("__"):
            raise AttributeError(f"reads .{name}, which a saved network may not")
        return super().__getattr__(name)


class _Tracer(fx.Tracer):
    record_stack_traces = True
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__(autowrap_modules=(math, functional), param_shapes_constant=True)  # type: ignore[arg-type]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        self.param_shapes_constant = isinstance(attr_val, nn.Parameter)  # fx knows constant shapes of parameters alone
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return modules.known_class(m) is not None

    def call_module(self, m: nn.Module, forward, args, kwargs) -> Any:
        if not is_timm_norm_act(m):
            return super().call_module(m, forward, args, kwargs)
        normed = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        return m.act(m.drop(normed))  # type: ignore[operator]


def is_timm_norm_act(module: nn.Module) -> bool:
    """timm's batch norm with an activation inside: its own forward is torch's batch norm, copied for TorchScript."""
    return isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act")


def _follow(model: nn.Module, training: bool) -> fx.Graph:
    """The graph; arguments of forward that have defaults keep them."""
    model.train(training)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise _refusal(model, "its forward takes *args; name the inputs")
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fx speaks of the checks it adds for defaults, which are taken out again
            graph = _Tracer().trace(model, defaults or None)
    except InputError:
        raise
    except Exception as error:  # the user's code may fail on a stand-in for a tensor in any way
        where = _users_frame([(f.filename, f.lineno, f.line or "") for f in traceback.extract_tb(error.__traceback__)])
        raise _refusal(model, f"{where}: {first_line(error)}") from error
    _erase_assertions(graph)
    return graph


def _keep_constants(model: nn.Module, graph: fx.Graph) -> None:
    """Tensors that are plain attributes become buffers outside of the state dict, so that they are written too."""
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        owner = model.get_submodule(path)
        if name in owner.__dict__:
            value = owner.__dict__.pop(name)
            if not isinstance(value, Tensor):
                raise _refusal(model, f"{_line_of(node)} uses {node.target}, a {type(value).__name__}")
            owner.register_buffer(name, value, persistent=False)


def _erase_assertions(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        asserts = node.op == "call_function" and getattr(node.target, "__name__", "") in _ASSERTIONS
        feeds_only_those = not node.users and node.meta.get("only_asserted", False)
        if asserts or feeds_only_those:
            for argument in node.all_input_nodes:
                with_default = argument.op == "placeholder" and bool(argument.args)
                if argument.op == "call_function" or with_default:
                    argument.meta["only_asserted"] = True
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.args and not node.users:
            graph.erase_node(node)


def _mark_training(model: nn.Module, graph: fx.Graph, learner: nn.Module) -> set[tuple[str, str]]:
    """(node, argument) of every flag that is False in evaluation and True in training."""
    try:
        other = _follow(learner, training=True)
    except InputError as error:
        _warn_evaluation_only(model, str(error))
        return set()
    marked: set[tuple[str, str]] = set()
    mine, theirs = list(graph.nodes), list(other.nodes)
    pairs = dict(zip(mine, theirs, strict=False))
    for node, twin in pairs.items():
        if (node.op, node.target) != (twin.op, twin.target) or len(node.args) != len(twin.args):
            break
        for key, value in _arguments(node).items():
            given = _arguments(twin).get(key)
            if value is False and given is True:
                marked.add((node.name, key))
            elif not _same(value, given, pairs):
                break
        else:
            continue
        break
    else:
        if len(mine) == len(theirs):
            return marked
        node = mine[-1]
    _warn_evaluation_only(model, f"first at {_line_of(node)}")
    return set()


def _warn_evaluation_only(model: nn.Module, where: str) -> None:
    text = f"{type(model).__name__} does other work in training than in evaluation ({where}); evaluation is saved"
    warnings.warn(text, stacklevel=5)


def _arguments(node: fx.Node) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)


def _same(value: Any, other: Any, pairs: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(value, fx.Node):
        return pairs.get(value) is other
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(_same(v, o, pairs) for v, o in zip(value, other, strict=True))
    if isinstance(value, slice):
        return isinstance(other, slice) and all(
            _same(getattr(value, side), getattr(other, side), pairs) for side in ("start", "stop", "step")
        )
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_same(v, other[k], pairs) for k, v in value.items())
    return value is other or bool(value == other)


def _encode_graph(graph: fx.Graph, model: nn.Module, training_flags: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """The nodes as JSON; a flag in `training_flags` becomes a reference to the network's own `training`."""
    nodes: list[dict[str, Any]] = []
    if training_flags:
        nodes.append({"name": "network_training", "op": "get_attr", "target": "training"})
    for node in graph.nodes:
        written: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target(node, model)}
        try:
            arguments = {key: values.encode(value) for key, value in _arguments(node).items()}
        except TypeError as error:
            raise _refusal(model, f"{_line_of(node)} passes {error}") from None
        for key in arguments:
            if (node.name, key) in training_flags:
                arguments[key] = {"node": "network_training"}
        count = len(node.args)
        if count:
            written["args"] = [arguments[str(i)] for i in range(count)]
        if node.kwargs:
            written["kwargs"] = {key: arguments[key] for key in node.kwargs}
        nodes.append(written)
    return nodes


def _target(node: fx.Node, model: nn.Module) -> str:
    if node.op == "call_function":
        name = FUNCTION_NAMES.get(node.target)  # type: ignore[arg-type]
        if name is None:
            called = getattr(node.target, "__name__", str(node.target))
            raise _refusal(model, f"{_line_of(node)} calls {called}, which a saved network may not")
        if name == "getattr" and node.args[1] not in ATTRIBUTES:
            raise _refusal(model, f"{_line_of(node)} reads .{node.args[1]}, which a saved network may not")
        return name
    target = str(node.target)
    if node.op == "call_method" and target not in METHODS:
        raise _refusal(model, f"{_line_of(node)} calls the method {target}, which a saved network may not")
    return target


def _describe_modules(model: nn.Module) -> dict[str, Any]:
    """Each module's class and arguments by path, or the first path of one that stands in several places."""
    described: dict[str, Any] = {}
    first: dict[int, str] = {}
    whole: list[str] = []  # paths whose insides need no description of their own
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{outer}.") or outer == "" for outer in whole):
            continue
        if id(module) in first:
            described[path] = {"same_as": first[id(module)]}
            whole.append(path)
            continue
        first[id(module)] = path
        kind = modules.known_class(module)
        if kind is not None:
            try:
                described[path] = modules.describe(module)
            except TypeError as error:
                raise _refusal(model, f"module {path or type(module).__name__} holds {error}") from None
            if described[path]["class"] in _WITH_INSIDES:
                whole.append(path)
        elif is_timm_norm_act(module):
            described[path] = _plain_norm(module)
        elif path:
            name = next((n for n, kind in CONTAINERS.items() if type(module) is kind), "Module")
            described[path] = {"class": name}
    return described


def _plain_norm(module: Any) -> dict[str, Any]:
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    plain = nn.BatchNorm2d(**{name: getattr(module, name) for name in names}, device="meta")
    return modules.describe(plain)


def _refuse_what_is_hidden(model: nn.Module) -> None:
    """Hooks and parametrizations act outside of forward, where no graph shows them."""
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if hasattr(module, "parametrizations"):
            way_out = "torch.nn.utils.parametrize.remove_parametrizations"
            raise _refusal(model, f"module {name} has parametrizations; take them off with {way_out}")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _refusal(model, f"module {name} has forward hooks; remove them")
        if isinstance(module, torch.jit.ScriptModule):
            raise _refusal(model, f"module {name} is compiled TorchScript; give the module it was made from")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise _refusal(model, f"{name} has no values in memory to write ({tensor.layout}, {tensor.device})")


def _line_of(node: fx.Node) -> str:
    frames = re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.*)', node.stack_trace or "")
    return _users_frame([(file, int(line), code) for file, line, code in frames])


def _users_frame(frames: list[tuple[str, int | None, str]]) -> str:
    own = [frame for frame in frames if not _is_framework(frame[0])]
    if not own:
        return "its forward"
    file, line, code = own[-1]
    return f"{file}:{line}: `{code.strip()}`"


def _is_framework(file: str) -> bool:
    """torch's code, this room's, what fx made up as it ran, or Python's own start."""
    return file.startswith(("<eval_with_key>", "<frozen")) or any(
        Path(file).is_relative_to(folder) for folder in _FRAMEWORK
    )


def _refusal(model: nn.Module, reason: str) -> InputError:
    return InputError("model", type(model).__name__, f"cannot be saved: {reason}")
