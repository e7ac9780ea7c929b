"""Distillation makes a student better on a small real task, keeps the best epoch, and leaves everything else alone."""

import copy

import pytest
import torch
from torch import nn

from separable.conversion import distill
from separable.conversion.distill import softened_divergence
from separable.errors import InputError
from separable.layers import SeparableConv2d


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits [N, 1, 8, 8] and labels, shuffled; the last 397 are for testing."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    return x, torch.tensor(found.target)[order]


def network(conv):
    return nn.Sequential(
        conv(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        conv(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(digits):
    torch.manual_seed(0)
    x, y = digits[0][:1400], digits[1][:1400]
    net = network(nn.Conv2d)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for part in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()


def batches(x, y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


@torch.no_grad()
def accuracy(net, digits):
    net.eval()
    return float((net(digits[0][1400:]).argmax(1) == digits[1][1400:]).double().mean())


def test_a_student_learns_from_the_teacher_alone(digits, teacher):
    torch.manual_seed(1)
    student = network(SeparableConv2d)
    x, y = digits
    _, history = distill(student, teacher, x[:1200], batches(x[1200:1400], y[1200:1400]), epochs=8, learning_rate=3e-3)
    assert [epoch.epoch for epoch in history] == list(range(9))
    assert history[0].accuracy < 0.3
    assert accuracy(student, digits) > 0.9


def test_labels_are_used_when_asked_for(digits, teacher):
    """A teacher that knows nothing: what is learnt can only come from the labels."""
    torch.manual_seed(1)
    blank, student, x, y = network(nn.Conv2d), network(SeparableConv2d), *digits
    distill(student, blank, batches(x[:1200], y[:1200]), epochs=4, learning_rate=3e-3, label_weight=1.0)
    assert accuracy(student, digits) > 0.8


def test_the_best_epoch_remains_even_if_it_is_the_first(digits, teacher):
    """A student that is the teacher cannot become nearer to it; a wild learning rate drives it away."""
    x, y = digits
    student = copy.deepcopy(teacher)
    before = accuracy(student, digits)
    _, history = distill(student, teacher, x[:256], batches(x[1200:1400], y[1200:1400]), epochs=1, learning_rate=0.5)
    assert history[1].validation_loss > history[0].validation_loss
    assert accuracy(student, digits) == before


def test_teacher_modes_and_frozen_parameters_are_left_alone(digits, teacher):
    x, student, guide = digits[0], network(SeparableConv2d), copy.deepcopy(teacher).train()
    student[1].requires_grad_(False).eval()
    frozen, kept = copy.deepcopy(student[1].state_dict()), copy.deepcopy(guide.state_dict())
    distill(student, guide, x[:128], epochs=1)
    assert guide.training
    assert all(torch.equal(kept[name], value) for name, value in guide.state_dict().items())
    assert student.training
    assert not student[1].training
    assert all(torch.equal(frozen[name], value) for name, value in student[1].state_dict().items())
    assert all(p.grad is None for p in guide.parameters())


def test_norms_stay_when_frozen_and_move_when_not(digits, teacher):
    moved = []
    for freeze in (True, False):
        student = network(SeparableConv2d)
        before = student[1].running_mean.clone()
        distill(student, teacher, digits[0][:128], epochs=1, freeze_norms=freeze)
        moved.append(not torch.equal(before, student[1].running_mean))
    assert moved == [False, True]


def test_an_odd_last_example_does_not_break_batch_norm(digits, teacher):
    distill(network(SeparableConv2d), teacher, digits[0][:65], epochs=1)


def test_negative_labels_are_none(digits, teacher):
    x, y = digits[0][:64], digits[1][:64]
    none = torch.full_like(y, -1)
    some = torch.where(torch.arange(64) < 16, y, -1)
    measured = []
    for labels in (none, some):
        _, history = distill(copy.deepcopy(teacher), teacher, x, [(x, labels)], epochs=1)
        measured.append(history[0].accuracy)
    assert measured[0] is None
    with torch.no_grad():
        assert measured[1] == pytest.approx(float((teacher(x[:16]).argmax(1) == y[:16]).double().mean()))


def test_unlabelled_examples_do_not_count_in_the_loss_of_labels(digits, teacher):
    """Labels alone train: a student of none but unlabelled neighbours is pulled by the labelled ones only."""
    x, y = digits[0][:64], digits[1][:64]
    some = torch.where(torch.arange(64) < 16, y, -1)
    student = copy.deepcopy(teacher)
    _, history = distill(student, teacher, [(x, some)], epochs=1, label_weight=1.0, freeze_norms=True)
    with torch.no_grad():
        assert history[-1].loss == pytest.approx(float(nn.functional.cross_entropy(teacher(x[:16]), y[:16])), rel=1e-4)


def test_compiled_networks_are_trained_as_what_is_inside_them(digits, teacher):
    student = network(SeparableConv2d)
    before = student[0].conv_pw.weight.clone()
    compiled = torch.compile(student)
    given, _ = distill(compiled, torch.compile(teacher), digits[0][:64], epochs=1)
    assert given is compiled
    assert not torch.equal(student[0].conv_pw.weight, before)


def test_loss_is_hintons():
    torch.manual_seed(0)
    given, target = (
        torch.randn(2, 4, 7, dtype=torch.float64).requires_grad_(),
        torch.randn(2, 4, 7, dtype=torch.float64),
    )
    p, q = (target / 3).softmax(1), (given / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(softened_divergence(given, target, 3.0), expected)


def test_high_temperature_matches_logits():
    """For T to infinity T² KL is half the mean squared difference of centred logits over the classes (section 2.1)."""
    torch.manual_seed(0)
    given, target = torch.randn(5, 10, dtype=torch.float64), torch.randn(5, 10, dtype=torch.float64)
    difference = (given - given.mean(1, keepdim=True)) - (target - target.mean(1, keepdim=True))
    limit = difference.square().mean(1).mean() / 2
    torch.testing.assert_close(softened_divergence(given, target, 1e4), limit, rtol=1e-3, atol=0)


def broken(network):
    network = copy.deepcopy(network)
    with torch.no_grad():
        network[-1].weight[0] = float("nan")
    return network


BAD = {
    "no epochs": (lambda s, t, x: distill(s, t, x, epochs=0), "epochs = 0"),
    "learning rate": (lambda s, t, x: distill(s, t, x, learning_rate=-1.0), "learning_rate = -1.0"),
    "temperature": (lambda s, t, x: distill(s, t, x, temperature=0.0), "temperature = 0.0"),
    "label weight": (lambda s, t, x: distill(s, t, x, label_weight=2.0), "label_weight = 2.0"),
    "labels missing": (lambda s, t, x: distill(s, t, x, label_weight=0.5), r"needs batches of \(inputs, labels\)"),
    "empty tensor": (lambda s, t, x: distill(s, t, x[:0]), "holds no examples"),
    "empty list": (lambda s, t, x: distill(s, t, []), "holds no examples"),
    "not data": (lambda s, t, x: distill(s, t, 5), "must be a tensor"),
    "other classes": (lambda s, t, x: distill(s, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x), "must give what"),
    "nothing to train": (lambda s, t, x: distill(copy.deepcopy(s).requires_grad_(False), t, x), "requires a gradient"),
    "nan": (lambda s, t, x: distill(s, t, x * float("nan")), "^train = .* holds NaN or infinite values"),
    "nan to validate": (lambda s, t, x: distill(s, t, x, x / 0), "^validation = .* holds NaN or infinite values"),
    "nan of the teacher": (lambda s, t, x: distill(s, broken(t), x), "^teacher = Sequential: gives NaN"),
    "nan of the student": (lambda s, t, x: distill(broken(s), t, x), "^student = Sequential: .* before any step"),
    "no student": (lambda s, t, x: distill(3, t, x), "^student = int: must be a torch.nn.Module"),
    "no teacher": (lambda s, t, x: distill(s, 3, x), "^teacher = int: must be a torch.nn.Module"),
    "teacher on meta": (lambda s, t, x: distill(s, copy.deepcopy(t).to("meta"), x), "^teacher = .* has no values"),
    "channels": (lambda s, t, x: distill(s, t, x.repeat(1, 3, 1, 1)), "^train = .* the teacher cannot read it"),
    "not a rate": (
        lambda s, t, x: distill(s, t, x, learning_rate="a"),
        "^learning_rate = a: must be a positive",
    ),
    "not a weight": (lambda s, t, x: distill(s, t, x, label_weight="a"), "^label_weight = a: must be a number"),
    "not validation": (lambda s, t, x: distill(s, t, x, 5), "must be a tensor"),
    "no such class": (
        lambda s, t, x: distill(s, t, [(x, torch.full((len(x),), 10))], label_weight=0.5),
        "^train = label 10: labels must be less than 10",
    ),
    "labels in tens": (
        lambda s, t, x: distill(s, t, x, [(x, torch.zeros(len(x), 10))]),
        r"^validation = labels, a tensor .* whole numbers of shape \[64\]",
    ),
    "labels all negative": (
        lambda s, t, x: distill(s, t, [(x, torch.full((len(x),), -1))], label_weight=0.5),
        "^label_weight = 0.5: needs batches",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(digits, teacher, case):
    call, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as caught:
        call(network(SeparableConv2d), teacher, digits[0][:64])
    assert "\n" not in str(caught.value)
