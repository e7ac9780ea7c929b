"""Translate a tape, operation by operation, into nodes; what has no node stays torch's, with the reason.

Nothing is decided here about speed or memory: a batch norm becomes an affine map, an activation a map without weights,
and `fuse` makes longer steps of them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from separable.acceleration.graph import Node
from separable.acceleration.tape import Call, Ref, Tape, Value
from separable.functional.arguments import Window


class _LeaveAloneError(Exception):
    """The operation, as it is called here, has no node; the text is the reason."""


def lower(tape: Tape) -> list[Node]:
    """The nodes of `tape`, in its order; borders of zeros are part of the convolution that reads them."""
    nodes = [_lower_call(tape, call) for call in tape.calls]
    _leave_shown_views(nodes, tape)
    _merge_pads(nodes)
    return _needed(nodes, tape)


def _leave_shown_views(nodes: list[Node], tape: Tape) -> None:
    """Views that are returned show the memory of their base, as torch's do, where anyone can tell."""
    shown = {leaf.index for leaf in tape.outputs if isinstance(leaf, Ref)}
    groups = [tape.values[number].group for number in shown]
    for node in nodes:
        if node.kind == "view" and any(
            n in shown and (groups.count(tape.values[n].group) > 1 or not _is_dense(tape.values[n]))
            for n in node.outputs
        ):
            node.leave_alone("it returns a view of memory that is returned too, or that has gaps")


def _is_dense(value: Value) -> bool:
    return 1 + sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True)) == math.prod(value.shape)


def _merge_pads(nodes: list[Node]) -> None:
    """Convolutions and pools read what was padded and pad as they go; other pads stay torch's."""
    pads = {node.output: node for node in nodes if node.kind == "pad"}
    for node in nodes:
        pad = pads.get(node.inputs[0]) if node.inputs else None
        if pad is None or pad.window is None or node.window is None or node.kind not in ("conv", "pool"):
            continue
        largest = node.kind == "pool" and not node.average
        if pad.value == (-math.inf if largest else 0) and (node.kind == "conv" or largest or node.counts_padding):
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(pad.window.pairs, node.window.pairs, strict=True)]
            node.window, node.inputs = node.window._replace(pairs=tuple(sums)), list(pad.inputs)
            node.merged.append(pad.call)
    for pad in pads.values():
        pad.leave_alone("it pads for an operation that does not pad as it goes")


def _needed(nodes: list[Node], tape: Tape) -> list[Node]:
    """Without the pads that nobody reads any more."""
    read = {number for node in nodes for number in node.inputs} | {o.index for o in tape.outputs if isinstance(o, Ref)}
    return [node for node in nodes if node.call.name not in _PADS or any(n in read for n in node.outputs)]


def _lower_call(tape: Tape, call: Call) -> Node:
    results = [number for number in call.results if number is not None]
    reads = [number for number in call.reads if tape.values[number].constant is None]
    left_alone = Node("torch", reads, results, call)
    try:
        if call.kept_whole:
            raise _LeaveAloneError(f"the module {call.kept_whole}")
        if any(tape.values[n].group in tape.ordered_groups for n in (*call.reads, *results)):
            raise _LeaveAloneError("its memory is written in place while another view of it is in use")
        lowering = _LOWERINGS.get(call.name)
        if lowering is None:
            raise _LeaveAloneError(f"there is no native kernel for {call.name}")
        wrong = [v for v in (tape.values[n] for n in (*reads, *results)) if v.dtype != torch.float32]
        if wrong:
            raise _LeaveAloneError(f"it works on {wrong[0].dtype}".replace("torch.", ""))
        node = lowering(_Arguments(tape, call, results[0]))
        if len(results) != 1 and node.kind != "view":
            raise _LeaveAloneError(f"it makes {len(results)} results")
        node.outputs = results
        return node
    except _LeaveAloneError as error:
        left_alone.reason = str(error)
        return left_alone


