"""A network that writes into its input is treated as its twin that does not, and the caller's data stays as it was."""

import pytest
import torch
from torch import Tensor, nn

import separable
from separable import conversion, cost
from separable.commands import evaluate
from separable.recipes import image_sets
from separable.store import verify


class Network(nn.Module):
    """Small; a subclass says what it does first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        convs = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))

    def begin(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.begin(x))


class InPlace(Network):
    def begin(self, x: Tensor) -> Tensor:
        return x.sub_(3.0).div_(0.5)


class InPlaceTwin(Network):
    def begin(self, x: Tensor) -> Tensor:
        return (x - 3.0) / 0.5


class Slice(Network):
    def begin(self, x: Tensor) -> Tensor:
        x[:, 1] = x[:, 1] * 2 - x[:, 0]
        return x


class SliceTwin(Network):
    def begin(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 1] * 2 - x[:, 0], x[:, 2]], 1)


PAIRS = [(InPlace, InPlaceTwin), (Slice, SliceTwin)]
BOTH = pytest.mark.parametrize(("writing", "twin"), PAIRS)


def data(number: int = 96) -> Tensor:
    return torch.randn(number, 3, 10, 10, generator=torch.Generator().manual_seed(1)) * 0.5 + 3


@BOTH
def test_convert_fits_what_the_caller_gave(writing, twin, monkeypatch):
    monkeypatch.setattr("separable.conversion.timing.time_options", lambda *_: None)  # the same plan for both
    x = data()
    found = conversion.convert(writing().eval(), x, {"macs": 0.6}, target="torch")
    assert torch.equal(x, data())
    expected = conversion.convert(twin().eval(), x, {"macs": 0.6}, target="torch")
    assert [layer.form for layer in found.layers] == [layer.form for layer in expected.layers]
    assert any(layer.form for layer in found.layers)
    errors = [[layer.error for layer in one.layers if layer.form] for one in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    torch.testing.assert_close(found.model(data(4)), expected.model(data(4)), rtol=1e-3, atol=1e-3)


@BOTH
def test_timing_leaves_the_callers_data_alone(writing, twin):
    x = data()
    study = conversion.Study(writing().eval(), x, target="torch")
    assert all(option.ms for options in study.table.values() for option in options[:1])
    assert study.dense_comparison().of("dense", "torch").ms > 0
    assert torch.equal(x, data())


@BOTH
def test_calibrate_reads_the_callers_data(writing, twin):
    errors, x = [], data()
    for kind in (writing, twin):
        found = conversion.survey(kind().eval(), [(part, None) for part in x.split(32)])
        errors.append(conversion.calibrate(found, {"body.2": ("depthwise first", 1)})[1])
    assert torch.equal(x, data())
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert 0 < errors[0]["body.2"] < 1


@BOTH
def test_distill_shows_student_and_teacher_the_same(writing, twin):
    losses, x = [], data()
    for kind in (writing, twin):
        student, teacher = kind(), kind()
        nn.init.normal_(student.body[6].weight)
        torch.manual_seed(2)
        _, history = conversion.distill(student, teacher, x, [(part,) for part in x.split(40)], epochs=2)
        losses.append([epoch.validation_loss for epoch in history])
    assert torch.equal(x, data())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@BOTH
def test_what_it_costs_is_read_off_copies(writing, twin):
    x = data(2)
    counted, expected = (cost.count(kind().eval(), x) for kind in (writing, twin))
    assert counted.macs == expected.macs
    profiled = cost.profile(writing().eval(), x, repeats=2)
    assert profiled.to_json()
    assert torch.equal(x, data(2))


@BOTH
def test_export_compares_on_equal_inputs(writing, twin, tmp_path):
    pytest.importorskip("onnxruntime")
    x = data(2)
    separable.export_onnx(writing().eval(), x, tmp_path / "net.onnx")
    assert torch.equal(x, data(2))


def test_save_compares_on_equal_inputs(tmp_path):
    """torch.fx follows no assignment to a slice; such a network is refused for that."""
    network, x = InPlace().eval(), data(2)
    separable.save(network, tmp_path / "net", example=x)
    assert torch.equal(x, data(2))
    torch.testing.assert_close(separable.load(tmp_path / "net")(data(2)), network(data(2)))


@BOTH
def test_outputs_are_compared_on_equal_inputs(writing, twin):
    verify.check_same_outputs(writing().eval(), twin().eval(), (data(2),))
    with pytest.raises(separable.InputError, match="differ"):
        verify.check_same_outputs(writing().eval(), Network().eval(), (data(2),))


@BOTH
def test_evaluation_and_the_look_at_classes_leave_the_images_as_they_are(writing, twin):
    network, x = writing().eval(), data(4)
    with torch.no_grad():
        expected = twin().eval()(x)
        for _ in range(2):
            torch.testing.assert_close(evaluate.forward(network, x), expected, rtol=1e-4, atol=1e-4)
    image_sets.fit_classes(network, 7, x)
    assert torch.equal(x, data(4))
