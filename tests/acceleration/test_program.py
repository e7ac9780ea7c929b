"""Every step of the native programs gives what torch makes of the same step, on every instruction set."""

import dataclasses
import random

import pytest
import torch
from torch import nn

from norms import lived_in
from separable import _native, accelerate, models
from separable.acceleration import reference
from separable.acceleration.memory import lay_out
from separable.acceleration.operations.elementwise import Affine
from separable.acceleration.operations.relayout import Relayout
from separable.acceleration.places import Memory, contiguous
from separable.acceleration.plan import Plan
from separable.acceleration.program import Program
from separable.acceleration.state import State
from separable.acceleration.steps import Step
from separable.acceleration.tape import follow
from separable.layers import SeparableConv2d

needs_kernels = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")


def steps_of(name: str, size: int, batch: int = 2) -> list[Step]:
    """The fused steps of a timm network."""
    network = lived_in(models.import_timm().create_model(name)).eval()
    plan = Plan(follow(network, (torch.randn(batch, 3, size, size),), {}, State(network)).tape)
    return [step for part in plan.parts for step in part.steps]


def computed(step: Step, tensors: dict[Memory, torch.Tensor]) -> torch.Tensor:
    """What the native kernel makes of one step, in memory filled with NaN."""
    made = torch.full((step.y.floats,), float("nan"))
    Program([step], list(tensors), [step.y]).run(list(tensors.values()), [made])
    return made


@needs_kernels
@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv3_small_050", 48),  # bottlenecks, gates, every hard activation
        ("efficientnet_lite0", 40),
        ("convnext_atto", 64),  # layer norms into products, 7x7
        ("mixnet_s", 40),  # kernels of 3 to 11, pieces and joins
        ("fastvit_t8", 64),  # several maps of a channel
        ("starnet_s1", 40),  # products of two values
        ("densenet121", 32),  # norms that stand before convolutions
    ],
)
@torch.no_grad()
def test_each_step_agrees_with_torch(name, size, isa):
    with _native.force(isa):
        checked = 0
        for step in steps_of(name, size):
            if isinstance(step, Relayout):  # below: its result may be part of another's memory
                continue
            alone = dataclasses.replace(step, sums=None)
            tensors = {memory: torch.randn(memory.floats) for memory in alone.reads}
            runs = dict(tensors)
            reference.run([alone], runs)
            expected, actual = runs[step.y], computed(alone, tensors)
            scale = expected.abs().max()
            assert ((actual - expected).abs().max() / scale).item() < 2e-5, step.name
            checked += 1
        assert checked > 10


@needs_kernels
@pytest.mark.parametrize("isa", _native.isas())
def test_relayout_copies_between_any_two_orders(isa):
    draw = random.Random(0)
    with _native.force(isa):
        for _ in range(60):
            dims = draw.randint(1, 6)
            shape = tuple(draw.choice([1, 2, 3, 5, 17, 33] if dims < 5 else [1, 2, 3]) for _ in range(dims))
            orders = [draw.sample(range(dims), dims) for _ in range(2)]
            x_strides, y_strides = (_strides(shape, order) for order in orders)
            count = torch.Size(shape).numel()
            step = Relayout(Memory(count), Memory(count + 7), [], y_offset=7)
            step.sizes, step.x_strides, step.y_strides = shape, x_strides, y_strides
            x = torch.randn(count)
            made = computed(step, {step.x: x})
            assert made[:7].isnan().all()
            assert torch.equal(made.as_strided(shape, y_strides, 7), x.as_strided(shape, x_strides))


def _strides(shape, order):
    dense = contiguous(tuple(shape[i] for i in order))
    return tuple(dense[order.index(i)] for i in range(len(shape)))


class ConvertedBlock(nn.Module):
    """A basic block of a residual network as conversion leaves it: norms kept, several maps of each channel."""

    def __init__(self, channels: int, order: str, multiplier: int, dilation: int = 1):
        super().__init__()
        options = {
            "padding": "same",
            "bias": False,
            "dilation": dilation,
            "order": order,
            "depth_multiplier": multiplier,
        }
        between = {"inner_norm": nn.BatchNorm2d, "inner_activation": "relu"}  # a bias for each map
        self.first = SeparableConv2d(channels, channels, 3, **options, **between)
        self.second = SeparableConv2d(channels, channels, 3, **options)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x):
        inside = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(inside)) + x).relu()


