"""Any output, any input: each output gets the loss that its kind asks for, and the student learns all of them."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn

from separable.conversion import distill
from separable.conversion.distillation.loss import Objective, by_name, softened_divergence
from separable.conversion.distillation.variance import channel_variance
from separable.errors import InputError

Boxes = namedtuple("Boxes", "place size")


class Detector(nn.Module):
    """Scores [N, 4], two maps in a tuple inside, a number an example, and a count that is no floating point."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.scores, self.maps, self.size = nn.Linear(8, 4), nn.Conv2d(8, 2, 1), nn.Linear(8, 1)

    def forward(self, x):
        y = self.body(x)
        mean = y.mean((2, 3))
        maps = self.maps(y)
        boxes = Boxes(100 * maps, (maps.square(), None))
        return {"scores": self.scores(mean), "boxes": boxes, "size": self.size(mean)[:, 0], "count": torch.tensor(3)}


def pair(kind, seed=0):
    torch.manual_seed(seed)
    teacher = kind().eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * parameter.square().mean().sqrt() * torch.randn_like(parameter)
    return student, teacher


def objective(*outputs, labels=None, loss=None):
    made = Objective(loss, 4.0, 0.0)
    made.look(list(outputs), [labels])
    return made


def test_every_tensor_of_a_nested_output_has_a_name():
    names = [name for name, _ in by_name(Detector()(torch.randn(2, 3, 8, 8)))]
    assert names == ["scores", "boxes.place", "boxes.size.0", "size"]
    assert [name for name, _ in by_name(torch.zeros(2, 3))] == ["output"]
    assert [name for name, _ in by_name([torch.zeros(1), (torch.zeros(1),)])] == ["0", "1.0"]


def test_all_outputs_of_a_detector_are_learnt():
    student, teacher = pair(Detector)
    _, history = distill(student, teacher, torch.randn(128, 3, 8, 8), torch.randn(32, 3, 8, 8), 5, learning_rate=3e-3)
    assert set(history[0].outputs) == {"scores", "boxes.place", "boxes.size.0", "size"}
    for name, before in history[0].outputs.items():
        assert history[-1].outputs[name] < 0.5 * before, name
    assert history[-1].validation_loss == pytest.approx(sum(history[-1].outputs.values()))
    assert history[-1].error < 0.5 * history[0].error


def test_values_miss_a_share_of_the_teachers_variance_in_each_channel():
    torch.manual_seed(0)
    target = torch.randn(8, 3, 5, 5) * torch.tensor([1.0, 5.0, 20.0]).view(1, 3, 1, 1) + 7
    made = objective({"map": target})
    for share in (0.0, 0.25, 1.0):
        given = target + share**0.5 * target.std((0, 2, 3), correction=0, keepdim=True)
        assert float(made.of({"map": given}, {"map": target}, None)[0]) == pytest.approx(share, abs=1e-5)


def test_channels_are_the_smaller_of_the_second_and_the_last_dimension():
    target = torch.randn(4, 6, 6, 2) * torch.tensor([1.0, 30.0])
    variance = objective(target).rules["output"].variance
    assert variance.shape == (1, 1, 1, 2)
    assert float(variance[..., 1] / variance[..., 0]) == pytest.approx(900, rel=0.5)
    assert objective(target.movedim(-1, 1)).rules["output"].variance.shape == (1, 2, 1, 1)


def test_a_channel_that_never_varies_has_a_finite_loss():
    target = torch.randn(4, 3, 5, 5)
    target[:, 1] = 2.0
    assert torch.isfinite(channel_variance([target], 1)).all()
    assert float(channel_variance([torch.zeros(4, 2)], 1).sum()) == 2.0


def test_scores_are_classes_and_probabilities_are_their_softmax():
    torch.manual_seed(0)
    given, target = torch.randn(5, 4), torch.randn(5, 4)
    expected = softened_divergence(given, target, 4.0)
    torch.testing.assert_close(objective(target).of(given, target, None)[0], expected)
    given, target = given.softmax(1), target.softmax(1)
    torch.testing.assert_close(objective(target).of(given, target, None)[0], expected, rtol=1e-4, atol=1e-6)


def test_a_map_with_labels_is_of_classes_and_without_of_values():
    target = torch.randn(4, 3, 5, 5)
    assert objective(target).rules["output"].kind == "values"
    assert objective(target, labels=torch.zeros(4, 5, 5, dtype=torch.long)).rules["output"].kind == "classes"
    assert objective(target, loss={"output": "classes"}).rules["output"].kind == "classes"
    assert objective(torch.randn(4, 3), loss={"output": "values"}).rules["output"].kind == "values"


def test_a_loss_of_the_users_own_for_one_output_or_for_all():
    student, teacher = pair(Detector)
    x = torch.randn(128, 3, 8, 8)
    losses = {"scores": nn.functional.l1_loss, "boxes.place": None, "size": "values"}
    _, history = distill(copy.deepcopy(student), teacher, x, x, epochs=1, loss=losses)
    assert set(history[0].outputs) == {"scores", "boxes.size.0", "size"}
    with torch.no_grad():
        expected = float((student(x)["scores"] - teacher(x)["scores"]).abs().mean())
    assert history[0].outputs["scores"] == pytest.approx(expected, rel=1e-4)

    def whole(given, target):
        return (given["size"] - target["size"]).abs().mean()

    _, history = distill(student, teacher, x.split(8), x, epochs=4, loss=whole)
    assert history[-1].validation_loss < 0.7 * history[0].validation_loss


