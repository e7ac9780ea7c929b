"""Pads: nothing of their own, part of the convolution or pool that reads them."""

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.functional.arguments import Window


def _pad(a: Arguments) -> Node:
    a.images("self")
    by = list(a["pad"]) + [0] * (4 - len(a["pad"]))
    if a.given.get("mode", "constant") != "constant" or len(by) != 4 or min(by) < 0:
        raise LeaveAloneError("it pads by other values than one constant, cuts off, or pads channels")
    window = Window((1, 1), ((by[2], by[3]), (by[0], by[1])), (1, 1))
    reason = "it pads for an operation that does not pad as it goes"
    return Node(None, [a.number("self")], [a.result], a.call, reason, window=window, pads_by=float(a["value"] or 0.0))


CALLS = dict.fromkeys(("aten::pad", "aten::constant_pad_nd"), _pad)