@needs_kernels
@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@torch.no_grad()
def test_a_converted_block_is_one_program_of_two_chains(order, isa):
    with _native.force(isa):
        for multiplier, channels, dilation in [(2, 16, 1), (3, 17, 1), (4, 20, 2), (5, 16, 1), (8, 33, 1)]:
            if multiplier > 4 and _native.lanes() < 8:
                continue  # torch's own operation serves
            block = lived_in(ConvertedBlock(channels, order, multiplier, dilation)).eval()
            x = torch.randn(3, channels, 11, 14)
            plan = Plan(follow(block, (x,), {}, State(block)).tape)
            assert all(part.native for part in plan.parts)
            steps = [step for part in plan.parts for step in part.steps]
            kinds = ["depthwise_conv", "pointwise_conv"]
            kinds = kinds if order == "depthwise_first" else kinds[::-1]
            assert [[part.kernel for part in step.parts] for step in steps if step.parts] == [kinds, kinds]
            # What is left of it: the input's layout and the result's, and a sum that no depthwise step takes in.
            assert {step.kernel for step in steps if not step.parts} <= {"relayout", "elementwise"}
            expected, actual = block.double()(x.double()), accelerate(block.float(), (x,))(x)
            assert ((actual - expected).abs().max() / expected.abs().max()).item() < 3e-6, (multiplier, channels)


@needs_kernels
def test_a_program_that_makes_no_sense_is_refused():
    code = torch.tensor([99, 2, 0, 0])
    with pytest.raises(RuntimeError, match="makes no sense"):
        torch.ops.separable.program_measure(code, torch.zeros(5, dtype=torch.int64))
    step = Affine(Memory(8), Memory(8), [], activation="relu", rows=2, c_in=4)
    program = Program([step], [step.x], [step.y])
    with pytest.raises(RuntimeError, match="makes no sense"):  # the output is missing
        program.run([torch.zeros(8)], [])
    cut = program.stages[0][:-1].clone()
    with pytest.raises(RuntimeError, match="makes no sense"):
        torch.ops.separable.program_run(cut, torch.empty(64), 0, 0, [program.constants, torch.zeros(8), torch.zeros(8)])


def test_memory_that_is_needed_at_once_is_apart():
    draw = random.Random(1)
    for _ in range(50):
        runs = [Memory(draw.randint(1, 200)) for _ in range(12)]
        steps = [Affine(runs[draw.randrange(i)], runs[i], [], other=runs[draw.randrange(i)]) for i in range(1, 12)]
        offsets, total = lay_out(steps, {runs[0], runs[11]})
        last = {m: max([i for i, s in enumerate(steps) if m in (s.y, *s.reads)], default=0) for m in offsets}
        first = {m: next(i for i, s in enumerate(steps) if m is s.y) for m in offsets}
        for a in offsets:
            assert offsets[a] % 16 == 0
            assert offsets[a] + a.floats <= total
            for b in offsets:
                if a is not b and first[a] <= last[b] and first[b] <= last[a]:
                    assert offsets[a] + a.floats <= offsets[b] or offsets[b] + b.floats <= offsets[a]


@needs_kernels
@torch.no_grad()
def test_a_program_leaves_what_lies_around_its_outputs_alone():
    network = nn.Sequential(nn.Conv2d(3, 17, 3, padding=1), nn.ReLU6(), nn.Conv2d(17, 17, 3, groups=17)).eval()
    plan = Plan(follow(network, (torch.randn(1, 3, 9, 9),), {}, State(network)).tape)
    steps = [step for part in plan.parts for step in part.steps]
    inputs = [next(m for m in steps[0].reads if m.value is not None)]
    outputs = [steps[-1].y]
    guarded = torch.full((outputs[0].floats + 64,), 7.0)
    Program(steps, inputs, outputs).run([torch.randn(inputs[0].floats)], [guarded[32:-32]])
    assert (guarded[:32] == 7).all()
    assert (guarded[-32:] == 7).all()
