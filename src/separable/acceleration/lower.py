"""Translate a tape, operation by operation, into nodes; what has no node stays torch's, with the reason.

Nothing is decided here about speed or memory: a batch norm becomes an affine map, an activation a map without weights,
and `fuse` makes longer steps of them.
"""

import math

import torch

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.operations import LOWERINGS
from separable.acceleration.operations.pad import Pad
from separable.acceleration.operations.relayout import MOST_DIMS
from separable.acceleration.tape import Call, Ref, Tape, Value


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
        if node.is_view and any(
            n in shown and (groups.count(tape.values[n].group) > 1 or not _is_dense(tape.values[n]))
            for n in node.outputs
        ):
            node.leave_alone("it returns a view of memory that is returned too, or that has gaps")


def _is_dense(value: Value) -> bool:
    return 1 + sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True)) == math.prod(value.shape)


def _merge_pads(nodes: list[Node]) -> None:
    """What pads as it goes by the same value reads what was padded; other pads are steps of their own."""
    pads = {node.output: node for node in nodes if node.pads_by is not None}
    for node in nodes:
        pad = pads.get(node.inputs[0]) if node.inputs else None
        if pad is None or pad.window is None or node.window is None or node.border != pad.pads_by:
            continue
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(pad.window.pairs, node.window.pairs, strict=True)]
        node.window, node.inputs = node.window._replace(pairs=tuple(sums)), list(pad.inputs)
        node.merged.append(pad.call)


def _needed(nodes: list[Node], tape: Tape) -> list[Node]:
    """Without the pads that nobody reads any more."""
    read = {number for node in nodes for number in node.inputs} | {o.index for o in tape.outputs if isinstance(o, Ref)}
    return [node for node in nodes if node.call.name not in Pad.calls or any(n in read for n in node.outputs)]


def left_to_torch(tape: Tape, call: Call) -> Node:
    """A call as it is."""
    results = [number for number in call.results if number is not None]
    return Node(None, [number for number in call.reads if tape.values[number].constant is None], results, call)


def _lower_call(tape: Tape, call: Call) -> Node:
    left_alone = left_to_torch(tape, call)
    reads, results = left_alone.inputs, left_alone.outputs
    try:
        if call.kept_whole:
            raise LeaveAloneError(f"the module {call.kept_whole}")
        if any(tape.values[n].group in tape.ordered_groups for n in (*call.reads, *results)):
            raise LeaveAloneError("its memory is written in place while another view of it is in use")
        lowering = LOWERINGS.get(call.name)
        if lowering is None:
            raise LeaveAloneError(f"there is no native kernel for {call.name}")
        dims = [len(tape.values[n].shape) for n in (*reads, *results)]
        if dims and not 0 < min(dims) <= max(dims) <= MOST_DIMS:
            raise LeaveAloneError(f"it works on a single number, or on more than {MOST_DIMS} dimensions")
        wrong = [v for v in (tape.values[n] for n in (*reads, *results)) if v.dtype != torch.float32]
        if wrong:
            raise LeaveAloneError(f"it works on {wrong[0].dtype}".replace("torch.", ""))
        node = lowering(Arguments(tape, call, results[0]))
        if len(results) != 1 and not node.is_view:
            raise LeaveAloneError(f"it makes {len(results)} results")
        node.outputs = results
        return node
    except LeaveAloneError as error:
        left_alone.reason = str(error)
        return left_alone
