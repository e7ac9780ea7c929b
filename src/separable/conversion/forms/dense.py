"""The dense convolution itself, for layers that keep their form and change their channels."""

from torch import Tensor

from separable.conversion.forms.form import Form, Shape, Stage


class Dense(Form):
    """W[o, c, k], one factor."""

    name = "dense"
    factors = ("gock",)

    def possible(self, shape: Shape) -> bool:
        return True

    def full_rank(self, shape: Shape) -> int:
        return 1

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g = shape.groups
        return (Stage("conv", g * shape.inputs, g * shape.outputs, g, shape.axes),)

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return list(factors)

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        return [weight]