def test_a_loss_of_the_users_own_leaves_accuracy_to_labels():
    student, teacher = pair(lambda: nn.Sequential(nn.Linear(6, 3)))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    with torch.no_grad():
        expected = float((student(x).argmax(1) == y).double().mean())
    _, history = distill(student, teacher, x, [(x, y)], epochs=1, loss={"output": nn.functional.mse_loss})
    assert history[0].accuracy == pytest.approx(expected)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left, right, shift=None):
        return self.left(left) + self.right(right) + (0 if shift is None else shift)


@pytest.mark.parametrize("named", [False, True], ids=["by position", "by name"])
def test_networks_of_several_inputs(named):
    student, teacher = pair(Two)
    torch.manual_seed(1)
    parts = [(torch.randn(32, 4), torch.randn(32, 5)) for _ in range(20)]
    data = (
        [{"left": a, "right": b, "shift": a[:, :1]} for a, b in parts] if named else [((a, b), None) for a, b in parts]
    )
    _, history = distill(student, teacher, data, data[:2], epochs=4)
    assert history[-1].validation_loss < 0.2 * history[0].validation_loss


def test_batches_with_labels_and_without_are_mixed():
    """Of a teacher that knows nothing, labels in half of the batches teach their class."""
    student, teacher = pair(lambda: nn.Sequential(nn.Linear(6, 2)))
    torch.manual_seed(1)
    x = torch.randn(256, 6)
    y = (x[:, 0] > 0).long()
    batches = [(a, b) if i % 2 == 0 else a for i, (a, b) in enumerate(zip(x.split(16), y.split(16), strict=True))]
    _, history = distill(student, teacher, batches, [(x, y)], epochs=6, label_weight=0.99, learning_rate=1e-2)
    assert history[-1].accuracy > 0.9


def test_labels_go_to_the_output_they_are_named_for():
    student, teacher = pair(Detector)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(4, (32,))
    _, history = distill(student, teacher, [(x, {"scores": y})], [(x, {"scores": y})], epochs=1, label_weight=0.5)
    with torch.no_grad():
        expected = float((pair(Detector)[0](x)["scores"].argmax(1) == y).double().mean())
    assert history[0].accuracy == pytest.approx(expected)


def test_what_stands_in_the_place_of_labels_and_is_none_is_not_read():
    student, teacher = pair(lambda: nn.Sequential(nn.Conv2d(3, 2, 1)))
    x = torch.randn(8, 3, 6, 6)
    distill(student, teacher, [(x, [{"boxes": torch.zeros(1, 4)}] * 8)], [(x, "names")], epochs=1)


class Only(nn.Module):
    def __init__(self, **change):
        super().__init__()
        self.net, self.change = Detector(), change

    def forward(self, x):
        return {**self.net(x), **self.change}


def bad(**arguments):
    student, teacher = pair(Detector)
    return distill(student, teacher, torch.randn(8, 3, 8, 8), epochs=1, **arguments)


def test_outputs_that_do_not_match_are_named():
    _, teacher = pair(Detector)
    x = torch.randn(8, 3, 8, 8)
    with pytest.raises(InputError, match=r"^student = tensor .* must give what the teacher gives for size, a tensor"):
        distill(Only(size=torch.zeros(8, 2)), teacher, x)
    with pytest.raises(InputError, match=r"^student = a dict: must give what the teacher gives for size"):
        distill(Only(size=None), teacher, x)
    with pytest.raises(InputError, match=r"^teacher = tensor .* must give floating-point tensors"):
        distill(nn.Embedding(3, 2), nn.Flatten(), torch.zeros(4, 2, dtype=torch.long))


BAD = {
    "no such output": ({"loss": {"box": "values"}}, "^loss = box: names no output; the teacher gives scores, boxes"),
    "no such kind": ({"loss": {"scores": "kl"}}, "^loss = kl for scores: must be a function"),
    "no classes": ({"loss": {"size": "classes"}}, "^loss = classes for size, a tensor"),
    "not a loss": ({"loss": 3}, "^loss = int: must be a function"),
    "nothing left": (
        {"loss": dict.fromkeys(("scores", "boxes.place", "boxes.size.0", "size"))},
        "^loss = none for any output",
    ),
    "not a number": ({"loss": lambda a, b: a["size"] - b["size"]}, "^loss = tensor .* must give one number"),
    "patience alone": ({"patience": 3}, "^patience = 3: needs validation data"),
    "no patience": ({"patience": 0, "validation": torch.randn(8, 3, 8, 8)}, "^patience = 0: must be a whole number"),
    "no time": ({"minutes": 0}, "^minutes = 0: must be a positive number"),
    "resume from nowhere": ({"resume": True}, "^resume = True: needs checkpoint=FOLDER"),
    "feature weight": ({"feature_weight": -1.0}, "^feature_weight = -1.0: must be a number of at least 0"),
    "no features": ({"features": "body"}, "^features = body: must be True, False or a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    arguments, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as caught:
        bad(**arguments)
    assert "\n" not in str(caught.value)


def test_inputs_of_different_lengths_are_refused():
    student, teacher = pair(Two)
    with pytest.raises(InputError, match=r"^train = inputs of \[4, 3\] examples: all inputs of a batch"):
        distill(student, teacher, [((torch.zeros(4, 4), torch.zeros(3, 5)),)])