class _Arguments:
    """A call's arguments by the names of its schema, defaults filled in."""

    def __init__(self, tape: Tape, call: Call, result: int):
        self.tape, self.call, self.result = tape, call, result
        self.given: dict[str, Any] = {}
        for i, argument in enumerate(call.target._schema.arguments):  # type: ignore[attr-defined]
            default = argument.default_value if argument.has_default_value() else None
            self.given[argument.name] = call.args[i] if i < len(call.args) else call.kwargs.get(argument.name, default)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    @property
    def made(self) -> Value:
        return self.tape.values[self.result]

    def value(self, name: str) -> Value:
        return self.tape.values[self.number(name)]

    def number(self, name: str) -> int:
        """The number of a value that depends on the inputs."""
        given = self.given[name]
        if not isinstance(given, Ref) or self.tape.values[given.index].constant is not None:
            raise _LeaveAloneError(f"its argument {name!r} is not a value of the network")
        return given.index

    def constant(self, name: str) -> Tensor | None:
        """A weight's values; None where it has none."""
        given = self.given.get(name)
        if given is None:
            return None
        tensor = self.tape.values[given.index].constant if isinstance(given, Ref) else None
        if tensor is None:
            raise _LeaveAloneError(f"its {name} is computed from the input")
        return tensor.detach()

    def node(self, kind: str, *inputs: str, **fields: Any) -> Node:
        return Node(kind, [self.number(name) for name in inputs], [self.result], self.call, **fields)


