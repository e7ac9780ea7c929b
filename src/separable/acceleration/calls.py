"""A call of the tape as a lowering reads it: arguments by name, and the reasons to leave it alone."""

from typing import Any

from torch import Tensor

from separable.acceleration.graph import LayOut, Node
from separable.acceleration.tape import Call, Ref, Tape, Value


class LeaveAloneError(Exception):
    """The operation, as it is called here, has no node; the text is the reason."""


class Arguments:
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
            raise LeaveAloneError(f"its argument {name!r} is not a value of the network")
        return given.index

    def constant(self, name: str) -> Tensor | None:
        """A weight's values; None where it has none."""
        given = self.given.get(name)
        if given is None:
            return None
        tensor = self.tape.values[given.index].constant if isinstance(given, Ref) else None
        if tensor is None:
            raise LeaveAloneError(f"its {name} is computed from the input")
        return tensor.detach()

    def images(self, name: str) -> Value:
        """Images, or sequences [N, C, L] where the operation is one of those."""
        value, dims = self.value(name), 3 if "1d" in self.call.name else 4
        if len(value.shape) != dims:
            layout = "[N, C, L]" if dims == 3 else "[N, C, H, W]"
            raise LeaveAloneError(f"its input has {len(value.shape)} dimensions, not {layout}")
        return value

    def filters(self) -> Tensor:
        """The weight of a convolution [O, I, kh, kw]; a kernel of a sequence has one row."""
        weight = self.constant("weight")
        assert weight is not None
        return weight if weight.dim() == 4 else weight.unsqueeze(2)

    def pair(self, name: str, one: int) -> tuple[int, int]:
        """An argument for height and width; `one` for the row of a sequence."""
        given = self.given.get(name, one)
        return (one, pair(given)[0]) if "1d" in self.call.name else pair(given)

    def node(self, lay_out: LayOut, *inputs: str, **fields: Any) -> Node:
        return Node(lay_out, [self.number(name) for name in inputs], [self.result], self.call, **fields)


def pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
