"""A network from what `capture` wrote: each name checked against the list, then modules, weights, graph.

Nothing in the description is trusted: it may come from anywhere. It can name what is on the list, and nothing else.
"""

import copy
import keyword
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from separable.store import modules, values
from separable.store.allowed import ATTRIBUTES, CONTAINERS, FUNCTIONS, METHODS

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MOST_NODES = 200_000


class Network(fx.GraphModule):
    """A loaded network: torch's and our layers under their old names, and the graph that calls them.

    Unlike a plain GraphModule a copy keeps the modules that the graph does not call.
    """

    def __deepcopy__(self, memo):
        result = super().__deepcopy__(memo)
        for place in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            result.__dict__[place] = copy.deepcopy(self.__dict__[place], memo)
        result.train(self.training)
        return result

    def __reduce__(self):
        from separable.store.capture import capture

        state = {name: getattr(self, name) for name in ("_modules", "_parameters", "_buffers", "training")}
        return _unpickle, (capture(self)[0], state, self._non_persistent_buffers_set)


def rebuild(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network in evaluation mode.

    Args:
        description: what `capture` gave, and "tensors": what each tensor is, as `tensors.describe` gave.
        tensors: the values by the same names.

    Raises:
        ValueError: the description names something that is not allowed, or the tensors do not fit it.
    """
    root = _build_modules(description["modules"])
    _fill(root, description["tensors"], tensors)
    if description["nodes"] is None:
        return root.eval()
    return _with_graph(root, description["nodes"], description["name"]).eval()


def _build_modules(described: Mapping[str, Any]) -> nn.Module:
    root = modules.build(described[""]) if "" in described else nn.Module()
    for path, description in described.items():
        if not path:
            continue
        if "same_as" in description:
            _attach(root, path, _submodule(root, description["same_as"]))
            continue
        try:
            container = CONTAINERS.get(str(description.get("class")))
            made = container() if container is not None else modules.build(description)
        except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise ValueError(f"module {path[:80]}: {error}") from error
        _attach(root, path, made)
    return root


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = _checked_path(path).rpartition(".")
    owner = _submodule(root, parent)
    if hasattr(owner, name) and name not in owner._modules:
        raise ValueError(f"{path} is not free for a module")
    if any(inner is owner for inner in module.modules()):
        raise ValueError(f"module {path} would contain itself")
    owner._modules[name] = module


def _checked_path(path: Any) -> str:
    if not isinstance(path, str) or len(path) > 1000 or not _PATH.fullmatch(path) or "__" in (path[:2], path[-2:]):
        raise ValueError(f"{str(path)[:80]} is no name of a module or tensor")
    if any(part.startswith("__") for part in path.split(".")):
        raise ValueError(f"{path[:80]} is no name of a module or tensor")
    return path


def _submodule(root: nn.Module, path: str) -> nn.Module:
    module = root
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            raise ValueError(f"there is no module {path[:80]}")
        module = child
    return module


def _fill(root: nn.Module, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    made: dict[str, Tensor] = {}
    for name, what in described.items():
        first = what.get("same_as", name)
        if first not in made:
            if first not in tensors:
                raise ValueError(f"the weights lack {first}")
            value = tensors[first]
            if what["kind"] == "parameter":
                value = nn.Parameter(value, requires_grad=bool(what.get("requires_grad", True)))
            made[first] = value
        _place(root, name, what, made[first])
    extra = sorted(set(tensors) - set(made))
    if extra:
        raise ValueError(f"the weights hold {len(extra)} that no module takes: {', '.join(extra[:5])}")
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"the weights lack {name}")


def _place(root: nn.Module, name: str, what: Mapping[str, Any], value: Tensor) -> None:
    parent, _, last = _checked_path(name).rpartition(".")
    owner = _submodule(root, parent)
    place: dict[str, Any] = owner._parameters if what["kind"] == "parameter" else owner._buffers
    old = place.get(last)
    if old is not None and old.shape != value.shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, and its module takes {list(old.shape)}")
    if last not in place and (hasattr(owner, last) or type(owner) not in CONTAINERS.values()):
        raise ValueError(f"{name} has no place in a {type(owner).__name__}")
    place[last] = value
    if what["kind"] != "parameter":
        change = (
            owner._non_persistent_buffers_set.discard
            if what.get("persistent", True)
            else (owner._non_persistent_buffers_set.add)
        )
        change(last)


def _with_graph(root: nn.Module, nodes: Any, name: Any) -> nn.Module:
    if not isinstance(nodes, list) or len(nodes) > _MOST_NODES:
        raise ValueError("its graph is no list of nodes")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > 100:
        raise ValueError("its name is no name of a class")
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in nodes:
        try:
            _add_node(graph, root, node, made)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"node {str(node)[:80]} is incomplete: {error}") from error
    network = Network(root, graph, name)
    for place in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        network.__dict__[place] = root.__dict__[place]
    return network


def _add_node(graph: fx.Graph, root: nn.Module, node: Mapping[str, Any], made: dict[str, fx.Node]) -> None:
    name, op, target = node["name"], node["op"], node["target"]
    _check_identifier(name)
    if name in made:
        raise ValueError(f"two nodes are called {name}")
    args = tuple(values.decode(value, made) for value in node.get("args", []))
    kwargs = {key: values.decode(value, made) for key, value in node.get("kwargs", {}).items()}
    for key in kwargs:
        _check_identifier(key)
    if op == "output":
        graph.output(args[0])
        return
    made[name] = graph.create_node(op, _resolve(root, op, target, args), args, kwargs, name)


def _resolve(root: nn.Module, op: str, target: Any, args: tuple) -> Any:
    """What a node calls, once it is known to be allowed."""
    if op == "placeholder":
        _check_identifier(target)
        return target
    if op == "call_function" and target in FUNCTIONS:
        if target == "getattr" and not (len(args) == 2 and isinstance(args[0], fx.Node) and args[1] in ATTRIBUTES):
            raise ValueError(f"the attribute {str(args[1:])[:80]} may not be read")
        return FUNCTIONS[target]
    if op == "call_method" and target in METHODS and args and isinstance(args[0], fx.Node):
        return target
    if op == "call_module":
        if type(_submodule(root, _checked_path(target))) in CONTAINERS.values():
            raise ValueError(f"{target} is a container, which cannot be called")
        return target
    if op == "get_attr" and target == "training":
        return target
    if op == "get_attr":
        parent, _, last = _checked_path(target).rpartition(".")
        owner = _submodule(root, parent)
        if last not in owner._parameters and last not in owner._buffers:
            raise ValueError(f"there is no tensor {target}")
        return target
    raise ValueError(f"{str(op)[:40]} {str(target)[:80]} is not among what a saved network may call")


def _check_identifier(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name) or name.startswith("__"):
        raise ValueError(f"{str(name)[:80]} is no name of a node or argument")
    if name in ("self", "torch"):
        raise ValueError(f"{name} cannot be the name of a node or argument")


def _unpickle(description: dict[str, Any], state: dict[str, Any], non_persistent: set[str]) -> nn.Module:
    root = nn.Module()
    root.__dict__.update(state, _non_persistent_buffers_set=non_persistent)
    return _with_graph(root, description["nodes"], description["name"]).train(state["training"])
