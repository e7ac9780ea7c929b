"""Views and identities: nothing is made, the same memory is looked at in another way."""

import math

import torch

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import copy
from separable.acceleration.places import Place, contiguous


def identity(a: Arguments) -> Node:
    name = "self" if "self" in a.given else "input"
    if a.value(name).shape != a.made.shape:
        raise LeaveAloneError("it changes the shape")
    return a.node(_lay_out_identity, name, is_view=True)


def _to(a: Arguments) -> Node:
    if a.value("self").dtype != a.made.dtype:
        raise LeaveAloneError("it changes the type")
    return identity(a)


def _dropout(a: Arguments) -> Node:
    if a["train"] and a["p"] != 0:
        raise LeaveAloneError("it drops values at random")
    return identity(a)


def _lay_out_identity(layout: Layout, node: Node) -> None:
    layout.places[node.output] = layout.places[node.inputs[0]]


def _view(a: Arguments) -> Node:
    if math.prod(a.value("self").shape) == 0:
        raise LeaveAloneError("its input is empty")
    return a.node(_lay_out, "self", is_view=True)


def _lay_out(layout: Layout, node: Node) -> None:
    place, shape = layout.places[node.inputs[0]], layout.shape(node.inputs[0])
    seen = _seen(node, shape, place)
    if seen is None:
        place = copy(layout, place, shape, contiguous(shape))
        seen = _seen(node, shape, place)
    assert seen is not None
    layout.places.update(zip(node.outputs, seen, strict=True))


def _seen(node: Node, shape: tuple[int, ...], place: Place) -> list[Place] | None:
    """Where the view's results lie, if they can be views of memory in this order."""
    stored = torch.empty_strided(shape, place.strides, device="meta")
    arguments = list(node.call.args)
    arguments[0] = stored
    try:
        shown = node.call.target(*arguments, **node.call.kwargs)
    except RuntimeError:
        return None
    views = [shown] if isinstance(shown, torch.Tensor) else list(shown)
    if not all(torch._C._is_alias_of(view, stored) for view in views):  # type: ignore[attr-defined]
        return None
    return [Place(place.memory, place.offset + int(view.storage_offset()), tuple(view.stride())) for view in views]


_VIEWS = ("permute", "reshape", "view", "_unsafe_view", "flatten", "unflatten", "transpose", "squeeze", "unsqueeze")
_PIECES = ("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind")
CALLS = {
    **{f"aten::{name}": _dropout for name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_")},
    "aten::contiguous": identity,
    "aten::clone": identity,
    "aten::to": _to,
    "aten::type_as": _to,
    "aten::detach": identity,
    "aten::alias": identity,
    **{f"aten::{name}": _view for name in (*_VIEWS, *_PIECES)},
}
