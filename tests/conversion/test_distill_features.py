"""Which modules are matched follows from names; matching them brings the inside of the student to the teacher's."""

import copy

import pytest
import torch
from torch import nn

from separable.conversion import distill
from separable.conversion.distillation.data import Source
from separable.conversion.distillation.look import look
from separable.conversion.distillation.loss import Objective
from separable.conversion.distillation.networks import Pair
from separable.errors import InputError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def chain(conv):
    """Two convolutions near to one."""
    made = nn.Sequential(copy.deepcopy(conv), nn.Conv2d(8, 8, 1, bias=False))
    with torch.no_grad():
        made[1].weight.copy_((torch.eye(8) + 0.1 * torch.randn(8, 8)).view(8, 8, 1, 1))
    return made


def chosen(student, teacher):
    pair = Pair(student.eval(), teacher.eval(), student)
    objective, source = Objective(None, 4.0, 0.0), Source(torch.randn(64, 3, 8, 8), "train")
    return look(pair, source, None, objective, True).features.names


def residual():
    torch.manual_seed(0)
    teacher = Residual().eval()
    student = copy.deepcopy(teacher)
    student.stage[0].conv, student.stage[2].conv = (chain(student.stage[i].conv) for i in (0, 2))
    return student, teacher


def test_blocks_that_hold_a_replaced_layer_are_matched():
    assert chosen(*residual()) == ["stage.0", "stage.2"]


def test_without_blocks_what_runs_after_a_replaced_layer_is_matched():
    teacher = plain()
    student = copy.deepcopy(teacher)
    student[2] = chain(student[2])
    assert chosen(student, teacher) == ["3"]


def test_nothing_is_matched_where_nothing_was_replaced_or_nothing_corresponds():
    assert chosen(Residual(), Residual()) == []
    assert chosen(plain(), Residual()) == []
    student, teacher = residual()
    for parameter in student.parameters():
        nn.init.normal_(parameter)
    assert chosen(student, teacher) == []


def test_features_bring_the_inside_to_the_teachers():
    student, teacher = residual()
    x = torch.randn(128, 3, 8, 8)

    def apart(**options):
        network = copy.deepcopy(student)
        distill(network, teacher, x.split(8), epochs=5, learning_rate=3e-3, **options)
        with torch.no_grad():
            ours, theirs = network.eval().stage(network.stem(x)), teacher.stage(teacher.stem(x))
        return float((ours - theirs).square().mean())

    assert apart(features=True, feature_weight=10.0) < 0.5 * apart()
    assert not student.stage[0]._forward_hooks
    assert not teacher.stage[0]._forward_hooks


def test_modules_can_be_named():
    student, teacher = residual()
    x = torch.randn(64, 3, 8, 8)
    losses = [
        distill(copy.deepcopy(student), teacher, x, epochs=1, features=names, feature_weight=100.0)[1][-1].loss
        for names in (["stage"], ["stem", "stage.1"], False)
    ]
    assert losses[0] != losses[1]
    assert min(losses[:2]) > losses[2]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("stages", "^features = stages: names no module of the student"),
        ("head", "^features = head: must be called once in the student and give a map"),
        ("stage.0.conv", "^features = stage.0.conv: gives maps of other shapes"),
    ],
)
def test_names_that_cannot_be_matched_are_refused(name, sentence):
    student, teacher = residual()
    student.stage[0].conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2), nn.ReLU())
    student.stage[0].norm = nn.Sequential(nn.BatchNorm2d(8), nn.AvgPool2d(3, 1))
    with pytest.raises(InputError, match=sentence):
        distill(student, teacher, torch.randn(8, 3, 8, 8), features=[name])