def _images(a: _Arguments, name: str) -> Value:
    value = a.value(name)
    if len(value.shape) != 4:
        raise _LeaveAloneError(f"its input has {len(value.shape)} dimensions, not [N, C, H, W]")
    return value


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _conv(a: _Arguments) -> Node:
    images, weight = _images(a, "input"), a.constant("weight")
    assert weight is not None
    stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
    if isinstance(a["padding"], str):
        totals = [d * (k - 1) if a["padding"] == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pairs = tuple((p, p) for p in _pair(a["padding"]))
    if 0 in images.shape[1:]:
        raise _LeaveAloneError("its input is empty")
    _check_groups(a["groups"], images.shape[1], weight.shape[0])
    window = Window(stride, pairs, dilation)
    return a.node("conv", "input", weight=weight, bias=a.constant("bias"), window=window, groups=a["groups"])


def _check_groups(groups: int, channels: int, filters: int) -> None:
    """Depthwise kernels make up to four maps of a channel, or sum up to four filtered ones."""
    if groups not in (1, min(channels, filters)):
        raise _LeaveAloneError(
            f"its {groups} groups each make {filters // groups} maps of {channels // groups} channels"
        )
    if groups > 1 and max(channels, filters) > 4 * groups:
        raise _LeaveAloneError(f"its depth multiplier is {max(channels, filters) // groups}, more than 4")


def _linear(a: _Arguments) -> Node:
    weight = a.constant("weight")
    if weight is None or weight.dim() != 2 or len(a.value("input").shape) < 2:
        raise _LeaveAloneError("its weight is no matrix, or its input a vector")
    return a.node("linear", "input", weight=weight, bias=a.constant("bias"), dim=-1)


def _batch_norm(a: _Arguments) -> Node:
    mean, variance = a.constant("running_mean"), a.constant("running_var")
    if a["training"] or mean is None or variance is None:
        raise _LeaveAloneError("it normalises by the statistics of its input")
    weight, bias = a.constant("weight"), a.constant("bias")
    scale = (variance.double() + a["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    offset = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    return a.node("affine", "input", weight=scale.float(), bias=offset.float())


def _layer_norm(a: _Arguments) -> Node:
    if len(a["normalized_shape"]) != 1:
        raise _LeaveAloneError("it normalises more than the last dimension")
    return a.node("norm", "input", weight=a.constant("weight"), bias=a.constant("bias"), eps=a["eps"], dim=-1)


def _activation(name: str) -> Callable[[_Arguments], Node]:
    return lambda a: a.node("affine", "self" if "self" in a.given else "input", activation=name)


def _hardtanh(a: _Arguments) -> Node:
    if (a["min_val"], a["max_val"]) != (0, 6):
        raise _LeaveAloneError(f"it clamps to {a['min_val']} ... {a['max_val']}")
    return a.node("affine", "self", activation="relu6")


def _clamp(a: _Arguments) -> Node:
    name = {(0, 6): "relu6", (0, None): "relu"}.get((a["min"], a.given.get("max")))
    if name is None:
        raise _LeaveAloneError("it clamps to other limits than 0 and 6")
    return a.node("affine", "self", activation=name)


def _gelu(a: _Arguments) -> Node:
    if a["approximate"] != "none":
        raise _LeaveAloneError("it is the tanh form of GELU")
    return a.node("affine", "self", activation="gelu")


def _mean(a: _Arguments) -> Node:
    shape = _images(a, "self").shape
    if {d % 4 for d in a.given.get("dim") or ()} != {2, 3} or 0 in shape:
        raise _LeaveAloneError("it is no mean over height and width")
    return a.node("mean", "self")


def _adaptive_mean(a: _Arguments) -> Node:
    images = _images(a, "self")
    if 0 in images.shape[1:]:
        raise _LeaveAloneError("its input is empty")
    size = _pair(a["output_size"])
    if size == (1, 1):
        return a.node("mean", "self")
    if size == images.shape[2:]:
        return a.node("view", "self")
    raise _LeaveAloneError("it averages to more than one place")


def _pool(a: _Arguments) -> Node:
    shape, made = _images(a, "self").shape, a.made.shape
    kernel = _pair(a["kernel_size"])
    stride, dilation = _pair(a["stride"] or kernel), _pair(a.given.get("dilation", 1))
    average = a.call.name == "aten::avg_pool2d"
    if dilation != (1, 1) or a.given.get("divisor_override") or 0 in shape:
        raise _LeaveAloneError("it is dilated, divides by a number of its own, or is empty")
    before = _pair(a["padding"])
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in zip(made[2:], stride, kernel, shape[2:], before, strict=True)]
    if a["ceil_mode"] and average and any(e > p for e, p in zip(ends, before, strict=True)):
        raise _LeaveAloneError("its last windows reach beyond the padding")
    pairs = tuple((p, max(e, 0)) for p, e in zip(before, ends, strict=True))
    counts = bool(a.given.get("count_include_pad", True))
    window = Window(stride, pairs, (1, 1))
    return a.node("pool", "self", kernel=kernel, window=window, average=average, counts_padding=counts)


def _add(a: _Arguments) -> Node:
    if a["alpha"] != 1:
        raise _LeaveAloneError("it adds a multiple")
    this, other = a["self"], a["other"]
    constants = [x for x in (this, other) if not isinstance(x, Ref) or a.tape.values[x.index].constant is not None]
    if constants:
        variable = "other" if constants[0] is this else "self"
        return _affine_by(a, variable, constants[0], "bias")
    if a.value("self").shape != a.value("other").shape:
        raise _LeaveAloneError("its operands have different shapes")
    return a.node("add", "self", "other")


def _mul(a: _Arguments) -> Node:
    this, other = a["self"], a["other"]
    constants = [x for x in (this, other) if not isinstance(x, Ref) or a.tape.values[x.index].constant is not None]
    if constants:
        variable = "other" if constants[0] is this else "self"
        return _affine_by(a, variable, constants[0], "weight")
    shapes = {name: a.value(name).shape for name in ("self", "other")}
    if shapes["self"] == shapes["other"]:
        return a.node("multiply", "self", "other")
    for wide, gate in (("self", "other"), ("other", "self")):
        shape = shapes[wide]
        if len(shape) == 4 and shapes[gate] == (*shape[:2], 1, 1) and shape == a.made.shape:
            return a.node("scale", wide, gate)
    raise _LeaveAloneError("it is no product with one factor a channel")


def _sub(a: _Arguments) -> Node:
    if isinstance(a["other"], Ref):
        raise _LeaveAloneError("it subtracts a value of the network")
    return _affine_by(a, "self", -a["alpha"] * a["other"], "bias")


def _div(a: _Arguments) -> Node:
    if isinstance(a["other"], Ref) or a.given.get("rounding_mode"):
        raise _LeaveAloneError("it divides by a value of the network, or rounds")
    by = float(a["other"])
    return _affine_by(a, "self", math.copysign(math.inf, by) if by == 0 else 1 / by, "weight")


def _affine_by(a: _Arguments, variable: str, by: Any, what: str) -> Node:
    """`variable` times or plus a constant that is the same along all dimensions but one."""
    value = a.value(variable)
    tensor = a.tape.values[by.index].constant if isinstance(by, Ref) else torch.tensor(float(by), dtype=torch.float32)
    assert tensor is not None
    if value.shape != a.made.shape or tensor.dim() > len(value.shape):
        raise _LeaveAloneError("its constant is larger than its input")
    sizes = (1,) * (len(value.shape) - tensor.dim()) + tuple(tensor.shape)
    long = [i for i, n in enumerate(sizes) if n != 1]
    channel = 1 if len(value.shape) == 4 else len(value.shape) - 1
    if len(long) > 1:
        raise _LeaveAloneError("its constant varies along more than one dimension")
    dim = long[0] if long else channel
    if not _are_normal(tensor):
        raise _LeaveAloneError("its constant, or the reciprocal, is no normal number of float32")
    values = tensor.detach().float().reshape(-1).expand(value.shape[dim]).contiguous()
    return a.node("affine", variable, dim=dim, **{what: values})


def _are_normal(tensor: Tensor) -> bool:
    """Whether float32 holds all values as they are meant: finite, and zero or large enough for full precision."""
    sizes = tensor.detach().float().abs()
    return bool((sizes.isfinite() & ((sizes == 0) | (sizes >= torch.finfo(torch.float32).tiny))).all())


def _cat(a: _Arguments) -> Node:
    refs = a["tensors"]
    if any(a.tape.values[ref.index].constant is not None for ref in refs):
        raise _LeaveAloneError("it joins constants")
    made = a.made.shape
    inputs = [ref.index for ref in refs]
    if any(len(a.tape.values[n].shape) != len(made) for n in inputs):
        raise _LeaveAloneError("it joins values of different ranks")
    return Node("cat", inputs, [a.result], a.call, dim=a["dim"] % len(made))


def _pad(a: _Arguments) -> Node:
    _images(a, "self")
    by = list(a["pad"]) + [0] * (4 - len(a["pad"]))
    value = a["value"]
    if a.given.get("mode", "constant") != "constant" or len(by) != 4 or min(by) < 0:
        raise _LeaveAloneError("it pads by other values than one constant, cuts off, or pads channels")
    window = Window((1, 1), ((by[2], by[3]), (by[0], by[1])), (1, 1))
    return a.node("pad", "self", window=window, value=float(value or 0.0))


def _to(a: _Arguments) -> Node:
    if a.value("self").dtype != a.made.dtype:
        raise _LeaveAloneError("it changes the type")
    return _identity(a)


def _identity(a: _Arguments) -> Node:
    name = "self" if "self" in a.given else "input"
    if a.value(name).shape != a.made.shape:
        raise _LeaveAloneError("it changes the shape")
    return a.node("view", name)


def _dropout(a: _Arguments) -> Node:
    if a["train"] and a["p"] != 0:
        raise _LeaveAloneError("it drops values at random")
    return _identity(a)


def _view(a: _Arguments) -> Node:
    if math.prod(a.value("self").shape) == 0:
        raise _LeaveAloneError("its input is empty")
    return a.node("view", "self")


_PADS = ("aten::pad", "aten::constant_pad_nd")
_VIEWS = ("permute", "reshape", "view", "_unsafe_view", "flatten", "unflatten", "transpose", "squeeze", "unsqueeze")
_PIECES = ("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind")
_NAMED_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hard_swish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard_sigmoid",
}
_LOWERINGS: dict[str, Callable[[_Arguments], Node]] = {
    "aten::conv2d": _conv,
    "aten::linear": _linear,
    "aten::batch_norm": _batch_norm,
    "aten::layer_norm": _layer_norm,
    "aten::hardtanh": _hardtanh,
    "aten::hardtanh_": _hardtanh,
    "aten::clamp": _clamp,
    "aten::clamp_": _clamp,
    "aten::clamp_min": _clamp,
    "aten::gelu": _gelu,
    "aten::mean": _mean,
    "aten::adaptive_avg_pool2d": _adaptive_mean,
    "aten::max_pool2d": _pool,
    "aten::avg_pool2d": _pool,
    "aten::add": _add,
    "aten::add_": _add,
    "aten::mul": _mul,
    "aten::mul_": _mul,
    "aten::sub": _sub,
    "aten::sub_": _sub,
    "aten::div": _div,
    "aten::div_": _div,
    "aten::cat": _cat,
    **dict.fromkeys(_PADS, _pad),
    "aten::dropout": _dropout,
    "aten::feature_dropout": _dropout,
    "aten::contiguous": _identity,
    "aten::clone": _identity,
    "aten::to": _to,
    "aten::type_as": _to,
    "aten::detach": _identity,
    "aten::alias": _identity,
    **{f"aten::{name}": _view for name in (*_VIEWS, *_PIECES)},
    **{f"aten::{name}": _activation(ours) for name, ours in _NAMED_ACTIVATIONS.items()},
    **{f"aten::{name}_": _activation(ours) for name, ours in _NAMED_ACTIVATIONS.items()},
}
